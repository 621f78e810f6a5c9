// Adam and AdamW: they differ in the kernel only.
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/zeros_like.h>

#include "marlin/core/optim/fused.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "optim/fused_step.h"

namespace marlin::optim {
namespace {

using torch::optim::Optimizer;

void refuse_sparse(const Optimizer& optimizer, const char* name) {
  for (size_t i = 0; i < optimizer.param_groups().size(); ++i) {
    for (const at::Tensor& parameter : optimizer.param_groups()[i].params()) {
      if (!parameter.grad().defined() || parameter.grad().layout() == at::kStrided) continue;
      throw Error(Errc::kUnsupported, concat(name, ": parameter group ", i, " has a sparse gradient, and ", name, " takes dense ones only; SGD and ",
                                             "Adagrad take both, so give such parameters an optimizer of their own"));
    }
  }
}

void make_if_undefined(at::Tensor& state, const at::Tensor& parameter) {
  if (!state.defined()) state = at::zeros_like(parameter);
}

template <class State>
FusedEntry entry_for(State& state, const at::Tensor& parameter, bool amsgrad) {
  make_if_undefined(state.exp_avg(), parameter);
  make_if_undefined(state.exp_avg_sq(), parameter);
  if (amsgrad) make_if_undefined(state.max_exp_avg_sq(), parameter);
  state.step(state.step() + 1);
  return {parameter, parameter.grad(), false, {&state.exp_avg(), &state.exp_avg_sq(), amsgrad ? &state.max_exp_avg_sq() : nullptr}, state.step()};
}

template <class Options, class State, class Kernel>
at::Tensor adam_step(Optimizer& optimizer, const char* name, const Optimizer::LossClosure& closure, const Kernel& kernel,
                     const std::function<void()>& own_step) {
  FusedStep step(closure);
  refuse_sparse(optimizer, name);
  for (OptimizerParamGroup& group : optimizer.param_groups()) {
    const auto& options = static_cast<const Options&>(group.options());
    FusedBatches batches;
    for (const at::Tensor& parameter : group.params()) {
      if (!parameter.grad().defined() || !step.takes(parameter)) continue;
      batches.add(entry_for(fused_state<State>(optimizer, parameter), parameter, options.amsgrad()));
    }
    batches.run([&](const FusedBatch& batch) {
      const auto [beta1, beta2] = options.betas();
      kernel(batch.parameters, batch.gradients, batch.states[0], batch.states[1], batch.states[2], batch.steps, options.lr(), beta1, beta2,
             options.weight_decay(), options.eps(), options.amsgrad(), /*maximize=*/false);
    });
  }
  step.rest(optimizer.param_groups(), own_step);
  return step.loss();
}

}  // namespace

at::Tensor Adam::step(LossClosure closure) {
  const auto kernel = [](const auto&... arguments) { at::_fused_adam_(arguments...); };
  return adam_step<AdamOptions, torch::optim::AdamParamState>(*this, "Adam", closure, kernel, [this] { torch::optim::Adam::step(); });
}

at::Tensor AdamW::step(LossClosure closure) {
  const auto kernel = [](const auto&... arguments) { at::_fused_adamw_(arguments...); };
  return adam_step<AdamWOptions, torch::optim::AdamWParamState>(*this, "AdamW", closure, kernel, [this] { torch::optim::AdamW::step(); });
}

}  // namespace marlin::optim
