// A checkpointer whose files any reader of safetensors opens.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/checkpointers/folder_checkpointer.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/host.h"
#include "marlin/sdk/options.h"

namespace marlin {

/// When and where SafetensorsCheckpointer writes, and what it loads: as DefaultCheckpointerOptions. Plain data.
struct MARLIN_ABI SafetensorsCheckpointerOptions {
  bool delete_existing_checkpoints = false;  ///< When a run begins, remove what this checkpointer could have written. The checkpoint
                                             ///< that the run resumes from goes when the first new one is there.
  std::string save_dir = "checkpoints";      ///< Made when first needed.
  std::optional<std::string> model_state_save_dir = {};  ///< For model files. Unset: save_dir. Empty: none are written.
  std::optional<std::string> load_dir = {};              ///< Where to look for a checkpoint. Unset or empty: nowhere.
  std::optional<std::string> load_filename = {};         ///< The file to load from load_dir (unset: from save_dir): the .json of a
                                                         ///< checkpoint or its .safetensors. Unset: the newest.
  std::string file_prefix = "checkpoint";    ///< UTF-8. Must not end in _model, _step or _suspect, nor hold a separator.
  int64_t keep_last = 0;                     ///< After a save, all but this many of the newest checkpoints of its kind (epoch or step)
                                             ///< are removed, oldest first. Range: 0 (none is), or >= 2. Never model files.
  std::string keep = {};                     ///< KeepPolicy: after a save, what no rule of it keeps is removed; the newest two always stay.
  std::string log_level = "INFO";            ///< DEBUG, INFO, WARNING, ERROR or OFF: the least that this checkpointer logs.

  static std::vector<OptionField<SafetensorsCheckpointerOptions>> option_fields();
};

/// Two files per checkpoint: `<file_prefix>_<epoch>.json` (or `<file_prefix>_step_<n>.json`) with everything that is no tensor, and
/// `<file_prefix>_<epoch>.safetensors` with the tensors by their dotted paths. The bare model is one file,
/// `<file_prefix>_model_<epoch>.safetensors`, the tensors under the model's own names.
///
/// The .json is written last and makes the checkpoint exist: it names the file of its tensors, with size and hash, and ends with a hash
/// of itself. A checkpoint is whole or not there, also when one of the same number is replaced: the new tensors then go to
/// `<file_prefix>_<epoch>.1.safetensors`, and the old ones are removed once the new .json is durable. Files of tensors that no .json
/// names, as a killed save leaves them, are removed when a run begins. Else the rules are those of DefaultCheckpointer.
///
/// States come back exactly: order, kinds, keys, every bit of floats and tensors. Not kept: that tensors share storage; strides.
/// Refused by name, before anything is written: tensors of types that not all readers of the format know (complex, quantised, ...);
/// in a model file, values that are no tensors.
class MARLIN_ABI SafetensorsCheckpointer : public FolderCheckpointer {
 public:
  /// @param host  as DefaultCheckpointer's. @throws Error kInvalidArgument: an option is out of its range.
  explicit SafetensorsCheckpointer(const SafetensorsCheckpointerOptions& options = {}, const HostContext& host = {});
  ~SafetensorsCheckpointer() override;

 protected:
  void write(const std::filesystem::path& file, const Checkpoint& checkpoint, const SavePoint& point) override;
  void write_model(const std::filesystem::path& file, const StateDict& model_state, int64_t index) override;
  [[nodiscard]] Checkpoint read(const std::filesystem::path& file, Verify verify) const override;
  [[nodiscard]] Facts facts_of(const std::filesystem::path& file) const override;
  void remove(const std::filesystem::path& file) override;
  void sweep(const std::filesystem::path& folder) override;
  [[nodiscard]] bool owns(std::string_view file_name) const override;

 private:
  [[nodiscard]] std::filesystem::path record_for(const std::filesystem::path& file) const;
  [[nodiscard]] std::optional<std::string> record_name_for(std::string_view tensors_name) const;
};

}  // namespace marlin
