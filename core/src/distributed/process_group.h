// The Communicator over LibTorch's c10d.
#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "launch/ranks.h"
#include "marlin/core/communicator.h"
#include "marlin/core/device_support.h"
#include "marlin/sdk/logger.h"

namespace marlin::distributed {

/// Makes the process group for tensors on a device. Called by all ranks, with a store of the group's own. What it throws ends the run, on all ranks;
/// what is no Error becomes one, kUnsupported.
using GroupFactory = std::function<c10::intrusive_ptr<c10d::Backend>(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, std::chrono::milliseconds limit)>;

/// What that device's support makes; it must outlive the communicator.
[[nodiscard]] inline GroupFactory group_factory(DeviceSupport& device) {
  return [&device](const auto& store, int rank, int size, std::chrono::milliseconds limit) { return device.make_process_group(store, rank, size, limit); };
}

struct ConnectOptions {
  launch::Ranks ranks;
  std::chrono::milliseconds timeout = std::chrono::seconds(60);  ///< For all ranks to come, and of every call. > 0.
  Logger* logger = nullptr;         ///< Gets c10d's own words at level debug. Must outlive the communicator. Null: null_logger().
  /// The run has failed, and the main thread has not made a call that would tell it so for `grace`: it computes, or waits for a device.
  /// Called once, in a thread of the communicator, with the text of PeerLost. An application ends the process, by _exit, as its other threads go on; an
  /// embedder may leave it empty, then the next call throws.
  std::function<void(const std::string& message)> on_stuck;
  std::chrono::milliseconds grace = std::chrono::seconds(1);
  GroupFactory make_device_group;   ///< Empty: tensors on the CPU only.
  bool shared_memory = true;        ///< Sum tensors on the CPU in memory that the ranks share, where all are on this machine and can have it; else over Gloo.
};

/// Returns when all ranks have called it. CPU tensors go over Gloo: types float, double, half, bfloat16, int64, int32, int8, uint8 are summed;
/// any is broadcast. A single rank gets a communicator that talks to nobody.
///
/// While it lives SIGPIPE is ignored, if it was at its default, and c10d's log lines stay off the standard error unless TORCH_CPP_LOG_LEVEL is set.
/// What PeerLost says it says on all ranks that are left; it takes some 2 s at most beyond the time limit, and, where a process has ended, 1 to 2 s.
///
/// Its end. All ranks end it when they have made all calls; rank 0, whose process may serve the others, waits for them, for at most the time
/// limit. After a failure it returns within a second, and a group that still works on a call is left as it is, with its threads and connections:
/// Gloo cannot call anything off, and would wait for the time limit.
/// @throws Error as meet(), and kInvalidArgument for a network interface, of which the other ranks hear; PeerLost once all ranks have come.
[[nodiscard]] std::unique_ptr<Communicator> connect(const ConnectOptions& options);

}  // namespace marlin::distributed
