// Weights of a torch::nn::Module as a state dict.
#pragma once

#include <torch/nn/module.h>

#include <filesystem>
#include <string>
#include <vector>

#include "marlin/sdk/state_dict.h"

namespace marlin {

/// Parameters and buffers under their names, in the order of Python's `state_dict()`. The tensors are the live ones.
[[nodiscard]] MARLIN_ABI StateDict model_state(const torch::nn::Module& module);

/// What keeps `state` from being loaded: missing and unexpected names, other shapes, other dtypes. One sentence each.
[[nodiscard]] MARLIN_ABI std::vector<std::string> model_differences(const torch::nn::Module& module, const StateDict& state);

/// Copies the values in, to the module's devices.
/// @throws Error kMismatch with all differences. The module is then as it was.
MARLIN_ABI void load_model_state(torch::nn::Module& module, const StateDict& state);

/// Loads weights from a file: a model file, a full checkpoint (its model part), or what Python saved of `model.state_dict()`.
/// Floating dtypes are converted to the module's.
/// @param strict false: takes what fits in name and shape and leaves the rest as it is.
/// @return the names that were left as they were (always empty if strict).
/// @throws Error kNotFound, kCorrupt, kIo for the file; kMismatch if strict, with all differences. The module is then as it was.
MARLIN_ABI std::vector<std::string> load_model_state(torch::nn::Module& module, const std::filesystem::path& file, bool strict = true);

}  // namespace marlin
