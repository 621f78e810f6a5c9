#include "marlin/checkpointers/default_checkpointer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "marlin/checkpointers/archive_reader.h"
#include "marlin/checkpointers/durable_file.h"
#include "marlin/checkpointers/retention.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace fs = std::filesystem;
namespace {

using Form = CheckpointNames::Form;

// A checkpointer's own log_level, in front of the host's logger.
class LevelFilter {
 public:
  LevelFilter(Logger* logger, const std::string& level) : logger_(logger) {
    static const std::vector<std::string> kLevels = {"DEBUG", "INFO", "WARNING", "ERROR", "OFF"};
    level_ = static_cast<LogLevel>(std::find(kLevels.begin(), kLevels.end(), level) - kLevels.begin());
  }
  template <class... Args> void info(const Args&... args) const { if (level_ <= LogLevel::kInfo) logger_->info(args...); }
  template <class... Args> void warning(const Args&... args) const { if (level_ <= LogLevel::kWarning) logger_->warning(args...); }

 private:
  Logger* logger_;
  LogLevel level_;
};

[[noreturn]] void refuse_folder(const char* option, const fs::path& folder, const std::string& why) {
  throw Error(Errc::kInvalidArgument, concat("checkpointer.", option, ": cannot write to '", folder.string(), "': ", why));
}

constexpr std::string_view kProbe = "probe";

// Makes the folder if it is not there, and a file in it for a moment: permissions alone do not tell of a read-only file system or of /proc.
void check_writable(const char* option, const fs::path& folder) {
  fs::path existing = fs::absolute(folder).lexically_normal();
  std::error_code error;
  while (!fs::exists(fs::symlink_status(existing, error)) && existing.has_relative_path()) existing = existing.parent_path();
  if (!fs::is_directory(existing, error)) {
    // Below a file even asking fails, so climb to the file itself.
    while (existing.has_relative_path() && fs::is_directory(existing.parent_path(), error) == false) existing = existing.parent_path();
    refuse_folder(option, folder, concat("'", existing.string(), "' is not a folder"));
  }
  fs::create_directories(folder, error);
  if (error) refuse_folder(option, folder, concat("it cannot be made in '", existing.string(), "': ", error.message()));
  const fs::path probe = folder / temporary_name(kProbe);
  const int file = ::open(probe.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (file < 0) refuse_folder(option, folder, std::strerror(errno));
  ::close(file);
  ::unlink(probe.c_str());
}

std::vector<fs::path> files_in(const fs::path& folder, const CheckpointNames& names, const std::function<bool(const CheckpointNames::Parsed&)>& wanted) {
  std::vector<fs::path> result;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const auto parsed = names.parse(entry->path().filename().string());
    std::error_code ignored;
    if (parsed && wanted(*parsed) && entry->is_regular_file(ignored)) result.push_back(entry->path());
  }
  return result;
}

bool is_set(const std::optional<std::string>& option) { return option && !option->empty(); }

}  // namespace

std::vector<OptionField<DefaultCheckpointerOptions>> DefaultCheckpointerOptions::option_fields() {
  using O = DefaultCheckpointerOptions;
  return {
      option_field("save_dir", &O::save_dir, "Folder for checkpoints; made when first needed."),
      option_field("model_state_save_dir", &O::model_state_save_dir, "Folder for bare model files; not given: save_dir; empty: none are written."),
      option_field("file_prefix", &O::file_prefix, "First part of every file name."),
      option_field("file_ext", &O::file_ext, "Extension of every file name, without the dot."),
      option_field("load_dir", &O::load_dir, "Folder to resume from; its newest checkpoint is taken. None there is an error."),
      option_field("load_filename", &O::load_filename, "File in load_dir to resume from, instead of the newest."),
      option_field("delete_existing_checkpoints", &O::delete_existing_checkpoints, "Start over: remove files that an earlier run of this checkpointer left."),
      option_field("keep_last", &O::keep_last, "Remove older checkpoints once this many are there, of epochs and of steps each; 0: none; never model files.", {.min = 0}),
      option_field("log_level", &O::log_level, "The least that this checkpointer logs.", {.choices = {"DEBUG", "INFO", "WARNING", "ERROR", "OFF"}}),
  };
}

