// The states that the checks save, and what is found when they are loaded.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/sdk/checkpoint.h"

namespace marlin::testing::detail {

/// Epochs of the checks have so many optimizer steps.
inline constexpr int64_t kStepsPerEpoch = 10;

/// The state of a small run at the end of that epoch: some 100 KiB, the same in every process.
[[nodiscard]] Checkpoint state_at(int64_t epoch);
/// The same after `global_step` optimizer steps, in the middle of an epoch.
[[nodiscard]] Checkpoint state_at_step(int64_t global_step);
/// A state with every kind of value, and tensors of every dtype that models are made of, and of every shape. Formats keep all of it.
[[nodiscard]] Checkpoint varied_state();

/// A tensor of a dtype that a format may lack; a model's entry has the name `entry`.
struct RareTensor {
  std::string_view dtype;  ///< "complex64"
  std::string entry;       ///< "dtype.complex64"
  at::Tensor tensor;
};
[[nodiscard]] std::vector<RareTensor> rare_tensors();

/// Where two states differ, "trainer_state.optimizers.0: ..."; empty: nowhere, bit for bit. Not compared: `source`, strides, whether
/// tensors share storage: a format need not keep them.
[[nodiscard]] std::string difference(const Checkpoint& saved, const Checkpoint& loaded);

/// Changes every tensor of the state in place, as training goes on with the memory that was saved from.
void go_on_training(Checkpoint& state);

}  // namespace marlin::testing::detail
