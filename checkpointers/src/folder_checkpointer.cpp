#include "marlin/checkpointers/folder_checkpointer.h"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>

#include "folder_check.h"
#include "marlin/checkpointers/durable_file.h"
#include "marlin/checkpointers/retention.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace fs = std::filesystem;
namespace {

using Form = CheckpointNames::Form;

void add_files(std::vector<fs::path>& result, const fs::path& folder, const CheckpointNames& names, bool models) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const auto parsed = names.parse(entry->path().filename().string());
    std::error_code ignored;
    if (parsed && (parsed->form == Form::kModel) == models && entry->is_regular_file(ignored)) result.push_back(entry->path());
  }
}

bool is_set(const std::optional<std::string>& option) { return option && !option->empty(); }

}  // namespace

namespace {

// keep_last is a rule of a policy, by another name.
KeepPolicy policy_of(const FolderOptions& options) {
  const KeepPolicy keep(options.keep, "checkpointer.keep");
  if (options.keep_last == 0) return keep;
  if (options.keep_last == 1) {
    throw Error(Errc::kInvalidArgument, "checkpointer.keep_last: 1 is refused: if that file turned out broken, none would be left; give 2 or more, or 0 for all");
  }
  const std::string last = concat("last:", options.keep_last);
  return KeepPolicy(keep.empty() ? last : keep.text() == last ? last : concat(last, ",", keep.text()), "checkpointer.keep_last, checkpointer.keep");
}

}  // namespace

FolderCheckpointer::FolderCheckpointer(FolderOptions options, CheckpointNames checkpoints, CheckpointNames models, const HostContext& host)
    : options_(std::move(options)), policy_(policy_of(options_)), names_(std::move(checkpoints)), model_names_(std::move(models)), host_(host), file_system_(file_system_of(host)),
      level_(log_level_of(options_.log_level)) {
  if (options_.save_dir.empty()) throw Error(Errc::kInvalidArgument, "checkpointer.save_dir: must not be empty; '.' is the working directory");
  options_.save_dir = host.in_run_dir(options_.save_dir).string();
  for (std::optional<std::string>* folder : {&options_.model_state_save_dir, &options_.load_dir}) {
    if (is_set(*folder)) *folder = host.in_run_dir(**folder).string();
  }
}

FolderCheckpointer::~FolderCheckpointer() = default;

void FolderCheckpointer::remove(const fs::path& file) { file_system_.remove(file); }
void FolderCheckpointer::sweep(const fs::path&) {}
bool FolderCheckpointer::owns(std::string_view file_name) const { return names_.parse(file_name) || model_names_.parse(file_name); }

void FolderCheckpointer::log(LogLevel level, const std::string& line) const {
  if (level_ <= level && host_.logger->enabled(level)) host_.logger->log(level, line);
}

void FolderCheckpointer::log_unverified(const fs::path& file) const {
  log(LogLevel::kWarning, concat(file.string(), ": its tensors were not verified (checkpointer.verify off)"));
}

void FolderCheckpointer::discard(const fs::path& file, const std::string& why) {
  try {
    remove(file);
    log(LogLevel::kInfo, concat("removed ", file.string(), why));
  } catch (const Error& error) {
    log(LogLevel::kWarning, error.what());
  }
}

fs::path FolderCheckpointer::model_folder() const {
  return is_set(options_.model_state_save_dir) ? fs::path(*options_.model_state_save_dir) : fs::path(options_.save_dir);
}

bool FolderCheckpointer::keeps_models() const { return !options_.model_state_save_dir || !options_.model_state_save_dir->empty(); }

// What this checkpointer could have written, wherever it writes.
std::vector<fs::path> FolderCheckpointer::own_files() const {
  std::error_code error;
  const bool one_folder = model_folder() == fs::path(options_.save_dir) || fs::equivalent(model_folder(), options_.save_dir, error);
  std::vector<fs::path> files, models;
  add_files(files, options_.save_dir, names_, false);
  if (!one_folder || keeps_models()) add_files(one_folder ? files : models, model_folder(), model_names_, true);
  std::sort(files.begin(), files.end());
  std::sort(models.begin(), models.end());
  files.insert(files.end(), models.begin(), models.end());
  return files;
}

