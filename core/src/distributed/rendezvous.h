// How the ranks of a run find each other.
#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <string>
#include <vector>

#include "launch/ranks.h"

namespace marlin::distributed {

/// What a rank knows once all are there.
struct Rendezvous {
  c10::intrusive_ptr<c10d::Store> store;  ///< Holds keys of this run only.
  bool serves = false;                    ///< The store is served by this process, so it must outlive the others' questions.
  std::vector<std::string> names;         ///< Of the ranks, for messages: "rank 2 (node1:4711)", the process' host and id.
  std::string address;                    ///< This machine's, as the others can reach it: "10.0.0.5".
};

/// Returns when all ranks have called it. Rank 0 serves a TCPStore at master_port, for this machine only if all ranks are on it, or
/// torchrun's agent does. Of several runs one after the other in a process, each is one of its own. Needs ProcessSettings.
/// @param limit from the call until it returns or throws, and a second more.
/// @throws Error, one line that says what to do. kInvalidArgument: `ranks` or `limit` makes no sense; there is no such host; the port is in use; what
///   listens there is no store; two processes have the same rank, or other ideas of how many there are. kIo: a rank has not come (all that
///   have come name it), or has gone again.
[[nodiscard]] Rendezvous meet(const launch::Ranks& ranks, std::chrono::milliseconds limit);

}  // namespace marlin::distributed
