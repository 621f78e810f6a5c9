#include "archive/mapped_storage.h"

#include <c10/core/CPUAllocator.h>

#include <cstring>

namespace marlin::archive {

c10::Storage storage_in(const std::shared_ptr<const MappedFile>& file, uint64_t offset, uint64_t size, size_t alignment) {
  using Owner = std::shared_ptr<const MappedFile>;
  std::byte* data = file->bytes().data() + offset;
  if (size == 0 || reinterpret_cast<uintptr_t>(data) % alignment != 0) {
    c10::Storage copy(c10::Storage::use_byte_size_t(), size, c10::GetCPUAllocator()->allocate(size), c10::GetCPUAllocator(), true);
    if (size > 0) std::memcpy(copy.mutable_data(), data, size);
    return copy;
  }
  const auto release = [](void* owner) { delete static_cast<Owner*>(owner); };
  return {c10::Storage::use_byte_size_t(), size, at::DataPtr(data, new Owner(file), release, c10::Device(c10::kCPU))};
}

}  // namespace marlin::archive
