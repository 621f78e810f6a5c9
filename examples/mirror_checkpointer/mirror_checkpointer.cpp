// mirror_checkpointer: keeps every checkpoint in two folders, so that the loss of either loses nothing.
//
// A plugin is one class and one descriptor. The class derives from AbstractCheckpointer and writes its do_ hooks; period, master
// switch and argument checks are the host's, and whatever a hook throws reaches the user as one line. The descriptor, at the end
// of this file, gives the plugin's name and its options: they stand in --help with all others.
#include <marlin/checkpointers/default_checkpointer.h>
#include <marlin/checkpointers/durable_file.h>
#include <marlin/checkpointers/file_system.h>
#include <marlin/checkpointers/names.h>
#include <marlin/sdk/checkpointer.h>
#include <marlin/sdk/error.h>
#include <marlin/sdk/plugin.h>
#include <marlin/sdk/text.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using marlin::Checkpoint;
using marlin::concat;
using marlin::Errc;
using marlin::Error;
using Form = marlin::CheckpointNames::Form;

// Options: one field each, and one line each that names and explains it. The default is the field's.
struct MirrorOptions {
  std::string save_dir = "checkpoints";
  std::string mirror_dir;

  static std::vector<marlin::OptionField<MirrorOptions>> option_fields() {
    using O = MirrorOptions;
    return {marlin::option_field("save_dir", &O::save_dir, "Folder for checkpoints; made when first needed."),
            marlin::option_field("mirror_dir", &O::mirror_dir, "Folder for the second copy of each; must be given.")};
  }
};

class MirrorCheckpointer : public marlin::AbstractCheckpointer {
 public:
  // The host lives longer than what is made with it, so its logger can be kept.
  MirrorCheckpointer(const marlin::HostContext& host, const MirrorOptions& options)
      : logger_(*host.logger), folders_{options.save_dir, options.mirror_dir} {
    if (options.save_dir.empty()) throw Error(Errc::kInvalidArgument, "checkpointer.save_dir: must not be empty; '.' is the working folder");
    if (options.mirror_dir.empty()) throw Error(Errc::kInvalidArgument, "checkpointer.mirror_dir: must name the folder for the second copies, best on another disk");
    if (fs::relative(fs::absolute(options.mirror_dir), fs::absolute(options.save_dir)) == ".") {
      throw Error(Errc::kInvalidArgument, concat("checkpointer.mirror_dir: '", options.mirror_dir, "' is the same folder as checkpointer.save_dir; name another one, best on another disk"));
    }
  }

 protected:
  // Before the first save. A fresh start is not mixed with an earlier run's files, and a folder that cannot be made is told of now
  // rather than after the first epoch.
  void do_open(const marlin::RunStart& start) override {
    for (const fs::path& folder : folders_) {
      const std::vector<std::string> files = own_files(folder);
      if (files.empty() || !start.loaded_from.empty()) continue;
      throw Error(Errc::kInvalidArgument, concat("'", folder.string(), "' holds checkpoints of an earlier run (", files.front(), files.size() > 1 ? ", ..." : "",
          "): give --resume auto to go on with it, or other folders with --checkpointer.save_dir and --checkpointer.mirror_dir"));
    }
    for (const fs::path& folder : folders_) {
      marlin::posix_file_system().make_directories(folder);  // durably, as the files in it
      marlin::remove_stale_temporaries(folder, [&](std::string_view name) { return names_.parse(name).has_value(); });
    }
  }

  std::vector<std::string> do_save(const Checkpoint& checkpoint, const marlin::SavePoint& point) override {
    const Form form = point.unit == marlin::Unit::kEpoch ? Form::kEpoch : Form::kStep;
    return write_both(names_.name(form, point.index), [&](const fs::path& file) { marlin::write_checkpoint(file, checkpoint, point); });
  }

  std::vector<std::string> do_save_model(const marlin::StateDict& model_state, int64_t index) override {
    return write_both(names_.name(Form::kModel, index), [&](const fs::path& file) { marlin::write_model(file, model_state, index); });
  }

  bool do_has_model(int64_t index) const override {
    return std::ranges::all_of(folders_, [&](const fs::path& folder) { return fs::is_regular_file(folder / names_.name(Form::kModel, index)); });
  }

