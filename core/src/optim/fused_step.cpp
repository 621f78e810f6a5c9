#include "optim/fused_step.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

namespace marlin::optim {
namespace {

bool is_taken_type(at::ScalarType type) { return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16; }

// The kernels walk through memory in its order, so all tensors of a parameter must have one layout.
at::Tensor in_layout_of(const at::Tensor& parameter, const at::Tensor& tensor) {
  const bool is_alike = tensor.scalar_type() == parameter.scalar_type() && tensor.device() == parameter.device();
  if (is_alike && tensor.strides() == parameter.strides()) return tensor;
  return at::empty_like(parameter).copy_(tensor);
}

void raise_version(const at::Tensor& tensor) {
  if (!tensor.is_inference()) torch::autograd::impl::bump_version(tensor);
}

// Takes the gradients of parameters away, and gives them back.
class HiddenGradients {
 public:
  void hide(const at::Tensor& parameter) { gradients_.emplace_back(parameter, std::exchange(parameter.mutable_grad(), at::Tensor())); }
  HiddenGradients() = default;
  HiddenGradients(const HiddenGradients&) = delete;
  HiddenGradients& operator=(const HiddenGradients&) = delete;
  ~HiddenGradients() {
    for (auto& [parameter, gradient] : gradients_) parameter.mutable_grad() = std::move(gradient);
  }

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> gradients_;
};

}  // namespace

FusedBatch& FusedBatches::batch_for(const FusedEntry& entry) {
  const at::Device device = entry.parameter.device();
  const at::ScalarType type = entry.parameter.scalar_type();
  for (FusedBatch& batch : batches_) {
    if (batch.device == device && batch.type == type && batch.is_first == entry.is_first) return batch;
  }
  return batches_.emplace_back(FusedBatch{device, type, entry.is_first, {}, {}, {}, {}});
}

// Parameters that stand at the same step share the tensor.
at::Tensor FusedBatches::step_tensor(const at::Tensor& parameter, int64_t step) {
  for (const auto& [known, tensor] : steps_) {
    if (known == step && tensor.device() == parameter.device()) return tensor;
  }
  const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat).device(parameter.device());
  return steps_.emplace_back(step, at::full({}, static_cast<double>(step), options)).second;
}

void FusedBatches::add(const FusedEntry& entry) {
  FusedBatch& batch = batch_for(entry);
  batch.gradients.push_back(in_layout_of(entry.parameter, entry.gradient));
  if (entry.step >= 0) batch.steps.push_back(step_tensor(entry.parameter, entry.step));
  for (size_t i = 0; i < entry.states.size() && entry.states[i] != nullptr; ++i) {
    *entry.states[i] = in_layout_of(entry.parameter, *entry.states[i]);
    batch.states[i].push_back(*entry.states[i]);
  }
  batch.parameters.push_back(entry.parameter);
}

void FusedBatches::run(const std::function<void(const FusedBatch&)>& kernel) const {
  // A parameter that stands twice makes its state at its first place, so that batch comes first.
  for (const bool first : {true, false}) {
    for (const FusedBatch& batch : batches_) {
      if (batch.is_first != first) continue;
      kernel(batch);
      std::for_each(batch.parameters.begin(), batch.parameters.end(), raise_version);
      for (const std::vector<at::Tensor>& tensors : batch.states) std::for_each(tensors.begin(), tensors.end(), raise_version);
    }
  }
}

FusedStep::FusedStep(const torch::optim::Optimizer::LossClosure& closure)
    : loss_([&closure] {
        const at::AutoGradMode enable_grad(true);
        return closure ? closure() : at::Tensor();
      }()) {}

bool FusedStep::takes(const at::Tensor& parameter, const at::Tensor& state) {
  const at::Tensor& gradient = parameter.grad();
  const bool taken = (parameter.is_cpu() || parameter.is_cuda()) && is_taken_type(parameter.scalar_type()) && parameter.layout() == at::kStrided &&
                     parameter.is_non_overlapping_and_dense() && gradient.layout() == at::kStrided && gradient.sizes() == parameter.sizes() &&
                     gradient.scalar_type() == parameter.scalar_type() && gradient.device() == parameter.device() &&
                     (!state.defined() || state.layout() == at::kStrided);
  if (!taken) rest_.push_back(parameter);
  return taken;
}

void FusedStep::rest(std::vector<torch::optim::OptimizerParamGroup>& groups, const std::function<void()>& own_step) {
  if (rest_.empty()) return;
  const auto is_rest = [this](const at::Tensor& parameter) {
    return std::any_of(rest_.begin(), rest_.end(), [&](const at::Tensor& one) { return one.is_same(parameter); });
  };
  HiddenGradients hidden;
  for (const torch::optim::OptimizerParamGroup& group : groups) {
    for (const at::Tensor& parameter : group.params()) {
      if (parameter.grad().defined() && !is_rest(parameter)) hidden.hide(parameter);
    }
  }
  own_step();
  std::for_each(rest_.begin(), rest_.end(), raise_version);
}

}  // namespace marlin::optim
