// Keeps the k best checkpoints by a score, or the newest k.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "marlin/checkpointers/load_objects.h"
#include "marlin/checkpointers/name_pattern.h"
#include "marlin/checkpointers/storage.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/checkpoint.h"
#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/host.h"
#include "marlin/sdk/options.h"

namespace marlin {

/// What {global_step} in names counts.
enum class GlobalStepOf : uint8_t {
  kAuto,   ///< Optimizer steps; with a score it is not in the default pattern.
  kStep,   ///< Optimizer steps completed.
  kEpoch,  ///< Epochs completed.
};
enum class KeepLatest : uint8_t {
  kAuto,  ///< If a score decides and no other checkpointer keeps the run's states.
  kYes,
  kNo,
};

/// Plain data. `checkpoint`, `period` and the rest of SaveSchedule are the host's.
/// @par Source ignite Checkpoint, ModelCheckpoint, DiskSaver. docs/from_ignite_monai_pymarlin.md has every argument and difference.
struct MARLIN_ABI BestKOptions {
  std::string save_dir = "checkpoints";   ///< Ignite's dirname.
  bool create_dir = true;                 ///< False: a missing folder is an error.
  bool require_empty = true;              ///< A fresh start is refused while the folder holds a name that this one could write.
  bool delete_existing_checkpoints = false;  ///< Start over: remove such names when a run begins.
  std::string filename_prefix = {};
  std::optional<std::string> filename_pattern = {};  ///< See NamePattern. Unset: Ignite's default, of the parts there are.
  std::vector<std::string> objects = {"module_interface_state", "trainer_state", "trainer_backend_state"};  ///< Parts of the state that
                                          ///< are kept. A run can be resumed only from all three.
  std::optional<int64_t> n_saved = 1;     ///< How many stay. Unset ("all" when typed): all. Range: >= 1.
  std::optional<std::string> score_name = {};  ///< The metric that decides, looked at when an epoch ends. With a score function: its name.
  int64_t score_sign = 1;                 ///< -1: the lowest value of the metric is the best. Range: -1 or 1.
  bool greater_or_equal = false;          ///< One as good as the worst of a full list takes its place, too.
  GlobalStepOf global_step = GlobalStepOf::kAuto;
  bool include_self = false;              ///< Keep the list in every file, under "checkpointer".
  KeepLatest keep_latest = KeepLatest::kAuto;  ///< Keep the newest state, too: `[prefix_]<name>_latest_<global_step>.pt`.
  bool links = true;                      ///< Have best.pt and last.pt lead to the best and the newest.
  std::string keep = {};                  ///< KeepPolicy: what stays although it has left the list.
  std::optional<std::string> load_dir = {};
  std::optional<std::string> load_filename = {};
  std::string log_level = "INFO";         ///< DEBUG, INFO, WARNING, ERROR or OFF.

  // Of Ignite 0.4's ModelCheckpoint: accepted where they say what happens anyway, else an error that says what to give instead.
  std::optional<int64_t> save_interval = {};
  std::optional<bool> archived = {};
  std::optional<bool> save_as_state_dict = {};

  static std::vector<OptionField<BestKOptions>> option_fields();
};

/// What only C++ can give.
struct BestKHooks {
  /// Higher is better; nothing: this state has no score and does not enter the list. Asked on the training thread and on the one that
  /// saves, so it looks at nothing but the point.
  std::function<std::optional<double>(const SavePoint&)> score_function = {};
  /// {global_step} in names. Empty: what `global_step` says. Asked as the score function is.
  std::function<int64_t(const SavePoint&)> global_step_transform = {};
  /// Null: DiskStorage of save_dir.
  std::shared_ptr<Storage> storage = {};
};

/// A score function that reads a metric. @param sign  1, or -1 for metrics of which less is better. It throws Error kNotFound that lists the
/// metrics there are. @throws Error kInvalidArgument: another sign. @par Source ignite Checkpoint.get_default_score_fn.
[[nodiscard]] MARLIN_ABI std::function<std::optional<double>(const SavePoint&)> get_default_score_fn(std::string metric_name, int64_t sign = 1);

/// A checkpoint that was just committed.
struct SavedCheckpoint {
  std::string name;
  std::string where;               ///< As users are told.
  std::optional<double> score;     ///< Unset: none decided.
  SavePoint point;
};

/// A list of the n_saved best states by a score or, without one, of the newest. The new file is committed before the old one is
/// removed; only what is in its list (which is found again on a resume) is ever removed. NaN never enters, with a warning. A score by
/// name is looked at when an epoch ends, since it is validation that makes it; a score function at every point that is due.
/// Steps and epochs in names are counted from 1, as completed; the commit record keeps our index.
/// @par Source ignite handlers/checkpoint.py. Threads as AbstractCheckpointer; queries and on_saved() from any thread; reset(), load_state() and
/// reload_objects() not while it saves.
class MARLIN_ABI BestKCheckpointer : public AbstractCheckpointer {
 public:
  /// @throws Error kInvalidArgument: an option, a pattern or what they are together is refused. Touches no file.
  explicit BestKCheckpointer(BestKOptions options = {}, BestKHooks hooks = {}, const HostContext& host = {});
  ~BestKCheckpointer() override;

  /// Ignite's call: considers the objects of a point, by name. One object gives the files its name; several are "checkpoint". Does not
  /// ask due(). @return where it was written; empty: not kept. @throws Error kInvalidArgument: no objects, or a reserved name.
  std::vector<std::string> save_objects(const StateDict& objects, const SavePoint& point);

  /// Where the newest of the list is; empty: none.
  [[nodiscard]] std::string last_checkpoint() const;
  /// Where the one with the highest score is; without scores as last_checkpoint().
  [[nodiscard]] std::string best_checkpoint() const;
  /// Forgets the list; the files stay.
  void reset();
  /// {"_saved": [(priority, name), ...], "last": name}.
  [[nodiscard]] StateDict state() const;
  /// Takes what state() gave, or Ignite's. Names that are gone are left out with a warning; what is too much leaves with the next save.
  /// @throws Error kInvalidArgument that says what is missing or wrong.
  void load_state(const StateDict& state);
  /// Loads from the file whose name these parts make; prefix and score's name are this checkpointer's unless given.
  /// @throws as load_objects().
  LoadReport reload_objects(const LoadTargets::Named& to_load, NameParts parts, const LoadRules& rules = {});

  /// Calls `listener` after each save that was committed, on the thread that saves. May be called at any time, from any thread.
  void on_saved(std::function<void(const SavedCheckpoint&)> listener);

 protected:
  void do_open(const RunStart& start) override;
  [[nodiscard]] bool is_due(const SavePoint& point) const override;
  [[nodiscard]] bool do_keeps_suspects() const override { return true; }
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
