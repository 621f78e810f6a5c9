// Keeps the final state, the best by a key metric, and one every so often: three parts, each of which can be on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "marlin/checkpointers/best_k_checkpointer.h"
#include "marlin/checkpointers/storage.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/checkpoint.h"
#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/host.h"
#include "marlin/sdk/options.h"

namespace marlin {

/// Plain data. `checkpoint`, `period` and the rest of SaveSchedule are the host's.
/// @par Source MONAI CheckpointSaver, same names and defaults. docs/from_ignite_monai_pymarlin.md has every argument and difference.
struct MARLIN_ABI KeyMetricOptions {
  std::string save_dir = "checkpoints";
  std::vector<std::string> save_dict = {"module_interface_state", "trainer_state", "trainer_backend_state"};  ///< Parts of the state that
                                             ///< are kept. A run can be resumed only from all three.
  std::string name = {};                     ///< Stands before this checkpointer's lines in the log. Empty: nothing does.
  std::string file_prefix = {};
  bool save_final = false;                   ///< Keep the state at the end of the run, when it is stopped, and after an exception.
  std::optional<std::string> final_filename = {};       ///< Unset: `[prefix_]<name>_final_iteration=N.pt`.
  bool save_key_metric = false;              ///< Keep the best by a metric, looked at when an epoch ends.
  std::optional<std::string> key_metric_name = {};
  int64_t key_metric_n_saved = 1;            ///< Range: >= 1.
  std::optional<std::string> key_metric_filename = {};  ///< Unset: `[prefix_]<name>_key_metric=0.9387.pt`. Wants key_metric_n_saved 1.
  bool key_metric_save_state = false;        ///< Keep the lists in the files of the key metric, under "checkpointer".
  bool key_metric_greater_or_equal = false;
  bool key_metric_negative_sign = false;     ///< The lowest value is the best; names have it with the sign turned.
  bool epoch_level = true;                   ///< save_interval counts epochs; false: optimizer steps.
  int64_t save_interval = 0;                 ///< Keep a state every so many: `_epoch=N.pt` or `_iteration=N.pt`. 0: none.
  std::optional<int64_t> n_saved = {};       ///< Of those of the interval. Unset ("all" when typed): all. Range: >= 1.
  bool delete_existing_checkpoints = false;  ///< Start over: remove names of this checkpointer's when a run begins.
  std::string keep = {};                     ///< KeepPolicy: what stays although it has left its list.
  std::optional<std::string> load_dir = {};
  std::optional<std::string> load_filename = {};
  std::string log_level = "INFO";            ///< DEBUG, INFO, WARNING, ERROR or OFF.

  static std::vector<OptionField<KeyMetricOptions>> option_fields();
};

/// Three independent lists over one folder. What request_save(), `period_steps`, `period_seconds` and `also_when` ask for stands beside the
/// interval's, as `_iteration=N.pt` between epochs and `_epoch=N.pt` at their ends. After an exception the final part keeps the state without removing anything, and the record says "exception";
/// `--resume auto` leaves such a file out. Epochs and steps in names are counted from 1, as completed.
/// @par Source MONAI handlers/checkpoint_saver.py. Threads as AbstractCheckpointer; queries and on_saved() from any
/// thread; load_state() not while it saves.
class MARLIN_ABI KeyMetricCheckpointer : public AbstractCheckpointer {
 public:
  /// @param storage  null: DiskStorage of save_dir. @throws Error kInvalidArgument: an option, or what they are together, is refused;
  /// no part is on. Touches no file.
  explicit KeyMetricCheckpointer(KeyMetricOptions options = {}, const HostContext& host = {}, std::shared_ptr<Storage> storage = {});
  ~KeyMetricCheckpointer() override;

  /// Considers the objects of a point, by name, as do_save does the parts of the state. Does not ask due(). @return where it was
  /// written, of each part that kept it. @throws Error kInvalidArgument: no objects, or a reserved name.
  std::vector<std::string> save_objects(const StateDict& objects, const SavePoint& point);

  /// Of the part that is on; empty: none, or it is off.
  [[nodiscard]] std::string final_checkpoint() const;
  [[nodiscard]] std::string best_checkpoint() const;
  [[nodiscard]] std::string last_interval_checkpoint() const;
  /// {"final": ..., "key_metric": ..., "interval": ..., "requested": ...}, each {"_saved": [(priority, name), ...], "last": name}, of the parts that are on.
  [[nodiscard]] StateDict state() const;
  /// Takes what state() gave. A part that is not in it keeps its list, with a warning. @throws Error kInvalidArgument.
  void load_state(const StateDict& state);

  /// As BestKCheckpointer::on_saved().
  void on_saved(std::function<void(const SavedCheckpoint&)> listener);

 protected:
  void do_schedule(SaveSchedule& schedule) const override;
  void do_open(const RunStart& start) override;
  [[nodiscard]] bool is_due(const SavePoint& point) const override;
  [[nodiscard]] bool do_keeps_suspects() const override { return true; }
  [[nodiscard]] bool do_saves_again(const SavePoint& point) const override;
  std::vector<std::string> do_save(const Checkpoint& checkpoint, const SavePoint& point) override;
  std::vector<std::string> do_save_model(const StateDict& model_state, int64_t index) override;
  [[nodiscard]] bool do_has_model(int64_t index) const override;
  [[nodiscard]] bool do_wants_load() const override;
  Checkpoint do_load(const LoadRequest& request) override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace marlin
