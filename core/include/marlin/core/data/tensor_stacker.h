// Stacks the samples of a batch as they come.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "marlin/sdk/abi.h"

namespace marlin::detail {

/// `at::stack(rows)` for rows that come one after the other: each is copied into its place while it is still in the cache, and
/// its memory is there for the next one. Same values, errors and type promotion; rows that are not plain, contiguous tensors of one
/// shape and type in the CPU's memory are kept and stacked at the end.
class MARLIN_ABI TensorStacker {
 public:
  /// Of that many rows; at least 1.
  explicit TensorStacker(int64_t count) : count_(count) {}
  void add(const at::Tensor& row);
  /// Once, after the last row. @throws c10::Error that at::stack() throws.
  [[nodiscard]] at::Tensor stacked();

 private:
  [[nodiscard]] bool fits(const at::Tensor& row) const;
  void keep_rows();

  int64_t count_;
  int64_t filled_ = 0;             // rows of stacked_
  at::Tensor stacked_;             // [count, ...]; undefined before the first row, and once rows are kept
  std::vector<at::Tensor> rows_;   // kept
};

}  // namespace marlin::detail
