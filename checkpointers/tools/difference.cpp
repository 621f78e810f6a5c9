#include "difference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "contents.h"

namespace marlin::ckpt {
namespace {

// Whole numbers are subtracted as such: as doubles, neighbours above 2^53 would seem equal.
template <class T>
double distance(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    const auto [low, high] = std::minmax(a, b);
    return static_cast<double>(static_cast<Unsigned>(static_cast<Unsigned>(high) - static_cast<Unsigned>(low)));
  } else if constexpr (c10::is_complex<T>::value) {
    return std::hypot(distance(a.real(), b.real()), distance(a.imag(), b.imag()));
  } else {
    return std::abs(static_cast<double>(a) - static_cast<double>(b));
  }
}

template <class T>
bool is_nan(T value) {
  if constexpr (std::is_integral_v<T>) {
    return false;
  } else if constexpr (c10::is_complex<T>::value) {
    return std::isnan(static_cast<double>(value.real())) || std::isnan(static_cast<double>(value.imag()));
  } else {
    return std::isnan(static_cast<double>(value));
  }
}

template <class T>
void compare_numbers(const at::Tensor& a, const at::Tensor& b, TensorDifference& result) {
  const auto* left = static_cast<const T*>(a.const_data_ptr());
  const auto* right = static_cast<const T*>(b.const_data_ptr());
  for (int64_t i = 0; i < result.elements; ++i) {
    if (std::memcmp(left + i, right + i, sizeof(T)) == 0) continue;
    ++result.different;
    if (is_nan(left[i]) || is_nan(right[i])) {
      ++result.with_nan;
    } else {
      result.max_abs = std::max(result.max_abs.value_or(0), distance(left[i], right[i]));
    }
  }
}

// Of dtypes that pack bits.
void compare_bytes(const at::Tensor& a, const at::Tensor& b, TensorDifference& result) {
  const size_t size = a.element_size();
  const auto* left = static_cast<const char*>(a.const_data_ptr());
  const auto* right = static_cast<const char*>(b.const_data_ptr());
  for (int64_t i = 0; i < result.elements; ++i, left += size, right += size) result.different += std::memcmp(left, right, size) != 0;
}

void compare_elements(const at::Tensor& a, const at::Tensor& b, TensorDifference& result) {
  switch (a.scalar_type()) {
    case at::kBool: return compare_numbers<uint8_t>(a, b, result);
    case at::kByte: return compare_numbers<uint8_t>(a, b, result);
    case at::kChar: return compare_numbers<int8_t>(a, b, result);
    case at::kShort: return compare_numbers<int16_t>(a, b, result);
    case at::kInt: return compare_numbers<int32_t>(a, b, result);
    case at::kLong: return compare_numbers<int64_t>(a, b, result);
    case at::kUInt16: return compare_numbers<uint16_t>(a, b, result);
    case at::kUInt32: return compare_numbers<uint32_t>(a, b, result);
    case at::kUInt64: return compare_numbers<uint64_t>(a, b, result);
    case at::kHalf: return compare_numbers<c10::Half>(a, b, result);
    case at::kBFloat16: return compare_numbers<c10::BFloat16>(a, b, result);
    case at::kFloat: return compare_numbers<float>(a, b, result);
    case at::kDouble: return compare_numbers<double>(a, b, result);
    case at::kFloat8_e5m2: return compare_numbers<c10::Float8_e5m2>(a, b, result);
    case at::kFloat8_e4m3fn: return compare_numbers<c10::Float8_e4m3fn>(a, b, result);
    case at::kFloat8_e5m2fnuz: return compare_numbers<c10::Float8_e5m2fnuz>(a, b, result);
    case at::kFloat8_e4m3fnuz: return compare_numbers<c10::Float8_e4m3fnuz>(a, b, result);
    case at::kComplexHalf: return compare_numbers<c10::complex<c10::Half>>(a, b, result);
    case at::kComplexFloat: return compare_numbers<c10::complex<float>>(a, b, result);
    case at::kComplexDouble: return compare_numbers<c10::complex<double>>(a, b, result);
    default: return compare_bytes(a, b, result);
  }
}

bool equal_scalars(const Value& a, const Value& b) {
  if (const auto* number = a.get_if<double>()) return std::bit_cast<uint64_t>(*number) == std::bit_cast<uint64_t>(*b.get_if<double>());
  if (const auto* number = a.get_if<int64_t>()) return *number == *b.get_if<int64_t>();
  if (const auto* flag = a.get_if<bool>()) return *flag == *b.get_if<bool>();
  if (const auto* text = a.get_if<std::string>()) return *text == *b.get_if<std::string>();
  return true;  // null
}

class Comparer {
 public:
  void dicts(const StateDict& a, const StateDict& b, const std::string& path) {
    for (const StateDict::Entry& entry : a) {
      const std::string here = joined(path, marlin::to_string(entry.key));
      if (const Value* other = b.find(entry.key)) {
        values(entry.value, *other, here);
      } else {
        add({here, Difference::What::kOnlyInA, &entry.value, nullptr});
      }
    }
    for (const StateDict::Entry& entry : b) {
      if (!a.contains(entry.key)) add({joined(path, marlin::to_string(entry.key)), Difference::What::kOnlyInB, nullptr, &entry.value});
    }
  }

  Comparison result;

 private:
  void values(const Value& a, const Value& b, const std::string& path) {
    if (a.variant().index() != b.variant().index()) return add({path, Difference::What::kKind, &a, &b});
    if (const auto* dict = a.get_if<StateDict>()) return dicts(*dict, *b.get_if<StateDict>(), path);
    if (is_container(a)) return items(a, b, path);
    ++result.values;
    if (a.get_if<at::Tensor>() != nullptr) return tensors(a.as_tensor(), b.as_tensor(), {path, Difference::What::kElements, &a, &b});
    if (!equal_scalars(a, b)) add({path, Difference::What::kValue, &a, &b});
  }

  void items(const Value& a, const Value& b, const std::string& path) {
    const std::vector<Value>&left = a.as_items(), &right = b.as_items();
    if (left.size() != right.size()) add({path, Difference::What::kKind, &a, &b});
    for (size_t i = 0; i < std::min(left.size(), right.size()); ++i) values(left[i], right[i], joined(path, std::to_string(i)));
  }

  void tensors(const at::Tensor& a, const at::Tensor& b, Difference difference) {
    ++result.tensors;
    if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) {
      difference.what = Difference::What::kLayout;
      return add(std::move(difference));
    }
    difference.tensor = compare(a, b);
    if (difference.tensor.different > 0) add(std::move(difference));
  }

  void add(Difference difference) { result.differences.push_back(std::move(difference)); }
};

}  // namespace

TensorDifference compare(const at::Tensor& a, const at::Tensor& b) {
  TensorDifference result;
  result.elements = a.numel();
  if (result.elements == 0) return result;
  const at::Tensor left = a.contiguous(), right = b.contiguous();
  if (std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) != 0) compare_elements(left, right, result);
  return result;
}

Comparison compare(const StateDict& a, const StateDict& b) {
  Comparer comparer;
  comparer.dicts(a, b, "");
  return std::move(comparer.result);
}

}  // namespace marlin::ckpt
