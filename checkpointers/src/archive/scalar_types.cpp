#include "archive/scalar_types.h"

#include <iterator>

namespace marlin::archive {
namespace {

using c10::ScalarType;

// By Dtype.
constexpr ScalarType kScalarTypes[] = {
    ScalarType::Float,           ScalarType::Double,          ScalarType::Half,           ScalarType::BFloat16,         ScalarType::Long,
    ScalarType::Int,             ScalarType::Short,           ScalarType::Char,           ScalarType::Byte,             ScalarType::Bool,
    ScalarType::ComplexFloat,    ScalarType::ComplexDouble,   ScalarType::UInt16,         ScalarType::UInt32,           ScalarType::UInt64,
    ScalarType::ComplexHalf,     ScalarType::BComplex32,      ScalarType::Float8_e5m2,    ScalarType::Float8_e4m3fn,    ScalarType::Float8_e5m2fnuz,
    ScalarType::Float8_e4m3fnuz, ScalarType::Float8_e8m0fnu,  ScalarType::Float4_e2m1fn_x2, ScalarType::Bits1x8,        ScalarType::Bits2x4,
    ScalarType::Bits4x2,         ScalarType::Bits8,           ScalarType::Bits16,
};
static_assert(std::size(kScalarTypes) == static_cast<size_t>(Dtype::kBits16) + 1);

}  // namespace

c10::ScalarType scalar_type(Dtype dtype) noexcept { return kScalarTypes[static_cast<size_t>(dtype)]; }

std::optional<Dtype> dtype_of(c10::ScalarType type) noexcept {
  for (size_t i = 0; i < std::size(kScalarTypes); ++i) {
    if (kScalarTypes[i] == type) return static_cast<Dtype>(i);
  }
  return std::nullopt;
}

}  // namespace marlin::archive
