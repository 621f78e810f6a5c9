// What a plugin gets from the program that loads it.
#pragma once

#include <string>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/logger.h"

namespace marlin {

/// Lives longer than anything the plugin makes with it.
struct HostContext {
  Logger* logger = &null_logger();
  int rank = 0;         ///< Of this process, from 0.
  int world_size = 1;   ///< Processes of the run.
};

}  // namespace marlin
