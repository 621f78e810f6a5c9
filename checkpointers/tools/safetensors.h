// Files in the safetensors format: an 8-byte length, a JSON header of that length, and the tensors' bytes, without gaps.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace marlin::ckpt {

using TextPairs = std::vector<std::pair<std::string, std::string>>;

struct NamedTensor {
  std::string name;
  at::Tensor tensor;  ///< On the CPU.
};

/// Writes them, whole or not at all, by write_atomically(). Those of the largest elements come first, so that each begins at a
/// multiple of its element's size; equal tensors and metadata give equal bytes. Shared storage is written once for each tensor.
/// @param metadata  the header's `__metadata__`.
/// @return the file's size in bytes.
/// @throws Error kUnsupported that names the tensor: its dtype is none of the format's, its name is `__metadata__` or another's,
///   or the header is larger than readers take. Nothing has been written then. kIo as write_atomically().
uint64_t write_safetensors(const std::filesystem::path& file, std::vector<NamedTensor> tensors, const TextPairs& metadata);

}  // namespace marlin::ckpt
