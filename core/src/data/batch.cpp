#include "marlin/core/data/batch.h"

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

at::Tensor& tensor_at(std::vector<at::Tensor>& tensors, size_t index, const char* what) {
  if (index < tensors.size()) return tensors[index];
  throw Error(Errc::kInvalidArgument, concat("the batch holds ", tensors.size(), " tensors and so has no ", what, "; the loader must deliver one"));
}

}  // namespace

at::Tensor& Batch::data() { return tensor_at(tensors, 0, "data (tensor 0)"); }
at::Tensor& Batch::target() { return tensor_at(tensors, 1, "target (tensor 1)"); }

Batch Batch::slice(int64_t begin, int64_t end) const {
  if (begin < 0 || end < begin || end > num_samples) {
    throw Error(Errc::kInvalidArgument, concat("samples [", begin, ", ", end, ") are not a part of a batch of ", num_samples));
  }
  if (begin == 0 && end == num_samples) return *this;
  Batch part;
  part.tensors.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) part.tensors.push_back(tensor.narrow(0, begin, end - begin));
  part.num_samples = end - begin;
  part.num_global_samples = num_global_samples;
  part.extra = extra;
  return part;
}

void Batch::to(at::Device device) {
  for (at::Tensor& tensor : tensors) {
    if (tensor.device() != device) tensor = tensor.to(device, /*non_blocking=*/!device.is_cpu());
  }
}

}  // namespace marlin
