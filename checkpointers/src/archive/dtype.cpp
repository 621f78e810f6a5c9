#include "archive/dtype.h"

namespace marlin::archive {
namespace {

// By Dtype. Source: torch/storage.py, _dtype_to_storage_type_map and _new_dtypes.
constexpr DtypeInfo kInfos[] = {
    {Dtype::kFloat32, "float32", "FloatStorage", 4},
    {Dtype::kFloat64, "float64", "DoubleStorage", 8},
    {Dtype::kFloat16, "float16", "HalfStorage", 2},
    {Dtype::kBFloat16, "bfloat16", "BFloat16Storage", 2},
    {Dtype::kInt64, "int64", "LongStorage", 8},
    {Dtype::kInt32, "int32", "IntStorage", 4},
    {Dtype::kInt16, "int16", "ShortStorage", 2},
    {Dtype::kInt8, "int8", "CharStorage", 1},
    {Dtype::kUInt8, "uint8", "ByteStorage", 1},
    {Dtype::kBool, "bool", "BoolStorage", 1},
    {Dtype::kComplex64, "complex64", "ComplexFloatStorage", 8},
    {Dtype::kComplex128, "complex128", "ComplexDoubleStorage", 16},
    {Dtype::kUInt16, "uint16", "", 2},
    {Dtype::kUInt32, "uint32", "", 4},
    {Dtype::kUInt64, "uint64", "", 8},
    {Dtype::kComplex32, "complex32", "", 4},
    {Dtype::kBComplex32, "bcomplex32", "", 4},
    {Dtype::kFloat8E5M2, "float8_e5m2", "", 1},
    {Dtype::kFloat8E4M3FN, "float8_e4m3fn", "", 1},
    {Dtype::kFloat8E5M2FNUZ, "float8_e5m2fnuz", "", 1},
    {Dtype::kFloat8E4M3FNUZ, "float8_e4m3fnuz", "", 1},
    {Dtype::kFloat8E8M0FNU, "float8_e8m0fnu", "", 1},
    {Dtype::kFloat4E2M1FNx2, "float4_e2m1fn_x2", "", 1},
    {Dtype::kBits1x8, "bits1x8", "", 1},
    {Dtype::kBits2x4, "bits2x4", "", 1},
    {Dtype::kBits4x2, "bits4x2", "", 1},
    {Dtype::kBits8, "bits8", "", 1},
    {Dtype::kBits16, "bits16", "", 2},
};

consteval bool in_order() {
  for (size_t i = 0; i < std::size(kInfos); ++i) {
    if (kInfos[i].dtype != static_cast<Dtype>(i)) return false;
  }
  return std::size(kInfos) == static_cast<size_t>(Dtype::kBits16) + 1;
}
static_assert(in_order());

}  // namespace

const DtypeInfo& dtype_info(Dtype dtype) noexcept { return kInfos[static_cast<size_t>(dtype)]; }

const DtypeInfo* dtype_of_name(std::string_view name) noexcept {
  for (const DtypeInfo& info : kInfos) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

const DtypeInfo* dtype_of_storage(std::string_view storage) noexcept {
  if (storage.empty()) return nullptr;
  for (const DtypeInfo& info : kInfos) {
    if (info.storage == storage) return &info;
  }
  return nullptr;
}

}  // namespace marlin::archive
