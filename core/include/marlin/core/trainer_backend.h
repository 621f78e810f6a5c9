// How steps are run.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "marlin/core/module_interface.h"
#include "marlin/sdk/logger.h"

namespace marlin {

class Communicator;

/// What a rank wants of the run, or what any of the ranks wants of it.
struct Wishes {
  bool stop = false;          ///< Somebody asked for the run to stop.
  bool out_of_time = false;   ///< max_seconds are up.
  bool save = false;          ///< Somebody asked for a save.
  bool ask = false;           ///< A checkpointer is to be asked whether it wants to save.
  int signal = 0;             ///< Number of the signal that asked for the stop; 0: none. Range: 0 to 127.
  [[nodiscard]] bool ends_run() const noexcept { return stop || out_of_time; }
};

/// What a backend works with. Everything lives longer than the backend's use of it.
struct BackendSetup {
  ModuleInterface* module = nullptr;
  std::vector<std::shared_ptr<torch::optim::Optimizer>> optimizers;
  std::vector<std::shared_ptr<optim::LRScheduler>> schedulers;
  at::Device device = at::kCPU;
  std::optional<int64_t> micro_batch_limit;            ///< Samples of a micro-batch, per device. Range: >= 1.
  std::optional<int64_t> max_train_steps_per_epoch;
  std::optional<int64_t> max_val_steps_per_epoch;      ///< Global batches, per loader.
  bool clip_grads = true;
  double max_grad_norm = 1.0;                          ///< 2-norm over all parameters that the step's optimizer moves.
  Logger* logger = &null_logger();
  Communicator* ranks = nullptr;                       ///< Null: the run is one process.
  /// What this rank wants of the run at this moment.
  std::function<Wishes()> wishes = [] { return Wishes(); };
  /// To be called right before an optimizer changes parameters or its own state: a save may still be reading them.
  std::function<void()> before_optimizer_step = [] {};
};

/// One optimizer step, as a listener hears of it; with several ranks over all of them, and the same on all.
struct StepReport {
  int64_t epoch = 0;
  int64_t global_step = 0;           ///< Completed, with this one.
  double loss = 0.0;
  const MetricSums* metrics = nullptr;  ///< Of this step; names without prefix. Valid during the call.
  const std::vector<at::Tensor>* outputs = nullptr;  ///< What the step returned as outputs, joined. Valid during the call.
  bool skipped = false;              ///< Its gradients overflowed, so no optimizer has stepped; global_step is as before.
  Wishes wishes;
};

/// Hears of steps while an epoch runs.
class MARLIN_ABI StepListener {
 public:
  /// After each optimizer step. @return false to leave the epoch here.
  [[nodiscard]] virtual bool on_train_step(const StepReport& step) = 0;
  /// After each validation batch. `loss` is NaN. @return false to leave the validation here.
  [[nodiscard]] virtual bool on_val_step(const StepReport& step) = 0;

 protected:
  ~StepListener() = default;
};

/// How an epoch or a validation ended. What its steps came to is in their reports.
struct EpochResult {
  bool complete = true;              ///< False: the listener ended it.
};

/// Runs forward, backward and optimizer steps over a loader. One thread. Found by name ("sp"); may be a plugin.
/// @par Source pymarlin core/trainer_backend.py. Differs: a step is one global batch, so nothing is carried over an epoch's end;
/// micro-batches are weighted by samples.
class MARLIN_ABI TrainerBackend {
 public:
  virtual ~TrainerBackend();
  /// Once, before anything else.
  virtual void init(const BackendSetup& setup) = 0;
  /// Runs the rest of the loader's epoch. @param steps_done optimizer steps of this epoch that were done before (a resumed run).
  /// @throws Error kTraining naming epoch and step: the loss is not a scalar, does not require grad, or is not finite.
  [[nodiscard]] virtual EpochResult train(DataLoader& loader, int64_t epoch, int64_t steps_done, StepListener& listener) = 0;
  /// Runs the loader's whole epoch, without gradients.
  [[nodiscard]] virtual EpochResult validate(DataLoader& loader, const std::string& name, int64_t epoch, StepListener& listener) = 0;

  [[nodiscard]] virtual int64_t global_step_completed() const = 0;   ///< Optimizer steps.
  [[nodiscard]] virtual int64_t batches_completed() const = 0;       ///< Micro-batches.
  [[nodiscard]] virtual int64_t skipped_steps() const;               ///< Steps left out because of an overflow; not among global_step_completed().
  /// "global_step_completed", "batches_completed".
  [[nodiscard]] virtual StateDict get_state() const = 0;
  /// What keeps update_state() from taking such a state, one sentence each. Default: nothing.
  [[nodiscard]] virtual std::vector<std::string> differences(const StateDict& state) const;
  /// @throws Error kMismatch: an entry is missing or of another kind. Nothing is then changed.
  virtual void update_state(const StateDict& state) = 0;
};

}  // namespace marlin
