// Copies of a state's tensors, in memory that the next copy uses again.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "marlin/sdk/checkpoint.h"

namespace marlin {

/// One copy at a time: begin() on the training thread, copy_rest() on any one thread, repair() on the training thread again.
///
/// Tensors that only an optimizer's step changes may wait: copy_rest() copies them while forward and backward run, and the step has to
/// wait for it. Everything else is copied by begin(). A tensor that may wait and was changed all the same, which its version counter
/// tells, is found and copied anew by repair(), as it is then, and does not wait any more in later snapshots. Not seen: changes that
/// raise no version counter, as through Tensor::data().
class Snapshot {
 public:
  using Storages = std::unordered_set<const c10::StorageImpl*>;

  /// @return the state over copies; complete once copy_rest() and repair() are done. Sharing of storage is kept.
  [[nodiscard]] Checkpoint begin(const Checkpoint& live, const Storages& may_wait);
  void copy_rest();
  /// On the training thread, where no change can be half done: LibTorch raises a version after it has written.
  /// @return how many storages were copied anew.
  int64_t repair();
  /// Waits for copies that a device still makes. By the thread that reads the copies.
  void wait_for_device();
  /// Lets the device's later work wait for the copies, without stopping the caller. On the training thread.
  void block_device_streams();

 private:
  struct Copy {
    c10::Storage from;
    at::Tensor to;                                       // bytes
    bool waits = false;
    std::vector<std::pair<at::Tensor, uint32_t>> seen;   // tensors over the storage, with their versions at begin()
  };

  size_t copy_of(const at::Tensor& tensor, const Storages& may_wait);
  at::Tensor over_copy(const at::Tensor& tensor, const Storages& may_wait);
  Value over_copies(const Value& value, const Storages& may_wait);
  StateDict over_copies(const StateDict& state, const Storages& may_wait);
  at::Tensor buffer(size_t place, int64_t bytes, at::Device device);
  void copy(Copy& copy);
  [[nodiscard]] static bool moved(const Copy& copy);

  std::vector<Copy> copies_;
  std::unordered_map<const c10::StorageImpl*, size_t> places_;
  std::vector<at::Tensor> buffers_;        // by place; kept from one snapshot to the next
  Storages never_wait_;                    // were changed outside an optimizer's step before
  std::optional<c10::Stream> side_stream_; // of the device that copies come from, if any does
  std::optional<c10::Event> copied_;
};

}  // namespace marlin
