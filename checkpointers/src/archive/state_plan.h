// What there is to write of a state: its tensors in the order of a walk, and the storages below them, each once.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "marlin/sdk/state_dict.h"

namespace marlin::archive {

struct PlannedStorage {
  c10::Storage storage;
  c10::ScalarType type;  ///< Of the first tensor that looks at it.
  bool untyped = false;  ///< Its elements have no typed storage in Python, or not all of its tensors have the same type.

  [[nodiscard]] uint64_t size_bytes() const { return storage.nbytes(); }
};

struct PlannedTensor {
  at::Tensor tensor;  ///< Without conjugate or negative bit.
  size_t storage;     ///< In StatePlan::storages; the record is data/<storage>.
};

/// Tensors are shared with the state, so the plan is good as long as the state does not change.
struct StatePlan {
  std::vector<PlannedTensor> tensors;
  std::vector<PlannedStorage> storages;
};

/// Why a tensor cannot be written to a file of any form, as messages have it; empty: it can.
[[nodiscard]] std::string unwritable(const at::Tensor& tensor);

/// Walks the state and checks that all of it can be written. Order: entries, then attributes, depth first.
/// @throws Error kUnsupported that names the entry, e.g. "trainer_state.optimizers.0.state.3.exp_avg: a sparse tensor ...".
[[nodiscard]] StatePlan plan_state(const StateDict& root);

}  // namespace marlin::archive
