#include "marlin/checkpointers/folder_checkpointer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>

#include "marlin/checkpointers/durable_file.h"
#include "marlin/checkpointers/retention.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace fs = std::filesystem;
namespace {

using Form = CheckpointNames::Form;

LogLevel level_of(const std::string& name) {
  static const std::vector<std::string> kLevels = {"DEBUG", "INFO", "WARNING", "ERROR", "OFF"};
  return static_cast<LogLevel>(std::find(kLevels.begin(), kLevels.end(), name) - kLevels.begin());
}

[[noreturn]] void refuse_folder(const char* option, const fs::path& folder, const std::string& why) {
  throw Error(Errc::kInvalidArgument, concat("checkpointer.", option, ": cannot write to '", folder.string(), "': ", why));
}

constexpr std::string_view kProbe = "probe";

// What was made below a folder that was there is to outlive a power cut, or no checkpoint in it does.
void sync_made(const fs::path& existing, const fs::path& folder) {
  for (fs::path made = folder; made != existing && made.has_relative_path(); made = made.parent_path()) posix_file_system().sync_directory(made.parent_path());
}

// Makes the folder if it is not there, and a file in it for a moment: permissions alone do not tell of a read-only file system or of /proc.
void check_writable(const char* option, const fs::path& folder) {
  const fs::path whole = fs::absolute(folder).lexically_normal();
  fs::path existing = whole;
  std::error_code error;
  while (!fs::exists(fs::symlink_status(existing, error)) && existing.has_relative_path()) existing = existing.parent_path();
  if (!fs::is_directory(existing, error)) {
    // Below a file even asking fails, so climb to the file itself.
    while (existing.has_relative_path() && fs::is_directory(existing.parent_path(), error) == false) existing = existing.parent_path();
    refuse_folder(option, folder, concat("'", existing.string(), "' is not a folder"));
  }
  fs::create_directories(folder, error);
  if (error) refuse_folder(option, folder, concat("it cannot be made in '", existing.string(), "': ", error.message()));
  try {
    sync_made(existing, whole);
  } catch (const Error& problem) {
    refuse_folder(option, folder, problem.what());
  }
  const fs::path probe = folder / temporary_name(kProbe);
  const int file = ::open(probe.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (file < 0) refuse_folder(option, folder, std::strerror(errno));
  ::close(file);
  ::unlink(probe.c_str());
}

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

FolderCheckpointer::FolderCheckpointer(FolderOptions options, CheckpointNames checkpoints, CheckpointNames models, const HostContext& host)
    : options_(std::move(options)), names_(std::move(checkpoints)), model_names_(std::move(models)), host_(host), file_system_(file_system_of(host)),
      level_(level_of(options_.log_level)) {
  if (options_.keep_last == 1) {
    throw Error(Errc::kInvalidArgument, "checkpointer.keep_last: 1 is refused: if that file turned out broken, none would be left; give 2 or more, or 0 for all");
  }
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
void FolderCheckpointer::refuse_to_mix(const RunStart& start, const std::vector<fs::path>& files) const {
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
      const std::string run_id = run_id_of(file);
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
  check_writable("save_dir", options_.save_dir);
  check_writable("model_state_save_dir", model_folder());
  for (const fs::path& folder : {fs::path(options_.save_dir), model_folder()}) {
    remove_stale_temporaries(folder, [&](std::string_view name) { return name == kProbe || owns(name); });
  }
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

std::vector<std::string> FolderCheckpointer::do_save(const Checkpoint& checkpoint, const SavePoint& point) {
  const fs::path file = fs::path(options_.save_dir) / names_.name(point.unit == Unit::kEpoch ? Form::kEpoch : Form::kStep, point.index);
  write(file, checkpoint, point);
  const fs::path superseded = std::exchange(superseded_, {});
  if (!superseded.empty() && superseded != file) discard(superseded);
  evict(file);
  return {file.string()};
}

// What was just written counts as one of those that are kept, whatever its number: a run that went on from an older checkpoint
// may find higher ones here. Of the others only those count that can be opened; one that cannot is left for a person to look at.
void FolderCheckpointer::evict(const fs::path& just_written) {
  if (options_.keep_last == 0) return;
  const FilesByAge files = files_by_age(just_written.parent_path(), names_);
  const bool is_epoch = std::find(files.steps.begin(), files.steps.end(), just_written) == files.steps.end();
  const auto can_be_opened = [this](const fs::path& file) {
    try {
      static_cast<void>(run_id_of(file));
      return true;
    } catch (const Error&) {
      return false;
    }
  };
  for (const fs::path& file : plan_keep_last(is_epoch ? files.epochs : files.steps, options_.keep_last, just_written, can_be_opened).surplus) {
    discard(file, concat(" (keep_last ", options_.keep_last, ")"));
  }
}

std::vector<std::string> FolderCheckpointer::do_save_model(const StateDict& model_state, int64_t index) {
  if (!keeps_models()) return {};
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
