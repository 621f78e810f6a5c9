// What this build of libmarlin is.
#pragma once

#include "marlin/sdk/abi.h"

namespace marlin {

[[nodiscard]] MARLIN_ABI const char* version() noexcept;        ///< Of libmarlin, e.g. "0.1.0".
[[nodiscard]] MARLIN_ABI const char* torch_version() noexcept;  ///< Of the LibTorch it was built with, e.g. "2.15.0".

}  // namespace marlin
