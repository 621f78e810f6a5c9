#include "distributed/value_bytes.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <type_traits>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

class Encoder {
 public:
  void put(const Value& value) {
    number(static_cast<uint8_t>(value.variant().index()));
    std::visit([this](const auto& held) { put_held(held); }, value.variant());
  }
  std::string bytes;

 private:
  template <class Number>
  void number(Number value) {
    static_assert(std::is_trivially_copyable_v<Number>);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void put_held(std::monostate) {}
  void put_held(bool value) { number(value); }
  void put_held(int64_t value) { number(value); }
  void put_held(double value) { number(value); }
  void put_held(const std::string& text) {
    number(static_cast<uint64_t>(text.size()));
    bytes += text;
  }
  void put_held(const List& list) { put_items(list.items); }
  void put_held(const Tuple& tuple) { put_items(tuple.items); }
  void put_items(const std::vector<Value>& items) {
    number(static_cast<uint64_t>(items.size()));
    for (const Value& item : items) put(item);
  }
  void put_held(const StateDict& dict) {
    number(dict.ordered_dict);
    number(dict.attributes != nullptr);
    if (dict.attributes) put_held(*dict.attributes);
    number(static_cast<uint64_t>(dict.size()));
    for (const auto& [key, value] : dict) {
      number(static_cast<uint8_t>(key.index()));
      std::visit([this](const auto& held) { put_held(held); }, key);
      put(value);
    }
  }
  void put_held(const at::Tensor& tensor) {
    number(tensor.defined());
    if (!tensor.defined()) return;
    if (tensor.layout() != at::kStrided) throw Error(Errc::kUnsupported, concat("a tensor of layout ", tensor.layout(), " cannot be sent to another rank; make it dense"));
    const at::Tensor dense = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg();
    number(static_cast<int8_t>(dense.scalar_type()));
    number(static_cast<uint64_t>(dense.dim()));
    for (const int64_t size : dense.sizes()) number(size);
    if (dense.nbytes() > 0) bytes.append(static_cast<const char*>(dense.const_data_ptr()), dense.nbytes());
  }
};

class Decoder {
 public:
  explicit Decoder(const std::string& bytes) : bytes_(bytes) {}

  Value value() {
    switch (number<uint8_t>()) {
      case 0: return {};
      case 1: return number<bool>();
      case 2: return number<int64_t>();
      case 3: return number<double>();
      case 4: return text();
      case 5: return tensor();
      case 6: return List{items()};
      case 7: return Tuple{items()};
      case 8: return dict();
      default: broken();
    }
  }
  void end() const {
    if (at_ != bytes_.size()) broken();
  }

 private:
  [[noreturn]] static void broken() { throw Error(Errc::kCorrupt, "what another rank sent is no state: do all ranks run the same program?"); }

  const char* take(size_t size) {
    if (size > bytes_.size() - at_) broken();
    at_ += size;
    return bytes_.data() + at_ - size;
  }
  template <class Number>
  Number number() {
    Number value;
    std::memcpy(&value, take(sizeof(value)), sizeof(value));
    return value;
  }
  std::string text() {
    const auto size = number<uint64_t>();
    return {take(size), size};
  }
  std::vector<Value> items() {
    std::vector<Value> items;
    for (auto left = number<uint64_t>(); left > 0; --left) items.push_back(value());
    return items;
  }
  StateDict dict() {
    StateDict dict;
    dict.ordered_dict = number<bool>();
    if (number<bool>()) dict.attributes = std::make_shared<const StateDict>(this->dict());
    for (auto left = number<uint64_t>(); left > 0; --left) {
      Key key = number<uint8_t>() == 0 ? Key(number<int64_t>()) : Key(text());
      dict.set(std::move(key), value());
    }
    return dict;
  }
  at::Tensor tensor() {
    if (!number<bool>()) return {};
    const auto type = static_cast<at::ScalarType>(number<int8_t>());
    std::vector<int64_t> sizes(number<uint64_t>() & 0xFF);
    for (int64_t& size : sizes) size = number<int64_t>();
    at::Tensor tensor = at::empty(sizes, type);
    if (tensor.nbytes() > 0) std::memcpy(tensor.mutable_data_ptr(), take(tensor.nbytes()), tensor.nbytes());
    return tensor;
  }

  const std::string& bytes_;
  size_t at_ = 0;
};

}  // namespace

std::string to_bytes(const Value& value) {
  Encoder encoder;
  encoder.put(value);
  return std::move(encoder.bytes);
}

Value value_of_bytes(const std::string& bytes) {
  Decoder decoder(bytes);
  Value value = decoder.value();
  decoder.end();
  return value;
}

std::string to_bytes(const Checkpoint& checkpoint) {
  return to_bytes(Value(List{{checkpoint.module_interface_state, checkpoint.trainer_state, checkpoint.trainer_backend_state, checkpoint.source}}));
}

Checkpoint checkpoint_of_bytes(const std::string& bytes) {
  const Value value = value_of_bytes(bytes);
  const std::vector<Value>& parts = value.as_items();
  return {parts.at(0).as_dict(), parts.at(1).as_dict(), parts.at(2).as_dict(), parts.at(3).as_string()};
}

}  // namespace marlin