// Two runs in one folder would overwrite each other's files, and the next resume could take either.
// What one that threw before its first save left does not keep it from being started again.
void FolderCheckpointer::refuse_to_mix(const RunStart& start, std::vector<fs::path> files) const {
  std::erase_if(files, [&](const fs::path& file) {
    const auto parsed = names_.parse(file.filename().native());
    return start.looked && parsed && parsed->form == Form::kSuspect;
  });
  if (files.empty()) return;
  if (start.loaded_from.empty()) {
    throw Error(Errc::kInvalidArgument, concat("'", files.front().parent_path().string(), "' holds checkpoints of an earlier run (", files.front().filename().string(),
        files.size() > 1 ? concat(" and ", files.size() - 1, " more") : "",
        "): give --resume auto to go on with it, --checkpointer.delete_existing_checkpoints to start over, or another --checkpointer.save_dir"));
  }
  std::error_code error;
  if (start.run_id.empty() || fs::equivalent(fs::path(start.loaded_from).parent_path() / ".", options_.save_dir, error)) return;
  for (const fs::path& file : files) {
    try {
      const std::string run_id = facts_of(file).run_id;
      if (run_id.empty() || run_id == start.run_id) continue;
    } catch (const Error&) {
      continue;  // whose it is cannot be told
    }
    throw Error(Errc::kInvalidArgument, concat(file.string(), " is a checkpoint of another run than ", start.loaded_from,
        ": give another --checkpointer.save_dir, or --checkpointer.delete_existing_checkpoints to remove what is there"));
  }
}

void FolderCheckpointer::do_open(const RunStart& start) {
  const std::vector<fs::path> files = own_files();
  if (!options_.delete_existing_checkpoints) refuse_to_mix(start, files);
  check_writable("save_dir", options_.save_dir, /*create=*/true);
  check_writable("model_state_save_dir", model_folder(), /*create=*/true);
  for (const fs::path& folder : {fs::path(options_.save_dir), model_folder()}) clear_temporaries(folder);
  opened_ = true;
  sweep(options_.save_dir);
  if (!options_.delete_existing_checkpoints || std::exchange(cleared_, true)) return;
  for (const fs::path& file : files) {
    std::error_code error;
    if (!start.loaded_from.empty() && fs::equivalent(file, start.loaded_from, error)) {
      superseded_ = file;
    } else {
      discard(file);
    }
  }
}

void FolderCheckpointer::clear_temporaries(const fs::path& folder) const {
  remove_stale_temporaries(folder, [&](std::string_view name) { return name == kWriteProbe || owns(name); });
}

bool FolderCheckpointer::do_keeps_suspects() const { return true; }

// A state after an exception has a name of its own, which is never looked for; nothing goes for it.
std::vector<std::string> FolderCheckpointer::do_save(const Checkpoint& checkpoint, const SavePoint& point) {
  const fs::path folder = options_.save_dir;
  if (point.cause == Cause::kException) {
    const fs::path suspect = folder / names_.name(Form::kSuspect, point.global_step);
    write(suspect, checkpoint, point);
    return {suspect.string()};
  }
  const fs::path file = folder / names_.name(point.unit == Unit::kEpoch ? Form::kEpoch : Form::kStep, point.index);
  write(file, checkpoint, point);
  const fs::path superseded = std::exchange(superseded_, {});
  if (!superseded.empty() && superseded != file) discard(superseded);
  evict(file);
  return {file.string()};
}

// What was just written counts as one of those that are kept, whatever its number: a run that went on from an older checkpoint
// may find higher ones here. Of the others only those count that can be opened; one that cannot is left for a person to look at.
void FolderCheckpointer::evict(const fs::path& just_written) {
  if (policy_.empty()) return;
  const FilesByAge files = files_by_age(just_written.parent_path(), names_);
  std::set<fs::path> there;
  for (const auto* kind : {&files.epochs, &files.steps}) there.insert(kind->begin(), kind->end());
  std::erase_if(looked_at_, [&](const auto& each) { return !there.contains(each.first); });
  looked_at_.erase(just_written);
  const LookAtFile look = [this](const fs::path& file) -> std::optional<Metrics> {
    const auto known = looked_at_.find(file);
    if (known != looked_at_.end()) return known->second;
    try {
      return looked_at_.emplace(file, facts_of(file).metrics).first->second;
    } catch (const Error&) {
      return std::nullopt;
    }
  };
  for (const KeptFile& file : plan_keep(files, names_, policy_, look, just_written)) {
    if (file.fate == KeptFile::Fate::kGoes) discard(file.path, concat(" (keep ", policy_.text(), ")"));
  }
}

