// What the parts of Trainer share that read its state.
#pragma once

#include <cstdint>
#include <string>

#include "marlin/sdk/state_dict.h"

namespace marlin {

/// The entry if it is a number of that kind; else `otherwise`.
[[nodiscard]] int64_t int_or(const StateDict& state, const char* key, int64_t otherwise);
/// 16 hexadecimal digits.
[[nodiscard]] std::string new_run_id();

}  // namespace marlin
