// What the steps of the fused optimizers share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <torch/optim/optimizer.h>

#include <array>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace marlin::optim {

/// Tensors for one call of a fused kernel, all of one device and type: one entry per parameter in each list in use.
struct FusedBatch {
  at::Device device;
  at::ScalarType type;
  bool is_first;  ///< Of parameters whose state was made in this step.
  std::vector<at::Tensor> parameters, gradients, steps;
  std::array<std::vector<at::Tensor>, 3> states;
};

/// One parameter's part of a step.
struct FusedEntry {
  at::Tensor parameter, gradient;
  bool is_first = false;
  std::array<at::Tensor*, 3> states = {};  ///< Those in use come first.
  int64_t step = -1;                       ///< As the kernel shall see it, this one included. -1: it takes none.
};

/// The parameters of one group that a fused kernel takes, and that have a gradient.
class FusedBatches {
 public:
  /// State tensors that are laid out unlike the parameter are replaced by such as are.
  void add(const FusedEntry& entry);
  /// Calls the kernel once for each batch, then raises the versions of what it changed.
  void run(const std::function<void(const FusedBatch&)>& kernel) const;

 private:
  FusedBatch& batch_for(const FusedEntry& entry);
  at::Tensor step_tensor(const at::Tensor& parameter, int64_t step);

  std::vector<FusedBatch> batches_;
  std::vector<std::pair<int64_t, at::Tensor>> steps_;
};

/// A step from its closure to its end; gradients are off meanwhile.
class FusedStep {
 public:
  explicit FusedStep(const torch::optim::Optimizer::LossClosure& closure);

  /// Whether a fused kernel takes this parameter, with this state; it must have a gradient. If not, it is remembered for rest().
  [[nodiscard]] bool takes(const at::Tensor& parameter, const at::Tensor& state = {});
  /// Lets torch::optim's own step() do the parameters that no kernel took.
  void rest(std::vector<torch::optim::OptimizerParamGroup>& groups, const std::function<void()>& own_step);
  [[nodiscard]] at::Tensor loss() const { return loss_; }

 private:
  at::Tensor loss_;
  at::NoGradGuard no_grad_;
  std::vector<at::Tensor> rest_;
};

/// The parameter's state, made if there is none.
template <class State>
[[nodiscard]] State& fused_state(torch::optim::Optimizer& optimizer, const at::Tensor& parameter) {
  std::unique_ptr<torch::optim::OptimizerParamState>& state = optimizer.state()[parameter.unsafeGetTensorImpl()];
  if (state == nullptr) state = std::make_unique<State>();
  return static_cast<State&>(*state);
}

}  // namespace marlin::optim
