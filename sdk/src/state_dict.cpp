#include "marlin/sdk/state_dict.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstring>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {

std::string to_string(const Key& key) {
  if (const auto* number = std::get_if<int64_t>(&key)) return std::to_string(*number);
  return std::get<std::string>(key);
}

StateDict::StateDict() = default;
StateDict::StateDict(const StateDict&) = default;
StateDict::StateDict(StateDict&&) noexcept = default;
StateDict& StateDict::operator=(const StateDict&) = default;
StateDict& StateDict::operator=(StateDict&&) noexcept = default;
StateDict::~StateDict() = default;

StateDict::StateDict(std::initializer_list<std::pair<Key, Value>> entries) {
  for (const auto& [key, value] : entries) set(key, value);
}

size_t StateDict::size() const noexcept { return entries_.size(); }
bool StateDict::empty() const noexcept { return entries_.empty(); }
const StateDict::Entry* StateDict::begin() const noexcept { return entries_.data(); }
const StateDict::Entry* StateDict::end() const noexcept { return entries_.data() + entries_.size(); }
StateDict::Entry* StateDict::begin() noexcept { return entries_.data(); }
StateDict::Entry* StateDict::end() noexcept { return entries_.data() + entries_.size(); }

Value& StateDict::set(Key key, Value value) {
  Value& place = (*this)[key];
  place = std::move(value);
  return place;
}

Value& StateDict::operator[](const Key& key) {
  const auto [at, inserted] = index_.try_emplace(key, entries_.size());
  if (inserted) entries_.push_back({key, Value()});
  return entries_[at->second].value;
}

const Value* StateDict::find(const Key& key) const noexcept {
  const auto at = index_.find(key);
  return at == index_.end() ? nullptr : &entries_[at->second].value;
}

Value* StateDict::find(const Key& key) noexcept { return const_cast<Value*>(std::as_const(*this).find(key)); }

const Value& StateDict::at(const Key& key) const {
  if (const Value* value = find(key)) return *value;
  throw Error(Errc::kNotFound, concat("no entry '", to_string(key), "' in a state dict of ", size(), " entries"));
}

bool StateDict::erase(const Key& key) {
  const auto at = index_.find(key);
  if (at == index_.end()) return false;
  entries_.erase(entries_.begin() + static_cast<ptrdiff_t>(at->second));
  index_.clear();
  for (size_t i = 0; i < entries_.size(); ++i) index_.emplace(entries_[i].key, i);
  return true;
}

namespace {
template <class T>
const T& as(const Value& value, const char* wanted) {
  if (const T* found = value.get_if<T>()) return *found;
  throw Error(Errc::kMismatch, concat("expected ", wanted, ", found ", value.kind()));
}
}  // namespace

const char* Value::kind() const noexcept {
  static constexpr const char* kNames[] = {"null", "bool", "int", "float", "string", "tensor", "list", "tuple", "dict"};
  static_assert(std::variant_size_v<Variant> == std::size(kNames));
  return kNames[data_.index()];
}

bool Value::as_bool() const { return as<bool>(*this, "bool"); }
int64_t Value::as_int() const { return as<int64_t>(*this, "int"); }
double Value::as_double() const {
  if (const auto* number = get_if<int64_t>()) return static_cast<double>(*number);
  return as<double>(*this, "float");
}
const std::string& Value::as_string() const { return as<std::string>(*this, "string"); }
const at::Tensor& Value::as_tensor() const { return as<at::Tensor>(*this, "tensor"); }
const std::vector<Value>& Value::as_items() const {
  if (const List* list = get_if<List>()) return list->items;
  return as<Tuple>(*this, "list or tuple").items;
}
const StateDict& Value::as_dict() const { return as<StateDict>(*this, "dict"); }

namespace {

bool equal_bits(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0; }

bool equal_tensors(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const at::Tensor left = a.cpu().contiguous();
  const at::Tensor right = b.cpu().contiguous();
  return left.nbytes() == 0 || std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

bool equal_items(const std::vector<Value>& a, const std::vector<Value>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!equal(a[i], b[i])) return false;
  }
  return true;
}

}  // namespace

bool equal(const Value& a, const Value& b) {
  if (a.variant().index() != b.variant().index()) return false;
  if (const auto* number = a.get_if<double>()) return equal_bits(*number, *b.get_if<double>());
  if (const auto* tensor = a.get_if<at::Tensor>()) return equal_tensors(*tensor, *b.get_if<at::Tensor>());
  if (a.get_if<List>() || a.get_if<Tuple>()) return equal_items(a.as_items(), b.as_items());
  if (const auto* dict = a.get_if<StateDict>()) return equal(*dict, *b.get_if<StateDict>());
  if (const auto* flag = a.get_if<bool>()) return *flag == *b.get_if<bool>();
  if (const auto* number = a.get_if<int64_t>()) return *number == *b.get_if<int64_t>();
  if (const auto* text = a.get_if<std::string>()) return *text == *b.get_if<std::string>();
  return true;  // null
}

bool equal(const StateDict& a, const StateDict& b) {
  if (a.size() != b.size()) return false;
  for (const auto *x = a.begin(), *y = b.begin(); x != a.end(); ++x, ++y) {
    if (x->key != y->key || !equal(x->value, y->value)) return false;
  }
  return true;
}

namespace {

using Storages = std::unordered_map<const c10::StorageImpl*, c10::Storage>;

Value clone_value(const Value& value, Storages& copies);

at::Tensor clone_tensor(const at::Tensor& tensor, Storages& copies) {
  if (!tensor.defined() || !tensor.has_storage()) return tensor.defined() ? tensor.clone() : tensor;
  auto [at, inserted] = copies.try_emplace(tensor.storage().unsafeGetStorageImpl());
  if (inserted) {
    const auto bytes = static_cast<int64_t>(tensor.storage().nbytes());
    at::Tensor copy = at::empty({bytes}, tensor.options().dtype(at::kByte).requires_grad(false));
    at::Tensor whole = at::empty({0}, copy.options()).set_(tensor.storage(), 0, {bytes}, {1});
    copy.copy_(whole);
    at->second = copy.storage();
  }
  return at::empty({0}, tensor.options().requires_grad(false)).set_(at->second, tensor.storage_offset(), tensor.sizes(), tensor.strides());
}

std::vector<Value> clone_items(const std::vector<Value>& items, Storages& copies) {
  std::vector<Value> result;
  result.reserve(items.size());
  for (const Value& item : items) result.push_back(clone_value(item, copies));
  return result;
}

StateDict clone_dict(const StateDict& state, Storages& copies) {
  StateDict result;
  result.ordered_dict = state.ordered_dict;
  result.attributes = state.attributes;
  for (const StateDict::Entry& entry : state) result.set(entry.key, clone_value(entry.value, copies));
  return result;
}

Value clone_value(const Value& value, Storages& copies) {
  if (const auto* tensor = value.get_if<at::Tensor>()) return clone_tensor(*tensor, copies);
  if (const auto* list = value.get_if<List>()) return List{clone_items(list->items, copies)};
  if (const auto* tuple = value.get_if<Tuple>()) return Tuple{clone_items(tuple->items, copies)};
  if (const auto* dict = value.get_if<StateDict>()) return clone_dict(*dict, copies);
  return value;
}

}  // namespace

StateDict clone(const StateDict& state) {
  Storages copies;
  return clone_dict(state, copies);
}

}  // namespace marlin
