// What checkpointers that keep their files in a folder have in common.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/checkpointers/file_system.h"
#include "marlin/checkpointers/keep_policy.h"
#include "marlin/checkpointers/names.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/host.h"
#include "marlin/sdk/logger.h"
#include "marlin/sdk/metrics.h"

namespace marlin {

/// Where such a checkpointer writes, what it loads and what it removes. Names, meanings and defaults are those of
/// DefaultCheckpointerOptions.
struct FolderOptions {
  std::string save_dir = "checkpoints";
  std::optional<std::string> model_state_save_dir = {};
  std::optional<std::string> load_dir = {};
  std::optional<std::string> load_filename = {};
  bool delete_existing_checkpoints = false;
  int64_t keep_last = 0;
  std::string keep = {};
  std::string log_level = "INFO";
};

/// The rules of DefaultCheckpointer over files of any form: which folder, the fresh start that mixes with nothing, the newest whole
/// checkpoint, `keep_last`, what a killed run left. A subclass says how one checkpoint is written, read and removed.
///
/// A checkpoint is known by one file, the one whose appearance under its name makes it exist; a subclass that keeps more files for it
/// writes this one last and removes it first. Threads as AbstractCheckpointer.
class MARLIN_ABI FolderCheckpointer : public AbstractCheckpointer {
 public:
  ~FolderCheckpointer() override;

 protected:
  /// @param checkpoints  names of what makes a checkpoint exist; @param models  of the bare model files. They may be the same.
  /// @param host  relative folders of the options start from its run_dir; its file_system is what files are written and removed with.
  /// @throws Error kInvalidArgument: an option is out of its range.
  FolderCheckpointer(FolderOptions options, CheckpointNames checkpoints, CheckpointNames models, const HostContext& host);

  /// A checkpoint and all that belongs to it, durably. When it returns, older ones may be removed.
  virtual void write(const std::filesystem::path& file, const Checkpoint& checkpoint, const SavePoint& point) = 0;
  virtual void write_model(const std::filesystem::path& file, const StateDict& model_state, int64_t index) = 0;
  /// A checkpoint that was named or found. @throws Error kCorrupt, kMismatch: it is broken, or no checkpoint, so that an older one may
  /// be taken; kNotFound, kIo, kUnsupported.
  [[nodiscard]] virtual Checkpoint read(const std::filesystem::path& file, Verify verify) const = 0;
  /// What a checkpoint says of itself.
  struct Facts {
    std::string run_id = {};  ///< Empty: not known.
    Metrics metrics = {};
  };
  /// Opens a checkpoint without reading its tensors. @throws Error: it cannot be opened.
  [[nodiscard]] virtual Facts facts_of(const std::filesystem::path& file) const = 0;
  /// Removes a checkpoint with all that belongs to it, or a model file. Default: the file. @throws Error kIo.
  virtual void remove(const std::filesystem::path& file);
  /// Clears away what saves that were cut short left under names of their own. Temporary files are gone by then. Default: nothing.
  virtual void sweep(const std::filesystem::path& folder);
  /// Whether it writes files of that name, so that a temporary file for it is one of its own. Default: what the names say.
  [[nodiscard]] virtual bool owns(std::string_view file_name) const;

  [[nodiscard]] const CheckpointNames& checkpoint_names() const noexcept { return names_; }
  [[nodiscard]] FileSystem& file_system() const noexcept { return file_system_; }
  /// One line to the host's logger, if `log_level` lets it through.
  void log(LogLevel level, const std::string& line) const;
  /// Says that a checkpoint was read with Verify::kOff.
  void log_unverified(const std::filesystem::path& file) const;
  /// Removes by remove(): one line says so, with `why` behind it, and what cannot be removed is a warning.
  void discard(const std::filesystem::path& file, const std::string& why = {});

  void do_open(const RunStart& start) override;
  [[nodiscard]] bool do_keeps_suspects() const override;
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override;
  std::vector<std::string> do_save_model(const StateDict& model_state, int64_t index) override;
  [[nodiscard]] bool do_has_model(int64_t index) const override;
  [[nodiscard]] bool do_wants_load() const override;
  Checkpoint do_load(const LoadRequest& request) override;

 private:
  [[nodiscard]] std::filesystem::path model_folder() const;
  [[nodiscard]] bool keeps_models() const;
  void refuse_to_mix(const RunStart& start, std::vector<std::filesystem::path> files) const;
  [[nodiscard]] std::vector<std::filesystem::path> own_files() const;
  [[nodiscard]] Checkpoint load_newest(const std::filesystem::path& folder, Verify verify) const;
  [[nodiscard]] Checkpoint newest_whole(const std::vector<std::filesystem::path>& newest_first, Verify verify) const;
  void evict(const std::filesystem::path& just_written);
  void clear_temporaries(const std::filesystem::path& folder) const;

  FolderOptions options_;
  KeepPolicy policy_;
  CheckpointNames names_, model_names_;
  HostContext host_;
  FileSystem& file_system_;
  LogLevel level_;
  std::map<std::filesystem::path, Metrics> looked_at_;  // files that could be opened
  bool opened_ = false;               // temporary files of processes that are gone were removed
  bool cleared_ = false;              // what an earlier run left was removed; a run that goes on after stop() is opened again
  std::filesystem::path superseded_;  // what the run resumed from, to be removed once something newer is there
};

}  // namespace marlin
