#include "safetensors/state_json.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "archive/report.h"
#include "archive/state_plan.h"

namespace marlin::safetensors {
namespace {

using archive::corrupt;
using archive::kMaxDepth;
using archive::printable;
using Json = nlohmann::json;

class Flattener {
 public:
  FlatState flatten(const StateDict& root) {
    dict(root);
    return std::move(flat_);
  }

 private:
  void dict(const StateDict& dict);
  void value(const Value& value);
  void named(const std::string& name, const Value& value);
  void items(const std::vector<Value>& items);
  void number(double number);
  void tensor(const at::Tensor& tensor);
  void text(const std::string& text);
  void put(std::string_view json) { flat_.json += json; }
  void down() {
    if (++depth_ > kMaxDepth) refuse(concat("is nested deeper than ", kMaxDepth));
  }
  [[noreturn]] void refuse(const std::string& why) const { archive::unsupported(path_.empty() ? "the state" : printable(path_), why); }

  FlatState flat_;
  std::unordered_set<std::string> names_;
  std::string path_;  // to the value at hand
  int depth_ = 0;
};

void Flattener::dict(const StateDict& dict) {
  down();
  put("{\"dict\":[");
  for (const StateDict::Entry& entry : dict) {
    put(&entry == dict.begin() ? "[" : ",[");
    if (const auto* index = std::get_if<int64_t>(&entry.key)) {
      put(std::to_string(*index));
    } else {
      text(std::get<std::string>(entry.key));
    }
    put(",");
    named(to_string(entry.key), entry.value);
    put("]");
  }
  put("]");
  if (dict.ordered_dict) put(",\"ordered\":true");
  if (dict.attributes != nullptr) {
    put(",\"attributes\":");
    named("attributes", *dict.attributes);
  }
  put("}");
  --depth_;
}

void Flattener::named(const std::string& name, const Value& item) {
  const size_t length = path_.size();
  path_ += path_.empty() ? name : "." + name;
  value(item);
  path_.resize(length);
}

void Flattener::value(const Value& value) {
  if (const auto* found = value.get_if<StateDict>()) return dict(*found);
  if (const auto* found = value.get_if<at::Tensor>()) return tensor(*found);
  if (const auto* found = value.get_if<std::string>()) return text(*found);
  if (const auto* found = value.get_if<int64_t>()) return put(std::to_string(*found));
  if (const auto* found = value.get_if<double>()) return number(*found);
  if (const auto* found = value.get_if<bool>()) return put(*found ? "true" : "false");
  if (const auto* found = value.get_if<List>()) return items(found->items);
  if (const auto* found = value.get_if<Tuple>()) {
    put("{\"tuple\":");
    items(found->items);
    return put("}");
  }
  put("null");
}

void Flattener::items(const std::vector<Value>& items) {
  down();
  put("[");
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) put(",");
    named(std::to_string(i), items[i]);
  }
  put("]");
  --depth_;
}

// JSON has no NaN, of which there are many, and no infinities. A whole number has a ".0", so that it is a float again.
void Flattener::number(double number) {
  if (std::isfinite(number)) return put(Json(number).dump());
  if (std::isinf(number)) return put(number > 0 ? "{\"float\":\"inf\"}" : "{\"float\":\"-inf\"}");
  char digits[16];
  const auto end = std::to_chars(digits, digits + sizeof digits, std::bit_cast<uint64_t>(number), 16).ptr;
  put(concat("{\"float\":\"nan\",\"bits\":\"", std::string_view(digits, end), "\"}"));
}

void Flattener::text(const std::string& text) {
  if (!archive::is_utf8(text)) refuse("text that is not UTF-8");
  put(Json(text).dump());
}

void Flattener::tensor(const at::Tensor& tensor) {
  if (const std::string why = archive::unwritable(tensor); !why.empty()) refuse(why);
  std::string name = path_;
  for (int count = 2; !names_.insert(name).second; ++count) name = concat(path_, "#", count);
  put("{\"tensor\":");
  text(name);
  put("}");
  flat_.tensors.push_back({std::move(name), tensor});
}

class Unflattener {
 public:
  Unflattener(SafetensorsReader& tensors, const std::filesystem::path& file) : tensors_(tensors), file_(file) {}
  StateDict dict(const Json& json) {
    down();
    StateDict result;
    for (const Json& pair : member(json, "dict", Json::value_t::array)) {
      if (!pair.is_array() || pair.size() != 2) fail("an entry of a dict is no pair");
      Key key = this->key(pair[0]);
      if (result.contains(key)) fail(concat("a dict has the key '", printable(to_string(key)), "' twice"));
      Value item = value(pair[1]);
      result.set(std::move(key), std::move(item));
    }
    result.ordered_dict = json.contains("ordered");
    if (json.contains("attributes")) result.attributes = std::make_shared<const StateDict>(dict(member(json, "attributes", Json::value_t::object)));
    --depth_;
    return result;
  }

 private:
  Value value(const Json& json) {
    if (json.is_null()) return nullptr;
    if (json.is_boolean()) return json.get<bool>();
    if (json.is_number()) return number(json);
    if (json.is_string()) return json.get<std::string>();
    if (json.is_array()) return List{items(json)};
    if (json.contains("dict")) return dict(json);
    if (json.contains("tuple")) return Tuple{items(member(json, "tuple", Json::value_t::array))};
    if (json.contains("float")) return special(json);
    return tensors_.tensor(member(json, "tensor", Json::value_t::string).get_ref<const std::string&>());
  }
  std::vector<Value> items(const Json& json) {
    down();
    std::vector<Value> result;
    result.reserve(json.size());
    for (const Json& item : json) result.push_back(value(item));
    --depth_;
    return result;
  }
  [[nodiscard]] Value number(const Json& json) const {
    if (json.is_number_float()) return json.get<double>();
    if (json.is_number_unsigned() && json.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) fail("a whole number has more than 64 bits");
    return json.get<int64_t>();
  }
  [[nodiscard]] Key key(const Json& json) const {
    if (json.is_string()) return json.get<std::string>();
    if (!json.is_number_integer()) fail("a key of a dict is neither text nor a whole number");
    return *number(json).get_if<int64_t>();
  }
  [[nodiscard]] double special(const Json& json) const {
    const auto& name = member(json, "float", Json::value_t::string).get_ref<const std::string&>();
    if (name == "inf") return std::numeric_limits<double>::infinity();
    if (name == "-inf") return -std::numeric_limits<double>::infinity();
    const auto& digits = member(json, "bits", Json::value_t::string).get_ref<const std::string&>();
    uint64_t bits = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), bits, 16);
    if (name != "nan" || error != std::errc() || end != digits.data() + digits.size()) fail("a float is none");
    return std::bit_cast<double>(bits);
  }
  [[nodiscard]] const Json& member(const Json& json, const char* name, Json::value_t type) const {
    const auto at = json.find(name);
    if (at == json.end() || at->type() != type) fail(concat("a value has no '", name, "', or one of another kind"));
    return *at;
  }
  void down() {
    if (++depth_ > kMaxDepth) fail(concat("is nested deeper than ", kMaxDepth));
  }
  [[noreturn]] void fail(const std::string& why) const { corrupt(concat(file_.string(), ": state"), why); }

  SafetensorsReader& tensors_;
  const std::filesystem::path& file_;
  int depth_ = 0;
};

}  // namespace

FlatState flatten(const StateDict& root) { return Flattener().flatten(root); }

StateDict unflatten(const nlohmann::json& json, SafetensorsReader& tensors, const std::filesystem::path& file) { return Unflattener(tensors, file).dict(json); }

}  // namespace marlin::safetensors
