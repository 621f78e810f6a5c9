// The device that a process trains on.
#pragma once

#include <memory>
#include <string>

#include "launch/ranks.h"
#include "marlin/core/device_support.h"
#include "marlin/core/plugin_host.h"

namespace marlin {

struct RunDevice {
  std::string name = "cpu";                  ///< As TrainerOptions has it: "cpu" or "cuda:N"; what is no device stays as it was given.
  std::unique_ptr<DeviceSupport> support{};  ///< Null on the CPU.
};

/// Loads the plugin `cuda` if it is needed, for which no tensor may have been touched yet, and makes the device current. Of several ranks on a machine each
/// takes the GPU of its own number; under srun and mpirun, which may show each its own, the only one that it sees.
/// @param wanted --device. auto: a GPU if a driver, the plugin and a GPU for each rank of the machine are there, else the CPU.
/// @throws Error kPlugin, kUnsupported, kInvalidArgument: `wanted` is a GPU, and cannot be had.
[[nodiscard]] RunDevice find_device(const std::string& wanted, const launch::Ranks& ranks, PluginHost& plugins, Logger& logger);

/// Throws what find_device() would on one of so many ranks of this machine, if `wanted` names a GPU. Takes none.
void check_device(const std::string& wanted, int num_ranks, PluginHost& plugins);

}  // namespace marlin
