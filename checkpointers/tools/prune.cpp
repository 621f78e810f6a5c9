// marlin-ckpt prune DIR --keep_last N | --keep RULES
#include <algorithm>
#include <iostream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <system_error>

#include "commands.h"
#include "folder.h"
#include "marlin/checkpointers/file_system.h"
#include "marlin/checkpointers/keep_policy.h"
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

// Of all prefixes, each by itself.
std::vector<KeptFile> plan(const fs::path& folder, const Arguments& arguments, const KeepPolicy& policy) {
  std::set<std::string> prefixes;
  for (const NamedFile& file : named_files(folder, arguments)) prefixes.insert(file.prefix);
  std::vector<KeptFile> whole;
  for (const std::string& prefix : prefixes) {
    const CheckpointNames names(prefix, extension(arguments));
    std::map<fs::path, std::optional<Metrics>> seen;
    const auto look = [&seen](const fs::path& file) {
      const auto [at, is_new] = seen.try_emplace(file);
      if (is_new) at->second = look_at_archive(file);
      return at->second;
    };
    std::vector<KeptFile> part = plan_keep(files_by_age(folder, names), names, policy, look);
    whole.insert(whole.end(), std::make_move_iterator(part.begin()), std::make_move_iterator(part.end()));
  }
  return whole;
}

bool goes(const KeptFile& file) { return file.fate == KeptFile::Fate::kGoes; }

std::vector<Removal> remove(const std::vector<KeptFile>& files, bool dry_run) {
  std::vector<Removal> removals;
  bool any = false;
  for (const KeptFile& file : files) {
    if (!goes(file)) continue;
    std::error_code error;
    const uintmax_t size = fs::file_size(file.path, error);
    Removal& removal = removals.emplace_back(Removal{file.path, error ? 0 : size, ""});
    if (dry_run) continue;
    try {
      posix_file_system().remove(file.path);
      any = true;
    } catch (const Error& failure) {
      removal.problem = failure.what();
    }
  }
  if (any) posix_file_system().sync_directory(files.front().path.parent_path());
  return removals;
}

Json names_of(const std::vector<KeptFile>& files, KeptFile::Fate fate) {
  Json names = Json::array();
  for (auto file = files.rbegin(); file != files.rend(); ++file) {
    if (file->fate == fate) names.push_back(file->path.filename().string());
  }
  return names;
}

void print_json(const fs::path& folder, const KeepPolicy& policy, bool dry_run, const std::vector<KeptFile>& files, const std::vector<Removal>& removals) {
  Json removed = Json::array(), failed = Json::array(), why = Json::object();
  for (const Removal& removal : removals) {
    Json json = {{"file", removal.file.filename().string()}, {"bytes", removal.size_bytes}};
    if (!removal.problem.empty()) json["problem"] = removal.problem;
    (removal.problem.empty() ? removed : failed).push_back(std::move(json));
  }
  for (const KeptFile& file : files) why[file.path.filename().string()] = file.why;
  print({{"dir", folder.string()},
         {"keep", policy.text()},
         {"dry_run", dry_run},
         {"removed", std::move(removed)},
         {"failed", std::move(failed)},
         {"kept", names_of(files, KeptFile::Fate::kStays)},
         {"broken", names_of(files, KeptFile::Fate::kUnopened)},
         {"why", std::move(why)}});
}

// A dry run says of every file what would become of it, and why.
void print_text(bool dry_run, const std::vector<KeptFile>& files, const std::vector<Removal>& removals) {
  Table table = dry_run ? Table({{""}, {""}, {""}}) : Table({{""}, {""}, {"", true}});
  uint64_t bytes = 0, count = 0, stay = 0;
  auto removal = removals.begin();
  for (const KeptFile& file : files) {
    const bool stays = file.fate == KeptFile::Fate::kStays;
    stay += stays;
    if (dry_run && (stays || goes(file))) table.add({stays ? "stays" : "would remove", printable(file.path.string()), file.why});
    if (!goes(file)) continue;
    const Removal& done = *removal++;
    if (!done.problem.empty()) continue;
    if (!dry_run) table.add({"removed", printable(file.path.string()), human_size(done.size_bytes)});
    ++count, bytes += done.size_bytes;
  }
  std::cout << table.text();
  for (auto file = files.rbegin(); file != files.rend(); ++file) {
    if (file->fate == KeptFile::Fate::kUnopened) std::cout << "left alone, as it cannot be opened: " << printable(file->path.string()) << '\n';
  }
  std::cout << (dry_run ? "would remove " : "removed ") << counted(count, "file") << " (" << human_size(bytes) << "), " << stay << (dry_run ? " would stay\n" : " stay\n");
}

KeepPolicy policy_of(const Arguments& arguments) {
  if (!arguments.has("keep_last") && !arguments.has("keep")) throw Error(Errc::kInvalidArgument, "give --keep_last N, or --keep RULES");
  if (arguments.has("keep") && arguments.text("keep", "").empty()) throw Error(Errc::kInvalidArgument, "--keep: must not be empty");
  const KeepPolicy keep(arguments.text("keep", ""), "--keep");
  if (!arguments.has("keep_last")) return keep;
  const int64_t keep_last = arguments.number("keep_last");
  if (keep_last < 2) {
    throw Error(Errc::kInvalidArgument, concat("--keep_last: must be at least 2, got ", keep_last,
                                               ": if the one file that stays turned out broken, none would be left"));
  }
  return KeepPolicy(concat("last:", keep_last, keep.empty() ? "" : ",", keep.text()), "--keep_last, --keep");
}

int run(const Arguments& arguments) {
  const KeepPolicy policy = policy_of(arguments);
  const fs::path folder = arguments.folder(0);
  const bool dry_run = arguments.has("dry_run");
  const std::vector<KeptFile> files = plan(folder, arguments, policy);
  const std::vector<Removal> removals = remove(files, dry_run);
  if (arguments.has("json")) {
    print_json(folder, policy, dry_run, files, removals);
  } else if (std::all_of(files.begin(), files.end(), goes)) {
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
  std::vector<Flag> flags = {{"keep_last", "N", "How many stay of each prefix, of epochs and of steps. At least 2."},
                             {"keep", "RULES", "What stays, a union: last:N,best:K:METRIC[:min],every:N,pin:N."},
                             {"dry_run", "", "Remove nothing, say what would go, what would stay, and why."}};
  for (Flag& flag : name_flags()) flags.push_back(std::move(flag));
  return {"prune", {"DIR"}, "Remove checkpoints that no rule keeps.",
          "Removes checkpoints that no rule keeps, oldest first, as --checkpointer.keep_last and --checkpointer.keep do after a save:\n"
          "last:N keeps the newest N, best:K:METRIC those of the K highest values of a metric (:min: lowest), every:N those whose\n"
          "number is a multiple of N, pin:N number N. Epoch files and step files are counted apart, each prefix by itself; the newest\n"
          "two, and model and suspect files, always stay. Those that a rule keeps but that cannot be opened are neither counted nor\n"
          "removed.",
          flags, &run};
}

}  // namespace marlin::ckpt
