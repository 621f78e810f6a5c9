#include "marlin/checkpointers/retention.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "marlin/checkpointers/archive_reader.h"
#include "marlin/sdk/error.h"

namespace marlin {
namespace fs = std::filesystem;
namespace {

using Form = CheckpointNames::Form;

bool is_archive(const fs::path& file) {
  try {
    ArchiveReader(file, Verify::kOff);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

// Names are looked at once each: there may be very many.
FilesByAge files_by_age(const fs::path& folder, const CheckpointNames& names) {
  using Found = std::pair<int64_t, fs::path>;
  std::vector<Found> found[2];
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const auto parsed = names.parse(entry->path().filename().native());
    std::error_code ignored;
    if (!parsed || (parsed->form != Form::kEpoch && parsed->form != Form::kStep) || !entry->is_regular_file(ignored)) continue;
    found[parsed->form == Form::kStep].emplace_back(parsed->index, entry->path());
  }
  const auto sorted = [](std::vector<Found>& files) {
    std::sort(files.begin(), files.end(), [](const Found& a, const Found& b) { return a.first > b.first; });
    std::vector<fs::path> paths;
    paths.reserve(files.size());
    for (Found& file : files) paths.push_back(std::move(file.second));
    return paths;
  };
  return {sorted(found[0]), sorted(found[1])};
}

KeepPlan plan_keep_last(const std::vector<fs::path>& newest_first, int64_t keep_last, const fs::path& just_written,
                        const std::function<bool(const fs::path&)>& can_be_opened) {
  KeepPlan plan;
  if (!just_written.empty()) plan.kept.push_back(just_written);
  for (const fs::path& file : newest_first) {
    if (file == just_written) continue;
    if (static_cast<int64_t>(plan.kept.size()) >= keep_last) {
      plan.surplus.push_back(file);
    } else {
      ((can_be_opened ? can_be_opened(file) : is_archive(file)) ? plan.kept : plan.unopened).push_back(file);
    }
  }
  std::reverse(plan.surplus.begin(), plan.surplus.end());
  return plan;
}

}  // namespace marlin
