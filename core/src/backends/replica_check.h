// Whether the ranks have the same model, and how they come to have it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "marlin/core/communicator.h"

namespace torch::nn {
class Module;
}

namespace marlin {

// All ranks make these calls together, and all throw or return the same. Each may throw PeerLost.

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// The parameters of a module, then its buffers, by their names.
[[nodiscard]] NamedTensors named_tensors(const torch::nn::Module& module);

/// "Float [256, 10]"; strides and device type are said where they are not the usual ones.
[[nodiscard]] std::string describe(const at::Tensor& tensor);

/// @throws Error kMismatch: a rank has other lines than rank 0. "ddp: <what>: rank 1 has 'a' where rank 0 has 'b'", of the first such line.
void require_same_on_all_ranks(Communicator& communicator, const std::vector<std::string>& lines, const std::string& what);

/// Looks at every bit, in the order of elements, of tensors on any device.
/// @return nothing: the bits are the same on all ranks. Otherwise a sentence that names the first tensor, and the ranks, that differ from rank 0.
/// @throws Error kUnsupported: a tensor is sparse.
[[nodiscard]] std::optional<std::string> difference_between_ranks(Communicator& communicator, const NamedTensors& tensors);

/// Gives all ranks the values of rank 0, time and again, in pieces of 25 MiB or one tensor.
class ReplicaBroadcast {
 public:
  ReplicaBroadcast() = default;  // of nothing
  /// @throws Error kMismatch: names, types, shapes, requires_grad, or which tensors are the same one, are not as on rank 0. kUnsupported: as above.
  ReplicaBroadcast(Communicator& communicator, const NamedTensors& tensors);
  /// @throws Error kTraining, on this rank alone: a tensor has changed its size.
  void send() const;

 private:
  struct Part {                          // a tensor in a piece
    std::string name;
    at::Tensor tensor;
    int64_t begin = 0, size = 0;         // bytes
  };

  void send(const std::vector<Part>& parts) const;

  Communicator* communicator_ = nullptr;
  std::vector<std::vector<Part>> pieces_;
};

/// The same once. Nothing is changed if it throws kMismatch.
void broadcast_from_rank_0(Communicator& communicator, const NamedTensors& tensors);

}  // namespace marlin
