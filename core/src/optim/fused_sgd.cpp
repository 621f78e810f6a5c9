#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>

#include "marlin/core/optim/fused.h"
#include "optim/fused_step.h"

namespace marlin::optim {

using torch::optim::SGDParamState;

at::Tensor SGD::step(LossClosure closure) {
  FusedStep step(closure);
  for (OptimizerParamGroup& group : param_groups()) {
    const auto& options = static_cast<const SGDOptions&>(group.options());
    const bool has_momentum = options.momentum() != 0.0;
    FusedBatches batches;
    for (const at::Tensor& parameter : group.params()) {
      if (!parameter.grad().defined()) continue;
      FusedEntry entry{parameter, parameter.grad()};
      if (!has_momentum) {
        if (step.takes(parameter)) batches.add(entry);
        continue;
      }
      const auto found = state().find(parameter.unsafeGetTensorImpl());
      const at::Tensor present = found != state().end() ? static_cast<SGDParamState&>(*found->second).momentum_buffer() : at::Tensor();
      if (!step.takes(parameter, present)) continue;
      at::Tensor& buffer = fused_state<SGDParamState>(*this, parameter).momentum_buffer();
      entry.is_first = !buffer.defined();
      if (entry.is_first) buffer = at::empty_like(parameter);  // the kernel only writes it then
      entry.states = {&buffer};
      batches.add(entry);
    }
    batches.run([&options](const FusedBatch& batch) {
      at::_fused_sgd_(batch.parameters, batch.gradients, batch.states[0], options.weight_decay(), options.momentum(), options.lr(), options.dampening(),
                      options.nesterov(), /*maximize=*/false, batch.is_first);
    });
  }
  step.rest(param_groups(), [this] { torch::optim::SGD::step(); });
  return step.loss();
}

}  // namespace marlin::optim
