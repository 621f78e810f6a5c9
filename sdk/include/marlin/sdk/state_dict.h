// The state of a model, an optimizer or a trainer as plain data: what checkpoints hold.
#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "marlin/sdk/abi.h"

namespace marlin {

class Value;

struct List {
  std::vector<Value> items;
};
struct Tuple {
  std::vector<Value> items;
};

/// A dict's key. Python's state dicts use both kinds: names for parameters, numbers for optimizer state.
using Key = std::variant<int64_t, std::string>;
/// The key as a person reads it: `weight` or `0`.
[[nodiscard]] MARLIN_ABI std::string to_string(const Key& key);

/// An ordered dict. Copying copies the structure; tensors are shared, as everywhere in LibTorch.
/// Round trip through a checkpoint keeps order and kind. Not synchronised: one thread at a time.
class MARLIN_ABI StateDict {
 public:
  struct Entry;

  StateDict();
  StateDict(std::initializer_list<std::pair<Key, Value>> entries);
  StateDict(const StateDict&);
  StateDict(StateDict&&) noexcept;
  StateDict& operator=(const StateDict&);
  StateDict& operator=(StateDict&&) noexcept;
  ~StateDict();

  [[nodiscard]] size_t size() const noexcept;
  [[nodiscard]] bool empty() const noexcept;
  [[nodiscard]] const Entry* begin() const noexcept;
  [[nodiscard]] const Entry* end() const noexcept;
  [[nodiscard]] Entry* begin() noexcept;
  [[nodiscard]] Entry* end() noexcept;

  /// Sets or replaces; a new key goes to the end. References to other values become invalid.
  Value& set(Key key, Value value);
  /// The value, made null first if there is none.
  Value& operator[](const Key& key);
  /// Null if there is none.
  [[nodiscard]] const Value* find(const Key& key) const noexcept;
  [[nodiscard]] Value* find(const Key& key) noexcept;
  [[nodiscard]] bool contains(const Key& key) const noexcept { return find(key) != nullptr; }
  /// @throws Error kNotFound naming the key.
  [[nodiscard]] const Value& at(const Key& key) const;
  /// Whether there was one. Takes time in the number of entries.
  bool erase(const Key& key);

  /// Python's collections.OrderedDict rather than dict. Kept, and otherwise without meaning here.
  bool ordered_dict = false;
  /// An OrderedDict's instance attributes (`_metadata` of module states); null: none. Kept, and otherwise without meaning here.
  std::shared_ptr<const StateDict> attributes;

 private:
  std::vector<Entry> entries_;
  std::unordered_map<Key, size_t> index_;
};

/// One value of a StateDict.
class MARLIN_ABI Value {
 public:
  using Variant = std::variant<std::monostate, bool, int64_t, double, std::string, at::Tensor, List, Tuple, StateDict>;

  Value() = default;  // null
  Value(std::nullptr_t) {}
  Value(bool value) : data_(value) {}
  template <std::integral T> requires(!std::same_as<T, bool>) Value(T value) : data_(static_cast<int64_t>(value)) {}
  template <std::floating_point T> Value(T value) : data_(static_cast<double>(value)) {}
  Value(const char* text) : data_(std::string(text)) {}
  Value(std::string_view text) : data_(std::string(text)) {}
  Value(std::string text) : data_(std::move(text)) {}
  Value(at::Tensor tensor) : data_(std::move(tensor)) {}
  Value(List list) : data_(std::move(list)) {}
  Value(Tuple tuple) : data_(std::move(tuple)) {}
  Value(StateDict dict) : data_(std::move(dict)) {}

  [[nodiscard]] const Variant& variant() const noexcept { return data_; }
  template <class T> [[nodiscard]] const T* get_if() const noexcept { return std::get_if<T>(&data_); }
  template <class T> [[nodiscard]] T* get_if() noexcept { return std::get_if<T>(&data_); }
  [[nodiscard]] bool is_null() const noexcept { return data_.index() == 0; }
  /// "null", "bool", "int", "float", "string", "tensor", "list", "tuple" or "dict".
  [[nodiscard]] const char* kind() const noexcept;

  /// The value as that kind. @throws Error kMismatch that says which kind was found. as_double takes an int, too.
  [[nodiscard]] bool as_bool() const;
  [[nodiscard]] int64_t as_int() const;
  [[nodiscard]] double as_double() const;
  [[nodiscard]] const std::string& as_string() const;
  [[nodiscard]] const at::Tensor& as_tensor() const;
  /// The items of a list or a tuple.
  [[nodiscard]] const std::vector<Value>& as_items() const;
  [[nodiscard]] const StateDict& as_dict() const;

 private:
  Variant data_;
};

struct StateDict::Entry {
  Key key;
  Value value;
};

/// Whether both are the same data: kinds, keys, order, dtypes, shapes and every bit of every tensor (two NaN of the same
/// bits are equal, 0.0 and -0.0 are not). Not compared: `ordered_dict`, `attributes`, strides, sharing of storage.
[[nodiscard]] MARLIN_ABI bool equal(const Value& a, const Value& b);
[[nodiscard]] MARLIN_ABI bool equal(const StateDict& a, const StateDict& b);

/// A copy whose tensors share no memory with the original's; tensors that share storage here share it there.
[[nodiscard]] MARLIN_ABI StateDict clone(const StateDict& state);

}  // namespace marlin
