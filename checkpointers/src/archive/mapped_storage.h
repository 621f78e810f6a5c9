// Memory of tensors in the mapping of a file.
#pragma once

#include <c10/core/Storage.h>

#include <cstdint>
#include <memory>

#include "archive/mapped_file.h"

namespace marlin::archive {

/// A storage over a range of the mapping, which lives as long as it does; or over a copy, if the range is empty or does not start at a
/// multiple of `alignment`. @param offset, size  bytes; inside the file.
[[nodiscard]] c10::Storage storage_in(const std::shared_ptr<const MappedFile>& file, uint64_t offset, uint64_t size, size_t alignment);

}  // namespace marlin::archive