std::vector<std::string> FolderCheckpointer::do_save_model(const StateDict& model_state, int64_t index) {
  if (!keeps_models()) return {};
  if (!opened_) clear_temporaries(model_folder());  // a run that was killed right here has nothing but this file to make up for
  const fs::path file = model_folder() / model_names_.name(Form::kModel, index);
  write_model(file, model_state, index);
  return {file.string()};
}

bool FolderCheckpointer::do_has_model(int64_t index) const {
  if (!keeps_models()) return true;  // nothing is missing
  std::error_code error;
  return fs::is_regular_file(model_folder() / model_names_.name(Form::kModel, index), error);
}

bool FolderCheckpointer::do_wants_load() const { return is_set(options_.load_dir) || is_set(options_.load_filename); }

Checkpoint FolderCheckpointer::do_load(const LoadRequest& request) {
  if (request.from == LoadRequest::From::kPath) {
    std::error_code error;
    if (!fs::is_directory(request.path, error)) return read(request.path, request.verify);
    Checkpoint found = load_newest(request.path, request.verify);
    if (found.empty() && request.required) throw Error(Errc::kNotFound, concat("no checkpoint '", names_.name(Form::kEpoch, 0), "' or later in ", request.path));
    return found;
  }
  if (is_set(options_.load_filename)) {
    return read(fs::path(is_set(options_.load_dir) ? *options_.load_dir : options_.save_dir) / *options_.load_filename, request.verify);
  }
  std::vector<std::string> searched;
  if (is_set(options_.load_dir)) searched.push_back(*options_.load_dir);
  if (request.from == LoadRequest::From::kAnywhere) searched.push_back(options_.save_dir);
  for (const std::string& folder : searched) {
    if (Checkpoint found = load_newest(folder, request.verify); !found.empty()) return found;
  }
  if (request.required) {
    throw Error(Errc::kNotFound, concat("no checkpoint to resume from: no file like ", names_.name(Form::kEpoch, 0), " in ", searched.empty() ? "any folder" : join(searched), "; --resume auto starts afresh if there is none"));
  }
  return {};
}

Checkpoint FolderCheckpointer::load_newest(const fs::path& folder, Verify verify) const {
  Checkpoint found[2];
  std::string problem;
  const FilesByAge files = files_by_age(folder, names_);
  for (const auto* candidates : {&files.epochs, &files.steps}) {
    try {
      found[candidates == &files.steps] = newest_whole(*candidates, verify);
    } catch (const Error& error) {
      if (error.code() != Errc::kCorrupt) throw;
      problem = error.what();
    }
  }
  auto& [by_epoch, by_step] = found;
  if (!problem.empty()) {
    if (by_epoch.empty() && by_step.empty()) throw Error(Errc::kCorrupt, problem);
    log(LogLevel::kWarning, concat(problem, "; going on from ", by_epoch.empty() ? by_step.source : by_epoch.source));
  }
  if (by_step.empty()) return by_epoch;
  if (by_epoch.empty()) return by_step;
  return by_step.global_step() > by_epoch.global_step() ? by_step : by_epoch;
}

Checkpoint FolderCheckpointer::newest_whole(const std::vector<fs::path>& newest_first, Verify verify) const {
  std::string first_problem;
  for (const fs::path& file : newest_first) {
    try {
      Checkpoint found = read(file, verify);
      if (!first_problem.empty()) log(LogLevel::kWarning, concat("a newer checkpoint is broken and was passed over: ", first_problem));
      return found;
    } catch (const Error& error) {
      if (error.code() != Errc::kCorrupt && error.code() != Errc::kMismatch) throw;
      if (first_problem.empty()) first_problem = error.what();
    }
  }
  if (!first_problem.empty()) throw Error(Errc::kCorrupt, concat("no checkpoint in ", newest_first.front().parent_path().string(), " is whole; the newest: ", first_problem));
  return {};
}

}  // namespace marlin
