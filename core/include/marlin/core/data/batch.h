// One batch of samples.
#pragma once

#include <ATen/core/Tensor.h>

#include <any>
#include <cstdint>
#include <vector>

#include "marlin/sdk/abi.h"

namespace marlin {

/// Samples that are worked on together. In each tensor dimension 0 counts the samples.
struct MARLIN_ABI Batch {
  std::vector<at::Tensor> tensors;  ///< Each [num_samples, ...], any dtype.
  int64_t num_samples = 0;          ///< In this batch, on this rank.
  int64_t num_global_samples = 0;   ///< In the global batch that it is a part of, over all ranks.
  std::any extra;                   ///< Whatever a loader of your own adds. Never cut: see slice().

  /// The first tensor: the inputs. @throws Error kInvalidArgument if there is none.
  [[nodiscard]] at::Tensor& data();
  /// The second tensor: the targets. @throws Error kInvalidArgument if there is none.
  [[nodiscard]] at::Tensor& target();

  /// Samples [begin, end) as views; `extra` is shared whole. @throws Error kInvalidArgument if they are not all in this batch.
  [[nodiscard]] Batch slice(int64_t begin, int64_t end) const;
  /// Moves all tensors there, in place. To a GPU the copies are queued, not waited for: pinned memory that they come from must
  /// not be written to before the device is through with them.
  void to(at::Device device);
};

}  // namespace marlin
