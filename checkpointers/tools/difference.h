// Where two states differ.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "marlin/sdk/state_dict.h"

namespace marlin::ckpt {

/// Of two tensors of one dtype and shape.
struct TensorDifference {
  int64_t elements = 0;    ///< Of each.
  int64_t different = 0;   ///< Whose bits differ.
  int64_t with_nan = 0;    ///< Of those, where either is NaN, so that there is no distance.
  std::optional<double> max_abs;  ///< The largest distance of the others. Nothing: there are none, or the dtype holds no numbers.
};
[[nodiscard]] TensorDifference compare(const at::Tensor& a, const at::Tensor& b);

struct Difference {
  enum class What : uint8_t {
    kOnlyInA,
    kOnlyInB,
    kKind,      ///< Other kinds of value, or lists of other lengths.
    kValue,     ///< Numbers, texts.
    kLayout,    ///< Tensors of other dtypes or shapes.
    kElements,  ///< Tensors.
  };
  std::string path;
  What what = What::kValue;
  const Value* a = nullptr;  ///< Borrowed from the states; null: not there.
  const Value* b = nullptr;
  TensorDifference tensor = {};  ///< For kElements.
};

struct Comparison {
  std::vector<Difference> differences;  ///< In the order of A; what only B has comes after the rest of its dict.
  uint64_t values = 0;                  ///< Tensors and other values that both have: all were compared.
  uint64_t tensors = 0;
  [[nodiscard]] bool equal() const noexcept { return differences.empty(); }
};

/// Compares values by the way to them: numbers, texts and tensors bit by bit (two NaN of the same bits are equal, 0.0 and -0.0
/// are not), tensors with dtype and shape. The order of a dict's keys, its kind and attributes, strides and shared storage do
/// not count; a list and a tuple, or the keys 0 and "0", are not the same. Both outlive the result.
[[nodiscard]] Comparison compare(const StateDict& a, const StateDict& b);

}  // namespace marlin::ckpt
