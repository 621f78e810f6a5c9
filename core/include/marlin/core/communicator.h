// The processes of a run, and what they tell each other.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/error.h"

namespace marlin {

/// Another rank is gone, has failed, or does not answer in time: what this run does together cannot go on, and nothing of it may be
/// saved. Its code is kTraining; its text names the rank where it is known, and that rank's own message.
class MARLIN_ABI PeerLost : public Error {
 public:
  explicit PeerLost(const std::string& message) : Error(Errc::kTraining, message) {}
  ~PeerLost() override;
};

/// The ranks of a run. All of them make the same calls in the same order, with tensors that agree in type and size: Gloo ends a process that gets
/// more than it expects. Tensors are contiguous, on the CPU or on this rank's device.
///
/// Every call may throw PeerLost, some two seconds after the run's time limit at the latest, and much sooner where a process has ended. From then on, and
/// after fail(), every call does; tensors that were given to a call hold anything. Error kInvalidArgument, for a tensor or a rank that will not do, is
/// thrown before anything is sent; the run goes on. One thread at a time, except fail().
class MARLIN_ABI Communicator {
 public:
  /// Something under way. It may be dropped without waiting, on all ranks alike, but goes before its communicator.
  class MARLIN_ABI Work {
   public:
    virtual ~Work();
    /// Returns when it is done; on a device, when what the current stream does next comes after it. @throws PeerLost
    virtual void wait() = 0;
  };

  /// All ranks end theirs once they have made all calls; one that ends while others go on is lost to them. After PeerLost it does not block.
  virtual ~Communicator();
  [[nodiscard]] virtual int rank() const noexcept = 0;
  [[nodiscard]] virtual int world_size() const noexcept = 0;

  /// Sums tensors over all ranks, in place. Whoever waits finds the same bits on all ranks. Types: float, double, half, bfloat16, int64, int32, int8,
  /// uint8. Several may be under way.
  [[nodiscard]] virtual std::unique_ptr<Work> all_reduce(at::Tensor tensor) = 0;
  /// Copies root's tensor to all ranks, in place. Any type.
  virtual void broadcast(at::Tensor tensor, int root) = 0;
  /// The bytes of `root`; what other ranks give is not looked at. Any length.
  [[nodiscard]] virtual std::string broadcast_bytes(const std::string& bytes, int root) = 0;
  /// On rank 0: the bytes of every rank, in their order; elsewhere nothing. Lengths may differ, and be 0. Takes memory on rank 0 for the longest from
  /// each rank.
  [[nodiscard]] virtual std::vector<std::string> gather_bytes(const std::string& bytes) = 0;
  /// Returns when all ranks have called it.
  virtual void barrier() = 0;
  /// Rank `root`'s call returns at once, the others' when it has called: however long that takes, for it may be writing a large file.
  virtual void follow(int root) = 0;

  /// Tells the other ranks that this one ends because of `message`: what they wait for ends with a PeerLost that says so ("rank 1 failed: ..."). Of all
  /// that happens in a run the first stays. Returns when they know, or after a second. From any thread.
  virtual void fail(const std::string& message) noexcept = 0;
};

}  // namespace marlin
