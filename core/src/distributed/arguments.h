// What may be given to a Communicator's calls.
#pragma once

#include <ATen/core/Tensor.h>

namespace marlin::distributed {

/// @throws Error kInvalidArgument: it is undefined, sparse, or not contiguous.
void check_tensor(const at::Tensor& tensor);
/// @throws Error kInvalidArgument: as check_tensor(), or Gloo cannot sum its type.
void check_summable(const at::Tensor& tensor);
/// @throws Error kInvalidArgument: there is no such rank.
void check_root(int root, int size);

}  // namespace marlin::distributed
