#include <ATen/ops/_fused_adagrad.h>
#include <ATen/ops/full_like.h>

#include "marlin/core/optim/fused.h"
#include "optim/fused_step.h"

namespace marlin::optim {

using torch::optim::AdagradParamState;

at::Tensor Adagrad::step(LossClosure closure) {
  FusedStep step(closure);
  const double initial = static_cast<const AdagradOptions&>(defaults()).initial_accumulator_value();
  for (OptimizerParamGroup& group : param_groups()) {
    const auto& options = static_cast<const AdagradOptions&>(group.options());
    FusedBatches batches;
    for (const at::Tensor& parameter : group.params()) {
      if (!parameter.grad().defined()) continue;
      auto& state = fused_state<AdagradParamState>(*this, parameter);
      if (!state.sum().defined()) state.sum(at::full_like(parameter, initial));
      if (!step.takes(parameter)) continue;
      state.step(state.step() + 1);
      batches.add({parameter, parameter.grad(), false, {&state.sum()}, state.step()});
    }
    batches.run([&options](const FusedBatch& batch) {
      at::_fused_adagrad_(batch.parameters, batch.gradients, batch.states[0], batch.steps, options.lr(), options.lr_decay(), options.weight_decay(),
                          options.eps(), /*maximize=*/false);
    });
  }
  step.rest(param_groups(), [this] { torch::optim::Adagrad::step(); });
  return step.loss();
}

}  // namespace marlin::optim
