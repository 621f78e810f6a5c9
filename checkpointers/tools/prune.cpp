// marlin-ckpt prune DIR --keep_last N
#include <iostream>
#include <set>
#include <system_error>

#include "commands.h"
#include "folder.h"
#include "marlin/checkpointers/file_system.h"
#include "marlin/checkpointers/retention.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/json.h"
#include "marlin/tools/text.h"

namespace marlin::ckpt {
namespace {

namespace fs = std::filesystem;

struct Removal {
  fs::path file;
  uint64_t size_bytes = 0;
  std::string problem;  // why it is still there
};

// Of all prefixes, of epochs and steps each.
KeepPlan plan(const fs::path& folder, const Arguments& arguments, int64_t keep_last) {
  std::set<std::string> prefixes;
  for (const NamedFile& file : named_files(folder, arguments)) prefixes.insert(file.prefix);
  KeepPlan whole;
  for (const std::string& prefix : prefixes) {
    const FilesByAge files = files_by_age(folder, CheckpointNames(prefix, extension(arguments)));
    for (const auto* kind : {&files.epochs, &files.steps}) {
      const KeepPlan part = plan_keep_last(*kind, keep_last);
      whole.kept.insert(whole.kept.end(), part.kept.begin(), part.kept.end());
      whole.unopened.insert(whole.unopened.end(), part.unopened.begin(), part.unopened.end());
      whole.surplus.insert(whole.surplus.end(), part.surplus.begin(), part.surplus.end());
    }
  }
  return whole;
}

std::vector<Removal> remove(const std::vector<fs::path>& files, bool dry_run) {
  std::vector<Removal> removals;
  bool any = false;
  for (const fs::path& file : files) {
    std::error_code error;
    const uintmax_t size = fs::file_size(file, error);
    Removal& removal = removals.emplace_back(Removal{file, error ? 0 : size, ""});
    if (dry_run) continue;
    try {
      posix_file_system().remove(file);
      any = true;
    } catch (const Error& failure) {
      removal.problem = failure.what();
    }
  }
  if (any) posix_file_system().sync_directory(files.front().parent_path());
  return removals;
}

Json names_of(const std::vector<fs::path>& files) {
  Json names = Json::array();
  for (const fs::path& file : files) names.push_back(file.filename().string());
  return names;
}

void print_json(const fs::path& folder, int64_t keep_last, bool dry_run, const KeepPlan& plan, const std::vector<Removal>& removals) {
  Json removed = Json::array(), failed = Json::array();
  for (const Removal& removal : removals) {
    Json json = {{"file", removal.file.filename().string()}, {"bytes", removal.size_bytes}};
    if (!removal.problem.empty()) json["problem"] = removal.problem;
    (removal.problem.empty() ? removed : failed).push_back(std::move(json));
  }
  print({{"dir", folder.string()},
         {"keep_last", keep_last},
         {"dry_run", dry_run},
         {"removed", std::move(removed)},
         {"failed", std::move(failed)},
         {"kept", names_of(plan.kept)},
         {"broken", names_of(plan.unopened)}});
}

void print_text(bool dry_run, const KeepPlan& plan, const std::vector<Removal>& removals) {
  Table table({{""}, {""}, {"", true}});
  uint64_t bytes = 0, count = 0;
  for (const Removal& removal : removals) {
    if (!removal.problem.empty()) continue;
    table.add({dry_run ? "would remove" : "removed", printable(removal.file.string()), human_size(removal.size_bytes)});
    ++count, bytes += removal.size_bytes;
  }
  std::cout << table.text();
  for (const fs::path& file : plan.unopened) std::cout << "left alone, as it cannot be opened: " << printable(file.string()) << '\n';
  std::cout << (dry_run ? "would remove " : "removed ") << counted(count, "file") << " (" << human_size(bytes) << "), "
            << plan.kept.size() << (dry_run ? " would stay\n" : " stay\n");
}

int run(const Arguments& arguments) {
  const int64_t keep_last = arguments.number("keep_last");
  if (keep_last < 2) {
    throw Error(Errc::kInvalidArgument, concat("--keep_last: must be at least 2, got ", keep_last,
                                               ": if the one file that stays turned out broken, none would be left"));
  }
  const fs::path folder = arguments.folder(0);
  const bool dry_run = arguments.has("dry_run");
  const KeepPlan files = plan(folder, arguments, keep_last);
  const std::vector<Removal> removals = remove(files.surplus, dry_run);
  if (arguments.has("json")) {
    print_json(folder, keep_last, dry_run, files, removals);
  } else if (files.kept.empty() && files.unopened.empty()) {
    std::cout << none_in(folder, arguments) << '\n';
  } else {
    print_text(dry_run, files, removals);
  }
  int code = kGood;
  for (const Removal& removal : removals) {
    if (removal.problem.empty()) continue;
    std::cerr << "error: " << printable(removal.problem) << '\n';
    code = kBad;
  }
  return code;
}

}  // namespace

Command prune_command() {
  std::vector<Flag> flags = {{"keep_last", "N", "How many stay of each prefix, of epochs and of steps. At least 2.", true},
                             {"dry_run", "", "Remove nothing, say what would go."}};
  for (Flag& flag : name_flags()) flags.push_back(std::move(flag));
  return {"prune", {"DIR"}, "Remove all but the newest checkpoints.",
          "Removes all but the newest N checkpoints, oldest first, as --checkpointer.keep_last does after a save: epoch files and step\n"
          "files are counted apart, each prefix by itself; model and suspect files always stay. Of the newest, those that cannot be\n"
          "opened are neither counted nor removed.",
          flags, &run};
}

}  // namespace marlin::ckpt
