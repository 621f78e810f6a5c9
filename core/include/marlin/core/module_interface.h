// What a user writes: a model and the recipe to train it.
#pragma once

#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/core/data/batch.h"
#include "marlin/core/data/data_loader.h"
#include "marlin/core/metric_sums.h"
#include "marlin/core/optim/lr_scheduler.h"
#include "marlin/core/training_plan.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

struct OptimizersSchedulers {
  std::vector<std::shared_ptr<torch::optim::Optimizer>> optimizers;
  std::vector<std::shared_ptr<optim::LRScheduler>> schedulers = {};
};

/// Steps an optimizer inside train_step; implemented by backends.
class MARLIN_ABI StepOptimizer {
 public:
  virtual void optimize(const at::Tensor& loss, size_t optimizer_index, bool retain_graph) = 0;

 protected:
  ~StepOptimizer() = default;
};

/// Where a step stands. Valid during the call it is passed to.
struct MARLIN_ABI StepContext {
  Stage stage = Stage::kTrain;
  int64_t epoch = 0;              ///< From 0.
  int64_t global_step = 0;        ///< Optimizer steps completed.
  int64_t micro_batch = 0;        ///< Of this step, from 0.
  int64_t num_micro_batches = 1;  ///< The batch of one step is cut into these.
  std::string_view loader = {};   ///< In validation: the loader's name.
  at::Device device = at::kCPU;   ///< Where model and batch are.
  StepOptimizer* optimizer = nullptr;

  /// Manual optimisation, for several optimizers or own schemes: gradients of `loss` for the parameters of that optimizer, and,
  /// with the step's last micro-batch, clipping and the optimizer's step. The loss is weighted by samples. A train_step that
  /// calls this returns a loss only to have it recorded.
  /// @throws Error kTraining: not a finite scalar that requires grad; kInvalidArgument: no such optimizer, or not training.
  void optimize(const at::Tensor& loss, size_t optimizer_index = 0, bool retain_graph = false) const;
};

/// What a step returns.
struct MARLIN_ABI StepOutput {
  StepOutput() = default;
  StepOutput(at::Tensor loss, NamedValues metrics = {}) : loss(std::move(loss)), metrics(std::move(metrics)) {}

  at::Tensor loss;                         ///< Scalar, a mean over the samples. train_step: requires grad. Recorded as "loss".
  NamedValues metrics;                     ///< Means over the samples. Names without "train/" or "val/".
  std::optional<int64_t> num_samples;      ///< Weight of the means. Unset: the batch's num_samples.
  std::vector<at::Tensor> outputs;         ///< Kept, on the CPU, for the end-of-step and end-of-epoch callbacks. Position by
                                           ///< position concatenated along dimension 0 (0-dim tensors count as [1]).
};

/// What end-of-epoch callbacks get.
struct EpochSummary {
  int64_t epoch = 0;
  int64_t global_step = 0;           ///< Optimizer steps completed.
  Metrics metrics;                   ///< "train/loss", "val/accuracy", ...
  std::vector<at::Tensor> outputs;   ///< What the steps returned as outputs, in data set order.
};

/// What end-of-step callbacks get.
struct StepSummary {
  int64_t epoch = 0;
  int64_t global_step = 0;           ///< Optimizer steps completed, with this one.
  double loss = 0.0;                 ///< Mean over the samples of the step.
  std::vector<at::Tensor> outputs;
};

/// A model with its data, its steps and its callbacks. The Trainer calls everything from one thread.
/// Batches arrive on the device. Gradients are zeroed by the backend, before the next step's backward.
/// @par Source pymarlin core/module_interface.py. Differs: one meaning of global_step, exact step counts, train mode during the
/// training callbacks.
class MARLIN_ABI ModuleInterface : public torch::nn::Module {
 public:
  ModuleInterface();
  ~ModuleInterface() override;

  /// Called once a run, with the parameters already on their device.
  [[nodiscard]] virtual OptimizersSchedulers get_optimizers_schedulers(const TrainingPlan& plan) = 0;
  /// Called once a run. Null is refused when there is something to train.
  [[nodiscard]] virtual std::unique_ptr<DataLoader> get_train_dataloader(const LoaderRequest& request) = 0;
  /// Called once a run. Default: none, so nothing is validated.
  [[nodiscard]] virtual NamedLoaders get_val_dataloaders(const LoaderRequest& request);

  [[nodiscard]] virtual StepOutput train_step(const StepContext& step, Batch& batch) = 0;
  /// Called without gradients, in evaluation mode. Must be written if there are validation loaders. A validation that is left, because
  /// the run is stopped, is repeated from its loader's begin: buffers go back to what they were then; what is gathered elsewhere is to be reset in
  /// on_begin_val_epoch().
  [[nodiscard]] virtual StepOutput val_step(const StepContext& step, Batch& batch);

  /// In train mode. Called again, with the step it has come to, in a process that goes on within an epoch, so that it can set up what
  /// is not in the state; what it does to the state it would then do twice. Random numbers that it draws are not drawn twice.
  virtual void on_begin_train_epoch(int64_t epoch, int64_t global_step);
  /// Before each validation of a loader.
  virtual void on_begin_val_epoch(const std::string& loader, int64_t epoch, int64_t global_step);
  /// After each backward. `loss`: as train_step returned it, detached. Gradients are those of the micro-batches so far.
  virtual void on_end_backward(int64_t global_step, const at::Tensor& loss);
  /// After each optimizer step and its schedulers; gradients are still there.
  virtual void on_end_train_step(const StepSummary& step);
  virtual void on_end_val_epoch(const std::string& loader, const EpochSummary& summary);
  virtual void on_end_train_epoch(const EpochSummary& summary);           ///< After validation; in train mode.
  /// Once, when the run is complete, after the last checkpoint was written.
  virtual void on_end_train(int64_t global_step);

  /// Parameter and buffer names and tensors, in the order of Python's `state_dict()`; tensors are the live ones.
  /// A module that adds entries of its own (not tensors of the module) must take them out again in update_state.
  [[nodiscard]] virtual StateDict get_state() const;
  /// What differs between such a state and this module, one sentence each; empty: update_state() will take it.
  [[nodiscard]] virtual std::vector<std::string> differences(const StateDict& state) const;
  /// Copies the values in. @throws Error kMismatch with all differences; the module is then as it was.
  virtual void update_state(const StateDict& state);
};

}  // namespace marlin
