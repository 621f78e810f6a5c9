// The state of LibTorch's optimizers under the names that PyTorch uses.
#pragma once

#include <torch/optim/optimizer.h>

#include <string>
#include <vector>

#include "marlin/sdk/state_dict.h"

namespace marlin::optim {

/// An optimizer that knows how to save itself: derive from torch::optim::Optimizer and from this.
class MARLIN_ABI Stateful {
 public:
  virtual ~Stateful();
  /// As Python's optimizer.state_dict(): {"state": {0: {...}, ...}, "param_groups": [{..., "params": [0, ...]}, ...]}.
  [[nodiscard]] virtual StateDict get_state() const = 0;
  /// What differs between such a state and this optimizer, one sentence each; empty: update_state() will take it.
  [[nodiscard]] virtual std::vector<std::string> differences(const StateDict& state) const = 0;
  virtual void update_state(const StateDict& state) = 0;
};

/// The optimizer's state in Python's form and under Python's names, so that `optimizer.load_state_dict` takes it. Tensors
/// are the live ones, not copies; `step` is a float32 tensor of its own. Knows torch::optim::SGD, Adam, AdamW, Adagrad, RMSprop, what
/// derives from them (fused.h), and whatever is Stateful.
/// @throws Error kUnsupported naming the optimizer's type, for any other.
[[nodiscard]] MARLIN_ABI StateDict get_state(const torch::optim::Optimizer& optimizer);

/// What differs between a state and the optimizer that should take it (number of groups, of parameters, shapes, missing or
/// unknown entries), one sentence each; empty: update_state() will take it.
[[nodiscard]] MARLIN_ABI std::vector<std::string> differences(const torch::optim::Optimizer& optimizer, const StateDict& state);

/// Replaces state and options of every group. Tensors are copied, to the parameters' devices.
/// @throws Error kMismatch with all differences. Nothing is then changed.
MARLIN_ABI void update_state(torch::optim::Optimizer& optimizer, const StateDict& state);

}  // namespace marlin::optim
