// A Gloo process group, for tensors on the CPU.
#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <string>

namespace marlin::distributed {

/// Connects to all ranks; returns when all have called it. Its connections are made at `address`, one of this machine, unless GLOO_SOCKET_IFNAME names
/// interfaces (separated by commas, the same number for every rank).
/// @throws Error kInvalidArgument: no connection can be made at `address` or an interface. Else what Gloo throws: a rank did not come within `limit`.
[[nodiscard]] c10::intrusive_ptr<c10d::Backend> make_gloo_group(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, std::chrono::milliseconds limit, const std::string& address);

}  // namespace marlin::distributed
