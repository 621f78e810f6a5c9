// Between LibTorch's element types and the archive's.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

#include "archive/dtype.h"

namespace marlin::archive {

[[nodiscard]] c10::ScalarType scalar_type(Dtype dtype) noexcept;
/// Nothing for quantised types and those that torch.load does not know either.
[[nodiscard]] std::optional<Dtype> dtype_of(c10::ScalarType type) noexcept;

}  // namespace marlin::archive