DefaultCheckpointer::DefaultCheckpointer(DefaultCheckpointerOptions options, const HostContext& host)
    : options_(std::move(options)), names_(options_.file_prefix, options_.file_ext), host_(host), file_system_(file_system_of(host)) {
  validate(options_, "checkpointer.");
  if (options_.keep_last == 1) {
    throw Error(Errc::kInvalidArgument, "checkpointer.keep_last: 1 is refused: if that file turned out broken, none would be left; give 2 or more, or 0 for all");
  }
  if (options_.save_dir.empty()) throw Error(Errc::kInvalidArgument, "checkpointer.save_dir: must not be empty; '.' is the working directory");
  options_.save_dir = host.in_run_dir(options_.save_dir).string();
  for (std::optional<std::string>* folder : {&options_.model_state_save_dir, &options_.load_dir}) {
    if (is_set(*folder)) *folder = host.in_run_dir(**folder).string();
  }
  set_schedule({.checkpoint = options_.checkpoint, .period = options_.period});
  set_name("default");
}

DefaultCheckpointer::~DefaultCheckpointer() = default;

fs::path DefaultCheckpointer::model_folder() const {
  return is_set(options_.model_state_save_dir) ? fs::path(*options_.model_state_save_dir) : fs::path(options_.save_dir);
}

bool DefaultCheckpointer::keeps_models() const { return !options_.model_state_save_dir || !options_.model_state_save_dir->empty(); }

// What this checkpointer could have written, wherever it writes.
std::vector<fs::path> DefaultCheckpointer::own_files() const {
  std::error_code error;
  const bool one_folder = model_folder() == fs::path(options_.save_dir) || fs::equivalent(model_folder(), options_.save_dir, error);
  const bool models_here = one_folder && keeps_models();
  auto files = files_in(options_.save_dir, names_, [&](const auto& parsed) { return models_here || parsed.form != Form::kModel; });
  std::sort(files.begin(), files.end());
  if (!one_folder) {
    auto models = files_in(model_folder(), names_, [](const auto& parsed) { return parsed.form == Form::kModel; });
    std::sort(models.begin(), models.end());
    files.insert(files.end(), models.begin(), models.end());
  }
  return files;
}

// Two runs in one folder would overwrite each other's files, and the next resume could take either.
void DefaultCheckpointer::refuse_to_mix(const RunStart& start, const std::vector<fs::path>& files) const {
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
      const auto record = ArchiveReader(file, Verify::kOff).record();
      if (!record || record->run_id.empty() || record->run_id == start.run_id) continue;
    } catch (const Error&) {
      continue;  // whose it is cannot be told
    }
    throw Error(Errc::kInvalidArgument, concat(file.string(), " is a checkpoint of another run than ", start.loaded_from,
        ": give another --checkpointer.save_dir, or --checkpointer.delete_existing_checkpoints to remove what is there"));
  }
}

void DefaultCheckpointer::do_open(const RunStart& start) {
  const std::vector<fs::path> files = own_files();
  if (!options_.delete_existing_checkpoints) refuse_to_mix(start, files);
  check_writable("save_dir", options_.save_dir);
  check_writable("model_state_save_dir", model_folder());
  for (const fs::path& folder : {fs::path(options_.save_dir), model_folder()}) {
    remove_stale_temporaries(folder, [&](std::string_view name) { return name == kProbe || names_.parse(name).has_value(); });
  }
  if (!options_.delete_existing_checkpoints || std::exchange(cleared_, true)) return;
  const LevelFilter log(host_.logger, options_.log_level);
  for (const fs::path& file : files) {
    std::error_code error;
    if (!start.loaded_from.empty() && fs::equivalent(file, start.loaded_from, error)) {
      superseded_ = file;
      continue;
    }
    fs::remove(file, error);
    if (error) {
      log.warning("cannot remove ", file.string(), ": ", error.message());
    } else {
      log.info("removed ", file.string());
    }
  }
}

