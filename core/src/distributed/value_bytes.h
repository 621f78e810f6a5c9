// States as bytes, for another rank of the same run.
#pragma once

#include <string>

#include "marlin/sdk/checkpoint.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

/// Tensors are read, from whatever device, as if each had a storage of its own; strides, `ordered_dict` and `attributes` are kept or without meaning.
/// @throws Error kUnsupported for a tensor that is not strided.
[[nodiscard]] std::string to_bytes(const Value& value);
/// Tensors lie on the CPU. @throws Error kCorrupt: not what to_bytes() made.
[[nodiscard]] Value value_of_bytes(const std::string& bytes);

[[nodiscard]] std::string to_bytes(const Checkpoint& checkpoint);
[[nodiscard]] Checkpoint checkpoint_of_bytes(const std::string& bytes);

}  // namespace marlin
