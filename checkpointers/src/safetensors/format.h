// What the writer and the reader of safetensors files both know.
#pragma once

#include <c10/core/ScalarType.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace marlin::safetensors {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

inline constexpr size_t kLengthSize = 8;            // of the number that a file begins with
inline constexpr size_t kMaxHeader = 100'000'000;   // bytes; what readers of the format take
inline constexpr size_t kMaxDimensions = 64;
inline constexpr std::string_view kMetadata = "__metadata__";

// Where libmarlin's hashes are: a header that has them begins with kBeforeHash, the digits of its own hash, kBeforeTensorHashes and those
// of the tensors' hashes in the order of their bytes, one after the other. Both have their size before they are known.
inline constexpr std::string_view kHashKey = "marlin_xxh3_128";
inline constexpr std::string_view kTensorHashesKey = "marlin_tensors_xxh3_128";
inline constexpr std::string_view kBeforeHash = R"({"__metadata__":{"marlin_xxh3_128":")";
inline constexpr std::string_view kBeforeTensorHashes = R"(","marlin_tensors_xxh3_128":")";

struct Dtype {
  std::string_view name;  ///< In the format.
  c10::ScalarType type;
  bool written;  ///< False: only newer readers know it, so it is read but not written.
};

/// Null if there is none.
[[nodiscard]] const Dtype* dtype_of_name(std::string_view name) noexcept;
[[nodiscard]] const Dtype* dtype_of(c10::ScalarType type) noexcept;

}  // namespace marlin::safetensors
