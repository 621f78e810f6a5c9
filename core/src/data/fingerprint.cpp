#include "data/fingerprint.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "data/seeds.h"
#include "marlin/sdk/text.h"

namespace marlin::detail {
namespace {

constexpr int64_t kMaxSamples = 16;

uint64_t hashed(uint64_t hash, const void* data, size_t size) {
  const char* bytes = static_cast<const char*>(data);
  hash = splitmix64(hash ^ size);
  for (size_t at = 0; at < size; at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + at, std::min(sizeof word, size - at));
    hash = splitmix64(hash ^ word);
  }
  return hash;
}

at::Tensor some_samples(const at::Tensor& tensor) {
  const int64_t count = tensor.size(0);
  const int64_t taken = std::min(count, kMaxSamples);
  at::Tensor indices = at::empty({taken}, at::kLong);
  for (int64_t i = 0; i < taken; ++i) indices.mutable_data_ptr<int64_t>()[i] = taken == 1 ? 0 : i * (count - 1) / (taken - 1);
  return at::index_select(tensor.detach(), 0, indices.to(tensor.device())).cpu().resolve_conj().resolve_neg().contiguous();
}

}  // namespace

std::string fingerprint(const std::vector<at::Tensor>& tensors) {
  uint64_t hash = 0;
  for (const at::Tensor& tensor : tensors) {
    const std::string shape = concat(tensor.scalar_type(), tensor.sizes());
    hash = hashed(hash, shape.data(), shape.size());
    if (tensor.layout() != at::kStrided || tensor.is_meta() || tensor.is_quantized()) continue;  // no bytes to read as they are
    const at::Tensor samples = some_samples(tensor);
    hash = hashed(hash, samples.const_data_ptr(), samples.nbytes());
  }
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(hash));
  return digits;
}

}  // namespace marlin::detail
