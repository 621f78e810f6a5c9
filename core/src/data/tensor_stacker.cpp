#include "marlin/core/data/tensor_stacker.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>

#include <cstring>

namespace marlin::detail {
namespace {

// What memcpy copies right.
bool is_plain(const at::Tensor& row) {
  return row.defined() && row.layout() == at::kStrided && row.is_cpu() && row.is_contiguous() && !row.requires_grad() && !row.is_quantized() &&
         !row.is_conj() && !row.is_neg() && !row._is_zerotensor();
}

}  // namespace

bool TensorStacker::fits(const at::Tensor& row) const {
  return is_plain(row) && row.scalar_type() == stacked_.scalar_type() && row.sizes() == stacked_.sizes().slice(1);
}

void TensorStacker::keep_rows() {
  rows_.reserve(static_cast<size_t>(count_));
  for (int64_t i = 0; i < filled_; ++i) rows_.push_back(stacked_.select(0, i));
  stacked_.reset();
}

void TensorStacker::add(const at::Tensor& row) {
  if (filled_ == 0 && rows_.empty() && is_plain(row)) {
    std::vector<int64_t> sizes = {count_};
    sizes.insert(sizes.end(), row.sizes().begin(), row.sizes().end());
    stacked_ = at::empty(sizes, row.options());
  }
  if (stacked_.defined() && !fits(row)) keep_rows();
  if (!stacked_.defined()) {
    rows_.push_back(row);
    return;
  }
  const size_t bytes = row.nbytes();
  if (bytes > 0) std::memcpy(static_cast<char*>(stacked_.mutable_data_ptr()) + static_cast<size_t>(filled_) * bytes, row.const_data_ptr(), bytes);
  ++filled_;
}

at::Tensor TensorStacker::stacked() { return stacked_.defined() ? std::move(stacked_) : at::stack(rows_); }

}  // namespace marlin::detail
