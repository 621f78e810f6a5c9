// The element types of tensors as a pickle names them. No LibTorch header.
#pragma once

#include <cstdint>
#include <string_view>

namespace marlin::archive {

enum class Dtype : uint8_t {
  kFloat32, kFloat64, kFloat16, kBFloat16, kInt64, kInt32, kInt16, kInt8, kUInt8, kBool, kComplex64, kComplex128,
  kUInt16, kUInt32, kUInt64, kComplex32, kBComplex32, kFloat8E5M2, kFloat8E4M3FN, kFloat8E5M2FNUZ, kFloat8E4M3FNUZ, kFloat8E8M0FNU,
  kFloat4E2M1FNx2, kBits1x8, kBits2x4, kBits4x2, kBits8, kBits16,
};

struct DtypeInfo {
  Dtype dtype;
  std::string_view name;     ///< "float32": the global is "torch.float32".
  std::string_view storage;  ///< "FloatStorage" of the global "torch.FloatStorage"; empty for types that have only untyped storage.
  int64_t item_size;         ///< Bytes.
};

[[nodiscard]] const DtypeInfo& dtype_info(Dtype dtype) noexcept;
/// Null if there is none.
[[nodiscard]] const DtypeInfo* dtype_of_name(std::string_view name) noexcept;
[[nodiscard]] const DtypeInfo* dtype_of_storage(std::string_view storage) noexcept;

}  // namespace marlin::archive