  Checkpoint do_load(const marlin::LoadRequest& request) override {
    using From = marlin::LoadRequest::From;
    std::vector<fs::path> searched;
    if (request.from == From::kAnywhere) searched = folders_;
    if (request.from == From::kPath) {
      if (!fs::is_directory(request.path)) return marlin::read_checkpoint(request.path, request.verify);  // named, so it must be there and whole
      searched = {request.path};
    }
    Checkpoint found = newest(searched, request.verify);
    if (found.empty() && request.required) {
      throw Error(Errc::kNotFound, concat("no checkpoint to resume from: no file like ", names_.name(Form::kEpoch, 0), " in ", searched.empty() ? "any folder" : list(searched)));
    }
    return found;
  }

 private:
  // Each file is written whole or not at all; what fails in one folder does not keep the other from getting its copy.
  std::vector<std::string> write_both(const std::string& name, const std::function<void(const fs::path&)>& write) {
    std::vector<std::string> written, problems;
    Errc code = Errc::kIo;
    for (const fs::path& folder : folders_) {
      try {
        write(folder / name);
        written.push_back((folder / name).string());
      } catch (const Error& error) {
        code = error.code();
        problems.push_back(concat("folder '", folder.string(), "': ", error.what()));
      }
    }
    if (problems.empty()) return written;
    throw Error(code, concat(marlin::join(problems, "; "), written.empty() ? "; nothing was written" : "; only written: " + marlin::join(written)));
  }

  // The newest checkpoint of which a copy is whole. A broken or missing copy is never passed over in silence, nor mended.
  Checkpoint newest(const std::vector<fs::path>& folders, marlin::Verify verify) const {
    std::vector<std::string> problems;
    Checkpoint by_epoch = newest_of(Form::kEpoch, folders, verify, problems);
    Checkpoint by_step = newest_of(Form::kStep, folders, verify, problems);
    Checkpoint& found = by_step.global_step() > by_epoch.global_step() ? by_step : by_epoch;
    if (problems.empty()) return found;
    if (found.empty()) throw Error(Errc::kCorrupt, concat("no checkpoint in ", list(folders), " is whole: ", marlin::join(problems, "; ")));
    logger_.warning("going on from ", found.source, ", although: ", marlin::join(problems, "; "));
    return found;
  }

  // All copies are read, so that a broken mirror is noticed while the original is still there.
  Checkpoint newest_of(Form form, const std::vector<fs::path>& folders, marlin::Verify verify, std::vector<std::string>& problems) const {
    std::set<int64_t, std::greater<>> indices;  // highest first
    for (const fs::path& folder : folders) {
      for (const std::string& name : own_files(folder)) {
        if (const auto parsed = names_.parse(name); parsed->form == form) indices.insert(parsed->index);
      }
    }
    Checkpoint found;
    for (auto index = indices.begin(); index != indices.end() && found.empty(); ++index) {
      for (const fs::path& folder : folders) {
        try {
          Checkpoint copy = marlin::read_checkpoint(folder / names_.name(form, *index), verify);
          if (found.empty()) found = std::move(copy);
        } catch (const Error& error) {
          if (error.code() == Errc::kUnsupported) throw;  // whole, but of a later libmarlin: an older file would not be what is wanted
          problems.emplace_back(error.what());
        }
      }
    }
    return found;
  }

  // Names of the checkpoint and model files in a folder; none if it is not there.
  std::vector<std::string> own_files(const fs::path& folder) const {
    std::vector<std::string> names;
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      std::error_code ignored;
      if (names_.parse(name) && entry->is_regular_file(ignored)) names.push_back(name);
    }
    std::ranges::sort(names);
    return names;
  }

  static std::string list(const std::vector<fs::path>& folders) {
    return marlin::join(std::vector<std::string>(folders.begin(), folders.end()));
  }

  marlin::Logger& logger_;
  const std::vector<fs::path> folders_;                          // save_dir, mirror_dir
  const marlin::CheckpointNames names_{"checkpoint", "pt"};      // the built-in checkpointer's, so that either reads the other's
};

marlin::AbstractCheckpointer* make(marlin::HostContext& host, const marlin::Options& options) {
  return new MirrorCheckpointer(host, marlin::parse<MirrorOptions>(options));
}

}  // namespace

MARLIN_PLUGIN(.name = "mirror_checkpointer", .version = "1.0.0", .options = &marlin::options_of<MirrorOptions>, .make_checkpointer = &make);
