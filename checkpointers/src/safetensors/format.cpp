#include "safetensors/format.h"

namespace marlin::safetensors {
namespace {

using enum c10::ScalarType;

// Source: safetensors/src/tensor.rs, Dtype. Left out: elements of less than a byte (F4, F6).
constexpr Dtype kDtypes[] = {
    {"BOOL", Bool, true},
    {"U8", Byte, true},
    {"I8", Char, true},
    {"F8_E5M2", Float8_e5m2, true},
    {"F8_E4M3", Float8_e4m3fn, true},
    {"F8_E8M0", Float8_e8m0fnu, true},
    {"F8_E4M3FNUZ", Float8_e4m3fnuz, false},
    {"F8_E5M2FNUZ", Float8_e5m2fnuz, false},
    {"I16", Short, true},
    {"U16", UInt16, true},
    {"F16", Half, true},
    {"BF16", BFloat16, true},
    {"I32", Int, true},
    {"U32", UInt32, true},
    {"F32", Float, true},
    {"C64", ComplexFloat, false},
    {"I64", Long, true},
    {"U64", UInt64, true},
    {"F64", Double, true},
};

}  // namespace

const Dtype* dtype_of_name(std::string_view name) noexcept {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.name == name) return &dtype;
  }
  return nullptr;
}

const Dtype* dtype_of(c10::ScalarType type) noexcept {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.type == type) return &dtype;
  }
  return nullptr;
}

}  // namespace marlin::safetensors
