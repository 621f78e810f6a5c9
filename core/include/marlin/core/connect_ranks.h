// Connecting the processes of a run, for programs that do without MARLIN_MAIN.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "marlin/core/communicator.h"
#include "marlin/core/device_support.h"
#include "marlin/sdk/logger.h"

namespace marlin {

struct ConnectRanksOptions {
  double timeout_seconds = 60.0;      ///< For all ranks to come, and of every call. Range: 1 to 1e6.
  Logger* logger = &null_logger();    ///< Gets c10d's own words at level debug. Outlives the communicator.
  bool shared_memory = true;          ///< Sum in memory that the ranks share where all are on one machine (16 MiB each, in /dev/shm); else, and where there is none, over Gloo.
  DeviceSupport* device = nullptr;    ///< Of the device that tensors are on besides the CPU; in use already. Null: the CPU only.
  /// Called once, on a thread of the communicator, with the text of PeerLost, when the run has failed and this process has not noticed within a
  /// second: it computes, or waits for a device. A program may end itself here, by _exit. Empty: the next call throws.
  std::function<void(const std::string& message)> on_stuck = {};
};

/// Connects this process to the others of its run, as torchrun, mpirun, srun or `--nproc` have set its variables; returns when all have called it. What it
/// returns goes into TrainerServices::ranks. Null: this process is alone.
/// @throws Error kInvalidArgument: the variables are half set or contradict each other, or an option is out of range. PeerLost, Error: a rank did not come, or
///   no connection can be made.
[[nodiscard]] MARLIN_ABI std::shared_ptr<Communicator> connect_ranks(const ConnectRanksOptions& options = {});

}  // namespace marlin
