// The checkpointer that is built in.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/file_system.h"
#include "marlin/checkpointers/folder_checkpointer.h"
#include "marlin/sdk/checkpoint.h"
#include "marlin/sdk/host.h"
#include "marlin/sdk/options.h"

namespace marlin {

/// When and where DefaultCheckpointer writes, and what it loads. Plain data.
/// @par Source pymarlin DefaultCheckpointerArguments, same names. Differs: `file_prefix` is "checkpoint" (pymarlin: "model"),
/// `save_dir` is relative to the host's run_dir or, if that is empty, to the working directory at the time of saving.
struct MARLIN_ABI DefaultCheckpointerOptions {
  bool checkpoint = true;                    ///< Master switch for both kinds of file. On the command line the host's option.
  int64_t period = 1;                        ///< Save when index % period == 0. Unit: epochs. Range: >= 1. The host's option, too.
  bool delete_existing_checkpoints = false;  ///< When a run begins, remove what this checkpointer could have written. The file that
                                             ///< the run resumes from goes when the first new one is there.
  std::string save_dir = "checkpoints";      ///< Made when first needed.
  std::optional<std::string> model_state_save_dir = {};  ///< For model files. Unset: save_dir. Empty: none are written.
  std::optional<std::string> load_dir = {};              ///< Where to look for a checkpoint. Unset or empty: nowhere.
  std::optional<std::string> load_filename = {};         ///< The file to load from load_dir (unset: from save_dir), with its
                                                         ///< extension. Unset: the newest.
  std::string file_prefix = "checkpoint";    ///< Must not end in _model, _step or _suspect, nor hold a separator.
  std::string file_ext = "pt";               ///< Without the dot.
  int64_t keep_last = 0;                     ///< After a save, all but this many of the newest files of its kind (epoch or step) are
                                             ///< removed, oldest first. Range: 0 (none is), or >= 2. Never model or suspect files.
  std::string keep = {};                     ///< KeepPolicy: after a save, what no rule of it keeps is removed; the newest two always stay.
  std::string log_level = "INFO";            ///< DEBUG, INFO, WARNING, ERROR or OFF: the least that this checkpointer logs.

  /// Without `checkpoint` and `period`, which every checkpointer has from the host. The rest of SaveSchedule: set_schedule().
  static std::vector<OptionField<DefaultCheckpointerOptions>> option_fields();
  static constexpr size_t kFieldsWithoutOption = 2;
};

/// One `.pt` file per checkpoint, `<file_prefix>_<epoch>.<file_ext>`, and the bare model as `<file_prefix>_model_<epoch>.<file_ext>`;
/// torch.load(weights_only=True) opens both. Files appear whole or not at all.
///
/// The newest checkpoint of a folder is the one with the highest number, by whole name, in that folder alone; of an epoch file
/// and a step file, the one whose state says the higher global step. A broken newest is named in a warning and left in place, and
/// the one before it is taken.
///
/// `keep_last` counts epoch files and step files apart, since their numbers cannot be compared: up to that many of each stay.
/// The file that was just written is always one of them, and files that cannot be opened are neither counted nor removed while
/// they are among the newest. Nothing is removed before the new file is durable; what cannot be removed is a warning.
/// @par Source pymarlin checkpoint_utils.py DefaultCheckpointer.
class MARLIN_ABI DefaultCheckpointer : public FolderCheckpointer {
 public:
  /// @throws Error kInvalidArgument: an option is out of its range.
  /// @param host  relative folders of the options start from its run_dir; its file_system is what files are written and removed with.
  explicit DefaultCheckpointer(DefaultCheckpointerOptions options = {}, const HostContext& host = {});
  ~DefaultCheckpointer() override;

  /// As they were given.
  [[nodiscard]] const DefaultCheckpointerOptions& options() const noexcept { return options_; }

 protected:
  void write(const std::filesystem::path& file, const Checkpoint& checkpoint, const SavePoint& point) override;
  void write_model(const std::filesystem::path& file, const StateDict& model_state, int64_t index) override;
  [[nodiscard]] Checkpoint read(const std::filesystem::path& file, Verify verify) const override;
  [[nodiscard]] Facts facts_of(const std::filesystem::path& file) const override;

 private:
  DefaultCheckpointerOptions options_;
};

/// Loads a whole state from a file in the layout of DefaultCheckpointer, or one that Python wrote with the same three parts.
/// @param verified  if not null: what is known of the file then.
/// @throws Error kNotFound, kCorrupt, kIo; kMismatch if the file is whole but holds no such state (a bare model, say).
[[nodiscard]] MARLIN_ABI Checkpoint read_checkpoint(const std::filesystem::path& file, Verify verify = Verify::kFull, Verified* verified = nullptr);

/// Writes it, by write_archive().
MARLIN_ABI void write_checkpoint(const std::filesystem::path& file, const Checkpoint& checkpoint, const SavePoint& point,
                                 Durability durability = Durability::kDurable, FileSystem& file_system = posix_file_system());
/// Writes a bare model state, by write_archive().
MARLIN_ABI void write_model(const std::filesystem::path& file, const StateDict& model_state, int64_t index,
                            Durability durability = Durability::kDurable, FileSystem& file_system = posix_file_system());

}  // namespace marlin
