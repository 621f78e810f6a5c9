// The states that the checks save, and what is found when they are loaded.
#pragma once

#include <cstdint>
#include <string>

#include "marlin/sdk/checkpoint.h"

namespace marlin::testing::detail {

/// Epochs of the checks have so many optimizer steps.
inline constexpr int64_t kStepsPerEpoch = 10;

/// The state of a small run at the end of that epoch: some 100 KiB, the same in every process.
[[nodiscard]] Checkpoint state_at(int64_t epoch);
/// The same after `global_step` optimizer steps, in the middle of an epoch.
[[nodiscard]] Checkpoint state_at_step(int64_t global_step);
/// A state with every kind of value, and tensors of every common dtype and shape.
[[nodiscard]] Checkpoint varied_state();

/// Where two states differ, "trainer_state.optimizers.0: ..."; empty: nowhere, bit for bit. `source` is not compared.
[[nodiscard]] std::string difference(const Checkpoint& saved, const Checkpoint& loaded);

/// Changes every tensor of the state in place, as training goes on with the memory that was saved from.
void go_on_training(Checkpoint& state);

}  // namespace marlin::testing::detail
