#include "marlin/core/version.h"

#include <torch/headeronly/version.h>

#include "marlin/sdk/abi.h"

namespace marlin {

const char* version() noexcept { return MARLIN_VERSION; }
const char* torch_version() noexcept { return TORCH_VERSION; }

}  // namespace marlin
