#include "marlin/checkpointers/retention.h"

#include <algorithm>
#include <limits>
#include <system_error>
#include <utility>

#include "marlin/checkpointers/archive_reader.h"
#include "marlin/sdk/error.h"

namespace marlin {
namespace fs = std::filesystem;
namespace {

using Form = CheckpointNames::Form;

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

std::optional<Metrics> look_at_archive(const fs::path& file) {
  try {
    const std::optional<CommitRecord> record = ArchiveReader(file, Verify::kOff).record();
    return record ? record->metrics : Metrics();
  } catch (const Error&) {
    return std::nullopt;
  }
}

namespace {

constexpr const char* kAlways = "one of the newest two";
constexpr const char* kNoRules = "there are no rules";

// Oldest first, epochs before steps.
std::vector<KeptFile> in_order(const FilesByAge& files) {
  std::vector<KeptFile> all;
  all.reserve(files.epochs.size() + files.steps.size());
  for (const auto* kind : {&files.epochs, &files.steps}) {
    for (auto file = kind->rbegin(); file != kind->rend(); ++file) all.push_back({*file, KeptFile::Fate::kStays, kNoRules});
  }
  return all;
}

// Files that can be opened, as far as is known, and what the rules may know of them, place by place.
struct Openable {
  std::vector<KeptFile*> files;
  std::vector<KeepPolicy::Candidate> candidates;

  void drop(const std::vector<char>& broken) {
    size_t to = 0;
    for (size_t i = 0; i < files.size(); ++i) {
      if (broken[i]) {
        files[i]->fate = KeptFile::Fate::kUnopened;
        files[i]->why = "cannot be opened";
        continue;
      }
      if (to != i) files[to] = files[i], candidates[to] = std::move(candidates[i]);
      ++to;
    }
    files.resize(to);
    candidates.resize(to);
  }
};

// Why each of those that can be opened stays; empty: it does not.
std::vector<std::string> reasons_of(const std::vector<KeepPolicy::Candidate>& candidates, const KeepPolicy& policy) {
  static const KeepPolicy kNewestTwo("last:2");
  std::vector<std::string> reasons = policy.reasons(candidates);
  if (policy.keeps_at_least() >= 2) return reasons;
  const std::vector<std::string> always = kNewestTwo.reasons(candidates);
  for (size_t i = 0; i < reasons.size(); ++i) {
    if (reasons[i].empty() && !always[i].empty()) reasons[i] = kAlways;
  }
  return reasons;
}

}  // namespace

std::vector<KeptFile> plan_keep(const FilesByAge& files, const CheckpointNames& names, const KeepPolicy& policy, const LookAtFile& look, const fs::path& just_written) {
  std::vector<KeptFile> all = in_order(files);
  if (policy.empty()) return all;
  Openable open;
  std::vector<char> broken;
  for (KeptFile& file : all) {
    const auto parsed = names.parse(file.path.filename().native());
    if (!parsed) continue;
    KeepPolicy::Candidate candidate{parsed->form == Form::kStep ? Unit::kStep : Unit::kEpoch, parsed->index, {}, {}};
    if (file.path == just_written) candidate.age = std::numeric_limits<int64_t>::max();
    const std::optional<Metrics> metrics = policy.needs_metrics() ? look(file.path) : Metrics();
    if (metrics) candidate.metrics = *metrics;
    broken.push_back(!metrics && file.path != just_written);
    open.files.push_back(&file);
    open.candidates.push_back(std::move(candidate));
  }
  // One that a rule keeps and that cannot be opened makes room for the next; so it goes round until all that stay can be.
  std::vector<std::string> reasons;
  do {
    open.drop(broken);
    reasons = reasons_of(open.candidates, policy);
    broken.assign(open.files.size(), 0);
    for (size_t i = 0; i < open.files.size(); ++i) broken[i] = !reasons[i].empty() && open.files[i]->path != just_written && !look(open.files[i]->path);
  } while (std::find(broken.begin(), broken.end(), 1) != broken.end());
  for (size_t i = 0; i < open.files.size(); ++i) {
    KeptFile& file = *open.files[i];
    const bool stays = !reasons[i].empty() || file.path == just_written;
    file.fate = stays ? KeptFile::Fate::kStays : KeptFile::Fate::kGoes;
    file.why = !reasons[i].empty() ? reasons[i] : stays ? "just written" : "no rule keeps it";
  }
  return all;
}

}  // namespace marlin
