// Files that do not come back as they were written.
#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "checks.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "states.h"

namespace marlin::testing::detail {
namespace {

namespace fs = std::filesystem;

struct Damage {
  std::string what;     // "cut to 0 bytes"
  std::string content;
  bool gone = false;    // the file is removed
};

std::vector<Damage> damages(const std::string& content, int64_t flips, std::mt19937_64& random) {
  std::vector<Damage> result = {{"removed", {}, true}};
  const size_t size = content.size();
  for (const size_t cut : std::set<size_t>{0, 1, size / 4, size / 2, size - size / 8, size - 1}) {
    if (cut < size) result.push_back({concat("cut to ", cut, " of ", size, " bytes"), content.substr(0, cut)});
  }
  result.push_back({"made all zeros", std::string(size, '\0')});
  result.push_back({"made longer by 100 zeros", content + std::string(100, '\0')});
  for (int64_t i = 0; i < flips && size > 0; ++i) {
    const auto count = static_cast<size_t>((flips + 1) / 2);
    const size_t place = i % 2 == 0 ? static_cast<size_t>(i / 2) * size / count : random() % size;
    const auto bit = static_cast<char>(1 << (random() % 8));
    Damage flipped{concat("changed by one bit in byte ", place, " of ", size), content};
    flipped.content[place] = static_cast<char>(flipped.content[place] ^ bit);
    result.push_back(std::move(flipped));
  }
  return result;
}

// The older state, the newer one, or an Error. @param nothing_left  no file of a save is there any more: then there is no checkpoint,
// and that is no error.
void look_at_damage(const Stage& stage, const fs::path& folder, bool nothing_left) {
  Subject subject(stage, folder);
  try {
    const Checkpoint found = subject.try_load(newest());
    if (found.empty() && nothing_left) return;
    if (found.empty()) throw Broken("load found nothing and did not say why: a run would silently start afresh");
    const std::string differs = difference(state_at(2), found);
    if (differs.empty() || difference(state_at(1), found).empty()) return;
    throw Broken(concat("load gave a state that was never saved: ", differs));
  } catch (const Error& error) {
    // As if it were whole: whoever hears that looks for a later version, not for the older checkpoint, which is whole.
    if (error.code() == Errc::kUnsupported) throw Broken(concat("load says that the damaged file is of another version, where it is broken: ", error.what()));
  }
}

}  // namespace

std::string check_broken_file(const Stage& stage) {
  const fs::path opened_only = stage.fresh("opened");
  in_new_process("opening", [&] { Subject(stage, opened_only).open(); });
  const Files opened = files_below(opened_only);
  const fs::path folder = stage.fresh("run");
  in_new_process("saving twice", [&] {
    Subject subject(stage, folder);
    subject.open();
    subject.save_epoch(1);
  });
  const Files before = files_below(folder);
  in_new_process("saving twice", [&] {
    Subject subject(stage, folder);
    const Checkpoint found = subject.load();
    subject.open({.loaded_from = found.source, .run_id = "contract"});
    subject.save_epoch(2);
    subject.checkpointer().close();
  });
  const Files after = files_below(folder);
  std::vector<std::string> newer;
  for (const auto& [name, content] : after) {
    if (!before.contains(name) || before.at(name) != content) newer.push_back(name);
  }
  if (newer.empty()) throw NotRun("not applicable: it wrote no files");
  const size_t all = newer.size();
  const auto saved = std::ranges::count_if(after, [&](const auto& file) { return !opened.contains(file.first); });
  if (newer.size() > static_cast<size_t>(stage.contract.max_files)) newer.resize(static_cast<size_t>(stage.contract.max_files));

  std::mt19937_64 random(stage.seed);
  size_t count = 0;
  for (const std::string& name : newer) {
    for (const Damage& damage : damages(after.at(name), stage.contract.max_flips, random)) {
      fs::remove_all(folder);  // a load may have changed what is there, too
      for (const auto& [file, content] : after) write(folder / file, content);
      if (damage.gone) {
        fs::remove(folder / name);
      } else {
        write(folder / name, damage.content);
      }
      in_new_process(concat("with '", name, "' ", damage.what, " (seed ", stage.seed, ")"), [&] {
        look_at_damage(stage, folder, damage.gone && saved == 1 && !opened.contains(name));
      });
      ++count;
    }
  }
  const std::string files = all == newer.size() ? concat(all, all == 1 ? " file" : " files") : concat(newer.size(), " of ", all, " files");
  return concat(files, " of a save, damaged in ", count, " ways (seed ", stage.seed, ")");
}

}  // namespace marlin::testing::detail