void DefaultCheckpointer::remove_superseded() {
  if (superseded_.empty()) return;
  const LevelFilter log(host_.logger, options_.log_level);
  try {
    file_system_.remove(superseded_);
    log.info("removed ", superseded_.string());
  } catch (const Error& error) {
    log.warning(error.what());
  }
  superseded_.clear();
}

std::vector<std::string> DefaultCheckpointer::do_save(const Checkpoint& checkpoint, const SavePoint& point) {
  const fs::path file = fs::path(options_.save_dir) / names_.name(point.unit == Unit::kEpoch ? Form::kEpoch : Form::kStep, point.index);
  write_checkpoint(file, checkpoint, point, Durability::kDurable, file_system_);
  if (file == superseded_) superseded_.clear();
  remove_superseded();
  evict(file);
  return {file.string()};
}

// What was just written counts as one of those that are kept, whatever its number: a run that went on from an older checkpoint
// may find higher ones here. Of the others only those count that can be opened; one that cannot is left for a person to look at.
void DefaultCheckpointer::evict(const fs::path& just_written) {
  if (options_.keep_last == 0) return;
  const LevelFilter log(host_.logger, options_.log_level);
  const FilesByAge files = files_by_age(just_written.parent_path(), names_);
  const bool is_epoch = std::find(files.steps.begin(), files.steps.end(), just_written) == files.steps.end();
  for (const fs::path& file : plan_keep_last(is_epoch ? files.epochs : files.steps, options_.keep_last, just_written).surplus) {
    try {
      file_system_.remove(file);
      log.info("removed ", file.string(), " (keep_last ", options_.keep_last, ")");
    } catch (const Error& error) {
      log.warning(error.what());
    }
  }
}

std::vector<std::string> DefaultCheckpointer::do_save_model(const StateDict& model_state, int64_t index) {
  if (!keeps_models()) return {};
  const fs::path file = model_folder() / names_.name(Form::kModel, index);
  write_model(file, model_state, index, Durability::kDurable, file_system_);
  return {file.string()};
}

bool DefaultCheckpointer::do_has_model(int64_t index) const {
  if (!keeps_models()) return true;  // nothing is missing
  std::error_code error;
  return fs::is_regular_file(model_folder() / names_.name(Form::kModel, index), error);
}

bool DefaultCheckpointer::do_wants_load() const { return is_set(options_.load_dir) || is_set(options_.load_filename); }

Checkpoint DefaultCheckpointer::do_load(const LoadRequest& request) {
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

Checkpoint DefaultCheckpointer::read(const fs::path& file, Verify verify) const {
  Verified verified = Verified::kNothing;
  Checkpoint found = read_checkpoint(file, verify, &verified);
  const LevelFilter log(host_.logger, options_.log_level);
  if (verified == Verified::kChecksums) log.info(file.string(), " could not be verified: it has no commit record with hashes; its checksums (CRC-32) are right");
  if (verified == Verified::kNothing) log.warning(file.string(), ": its tensors were not verified (checkpointer.verify off)");
  return found;
}

Checkpoint DefaultCheckpointer::load_newest(const fs::path& folder, Verify verify) const {
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
    LevelFilter(host_.logger, options_.log_level).warning(problem, "; going on from ", by_epoch.empty() ? by_step.source : by_epoch.source);
  }
  if (by_step.empty()) return by_epoch;
  if (by_epoch.empty()) return by_step;
  return by_step.global_step() > by_epoch.global_step() ? by_step : by_epoch;
}

Checkpoint DefaultCheckpointer::newest_whole(const std::vector<fs::path>& newest_first, Verify verify) const {
  const LevelFilter log(host_.logger, options_.log_level);
  std::string first_problem;
  for (const fs::path& file : newest_first) {
    try {
      Checkpoint found = read(file, verify);
      if (!first_problem.empty()) log.warning("a newer checkpoint is broken and was passed over: ", first_problem);
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
