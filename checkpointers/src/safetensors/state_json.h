// A state as JSON beside a file of its tensors. SAFETENSORS.md describes the JSON.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "marlin/checkpointers/safetensors.h"
#include "marlin/sdk/state_dict.h"

namespace marlin::safetensors {

struct FlatState {
  std::string json;                  ///< Everything but the tensors, which it names.
  std::vector<NamedTensor> tensors;  ///< By the keys on the way to them, joined by dots; a name that was taken has "#2", "#3", ... behind it.
};

/// Borrows the state's tensors. @throws Error kUnsupported that names the entry: text that is not UTF-8, nesting deeper than 64, a
/// tensor that cannot be written to any file.
[[nodiscard]] FlatState flatten(const StateDict& root);

/// The reverse. Exact: order, kinds, keys, attributes; of floats every bit.
/// @param file  how messages name the file that the JSON is of.
/// @throws Error kCorrupt; what `tensors` throws.
[[nodiscard]] StateDict unflatten(const nlohmann::json& json, SafetensorsReader& tensors, const std::filesystem::path& file);

/// How deep the JSON of a state may be nested.
inline constexpr int kMaxJsonDepth = 256;

}  // namespace marlin::safetensors
