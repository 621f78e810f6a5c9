#include "archive/pickle_reader.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <unordered_map>

#include "archive/pickle_calls.h"
#include "archive/pickle_opcodes.h"
#include "archive/report.h"

namespace marlin::archive {
namespace {

constexpr uint64_t kValueCost = 64;            // about the size of a Value
constexpr uint64_t kFreeCost = 256ULL << 20;   // always allowed
constexpr uint64_t kCostPerByte = 64;          // or this for every byte of the pickle, if it is more
constexpr const char* kTooMuch = "refers back to so many values that it would take too much memory";

[[noreturn]] void broken(const std::string& why) { corrupt(kPickleRecord, why); }

PickleNode* node_of(const PickleValue& value) {
  if (const auto* list = std::get_if<std::shared_ptr<PickleList>>(&value)) return list->get();
  if (const auto* dict = std::get_if<std::shared_ptr<PickleDict>>(&value)) return dict->get();
  return nullptr;
}

// A global or a storage, or an argument list with one in it.
bool is_internal(const PickleValue& value) {
  if (const PickleNode* node = node_of(value)) return node->internal;
  return std::holds_alternative<std::shared_ptr<const PickleGlobal>>(value) || std::holds_alternative<std::shared_ptr<const PickleStorage>>(value);
}

void require_plain(const PickleValue& value) {
  if (!is_internal(value)) return;
  const auto* global = std::get_if<std::shared_ptr<const PickleGlobal>>(&value);
  unsupported(kPickleRecord, concat("holds ", global != nullptr ? (*global)->name : "a type or a storage", " as a value, which a state dict cannot"));
}

uint64_t cost_of(const PickleValue& value) {
  if (const PickleNode* node = node_of(value)) return kValueCost + node->cost;
  if (const auto* text = std::get_if<std::shared_ptr<const std::string>>(&value)) return kValueCost + (*text)->size();
  if (const auto* tensor = std::get_if<std::shared_ptr<const PickleTensor>>(&value)) {
    return kValueCost * (4 + (*tensor)->sizes.size()) + (*tensor)->storage.key.size();
  }
  if (const auto* storage = std::get_if<std::shared_ptr<const PickleStorage>>(&value)) return kValueCost + (*storage)->key.size();
  return kValueCost;
}

// Python's unpickler: a stack, marks on it, and a memo of values to refer back to.
class Unpickler {
 public:
  explicit Unpickler(std::string_view bytes) : bytes_(bytes), max_cost_(std::max<uint64_t>(kFreeCost, kCostPerByte * bytes.size())) {}
  PickleValue read();

 private:
  // Each takes the opcodes of its kind; false: not one of them.
  bool read_scalar(Opcode opcode);
  bool read_container(Opcode opcode);
  bool read_reference(Opcode opcode);

  std::string_view take(size_t size);
  template <class T>
  T number();
  int64_t long_integer();
  std::shared_ptr<const std::string> text();
  std::string line();

  void push(PickleValue value) { stack_.push_back(std::move(value)); }
  [[nodiscard]] size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  PickleValue& top();
  PickleValue pop();
  std::vector<PickleValue> pop_to_mark();
  template <class T>
  T& top_container(const char* what);
  void refer(uint32_t index);

  void spend(uint64_t cost);
  void place(PickleNode& parent, const PickleValue& child, bool argument = false);
  void push_tuple(std::vector<PickleValue> items);
  void append(std::vector<PickleValue> items);
  void set_items(std::vector<PickleValue> items);
  void set_item(PickleDict& dict, PickleValue key, PickleValue value);
  void build();
  PickleValue finish();

  std::string_view bytes_;
  size_t position_ = 0;
  uint64_t max_cost_;
  uint64_t spent_ = 0;
  std::vector<PickleValue> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint32_t, PickleValue> memo_;
};

PickleValue Unpickler::read() {
  if (number<uint8_t>() != static_cast<uint8_t>(Opcode::kProto)) broken("is no pickle");
  if (const int protocol = number<uint8_t>(); protocol != 2) {
    unsupported(kPickleRecord, concat("is of pickle protocol ", protocol, "; torch.save writes 2 unless told otherwise"));
  }
  for (;;) {
    const auto opcode = static_cast<Opcode>(number<uint8_t>());
    if (opcode == Opcode::kStop) return finish();
    if (!read_scalar(opcode) && !read_container(opcode) && !read_reference(opcode)) {
      broken(concat("has opcode ", static_cast<int>(opcode), " at byte ", position_ - 1, ", which no state dict has"));
    }
  }
}

bool Unpickler::read_scalar(Opcode opcode) {
  switch (opcode) {
    case Opcode::kNone: push(std::monostate()); return true;
    case Opcode::kNewTrue: push(true); return true;
    case Opcode::kNewFalse: push(false); return true;
    case Opcode::kBinInt: push(static_cast<int64_t>(number<int32_t>())); return true;
    case Opcode::kBinInt1: push(static_cast<int64_t>(number<uint8_t>())); return true;
    case Opcode::kBinInt2: push(static_cast<int64_t>(number<uint16_t>())); return true;
    case Opcode::kLong1: push(long_integer()); return true;
    case Opcode::kBinFloat: push(std::bit_cast<double>(__builtin_bswap64(number<uint64_t>()))); return true;
    case Opcode::kBinUnicode: push(text()); return true;
    default: return false;
  }
}

bool Unpickler::read_container(Opcode opcode) {
  switch (opcode) {
    case Opcode::kMark: marks_.push_back(stack_.size()); return true;
    case Opcode::kEmptyDict: push(std::make_shared<PickleDict>()); return true;
    case Opcode::kEmptyList: push(std::make_shared<PickleList>()); return true;
    case Opcode::kEmptyTuple: push_tuple({}); return true;
    case Opcode::kTuple: push_tuple(pop_to_mark()); return true;
    case Opcode::kTuple1:
    case Opcode::kTuple2:
    case Opcode::kTuple3: {
      std::vector<PickleValue> items(static_cast<size_t>(opcode) - static_cast<size_t>(Opcode::kTuple1) + 1);
      for (size_t i = items.size(); i-- > 0;) items[i] = pop();
      push_tuple(std::move(items));
      return true;
    }
    case Opcode::kAppend: append({pop()}); return true;
    case Opcode::kAppends: append(pop_to_mark()); return true;
    case Opcode::kSetItem: {
      PickleValue value = pop();
      PickleValue key = pop();
      set_items({std::move(key), std::move(value)});
      return true;
    }
    case Opcode::kSetItems: set_items(pop_to_mark()); return true;
    default: return false;
  }
}

bool Unpickler::read_reference(Opcode opcode) {
  switch (opcode) {
    case Opcode::kBinPut: memo_[number<uint8_t>()] = top(); return true;
    case Opcode::kLongBinPut: memo_[number<uint32_t>()] = top(); return true;
    case Opcode::kBinGet: refer(number<uint8_t>()); return true;
    case Opcode::kLongBinGet: refer(number<uint32_t>()); return true;
    case Opcode::kGlobal: {
      const std::string module = line();
      push(allowed_global(concat(module, ".", line())));
      return true;
    }
    case Opcode::kBinPersId: push(storage_of(pop())); spend(cost_of(top())); return true;
    case Opcode::kReduce: {
      const PickleValue arguments = pop();
      const PickleValue function = pop();
      push(call_global(function, arguments));
      spend(cost_of(top()));
      return true;
    }
    case Opcode::kBuild: build(); return true;
    default: return false;
  }
}

std::string_view Unpickler::take(size_t size) {
  if (size > bytes_.size() - position_) broken("ends too early");
  position_ += size;
  return bytes_.substr(position_ - size, size);
}

template <class T>
T Unpickler::number() {
  T value;
  std::memcpy(&value, take(sizeof value).data(), sizeof value);
  return value;
}

int64_t Unpickler::long_integer() {
  const std::string_view digits = take(number<uint8_t>());
  if (digits.size() > sizeof(int64_t)) unsupported(kPickleRecord, "holds a whole number of more than 64 bits");
  int64_t value = !digits.empty() && (static_cast<unsigned char>(digits.back()) & 0x80) != 0 ? -1 : 0;
  if (!digits.empty()) std::memcpy(&value, digits.data(), digits.size());
  return value;
}

std::shared_ptr<const std::string> Unpickler::text() {
  const std::string_view value = take(number<uint32_t>());
  if (!is_utf8(value)) broken("holds text that is not UTF-8");
  return std::make_shared<const std::string>(value);
}

std::string Unpickler::line() {
  constexpr size_t kLongest = 200;
  const size_t size = bytes_.substr(position_, kLongest).find('\n');
  if (size == std::string_view::npos) broken("holds a name that does not end");
  const std::string_view result = take(size + 1);
  return std::string(result.substr(0, size));
}

PickleValue& Unpickler::top() {
  if (stack_.size() <= floor()) broken("takes more values than there are");
  return stack_.back();
}

PickleValue Unpickler::pop() {
  PickleValue value = std::move(top());
  stack_.pop_back();
  return value;
}

std::vector<PickleValue> Unpickler::pop_to_mark() {
  if (marks_.empty()) broken("lacks a mark");
  const auto first = stack_.begin() + static_cast<ptrdiff_t>(marks_.back());
  std::vector<PickleValue> items(std::make_move_iterator(first), std::make_move_iterator(stack_.end()));
  stack_.erase(first, stack_.end());
  marks_.pop_back();
  return items;
}

template <class T>
T& Unpickler::top_container(const char* what) {
  const auto* container = std::get_if<std::shared_ptr<T>>(&top());
  if (container == nullptr) broken(what);
  return **container;
}

void Unpickler::refer(uint32_t index) {
  const auto at = memo_.find(index);
  if (at == memo_.end()) broken("refers to a value that it has not");
  push(at->second);
}

// What comes of a reference that is copied, or looked at as a whole. It counts whether it ends up in the result or not: a few bytes
// that refer back to a long text, again and again, would take memory and time of the square of the pickle's size.
void Unpickler::spend(uint64_t cost) {
  spent_ += cost;
  if (spent_ > max_cost_) broken(kTooMuch);
}

// A container is complete before it becomes part of another: none can hold itself, and depth and cost are known exactly.
void Unpickler::place(PickleNode& parent, const PickleValue& child, bool argument) {
  if (parent.placed) broken("changes a container that is in use");
  PickleNode* node = node_of(child);
  if (node == &parent) broken("holds a container that holds itself");
  if (node != nullptr) {
    node->placed = true;
    parent.depth = std::max(parent.depth, node->depth + 1);
    if (parent.depth > kMaxDepth) broken(concat("is nested deeper than ", kMaxDepth));
  }
  if (!argument) require_plain(child);
  parent.internal = parent.internal || is_internal(child);
  parent.cost += cost_of(child);  // both are at most max_cost_ and some, so that nothing overflows
  if (parent.cost > max_cost_) broken(kTooMuch);
  if (!argument) spend(node != nullptr ? kValueCost : cost_of(child));
}

void Unpickler::push_tuple(std::vector<PickleValue> items) {
  auto tuple = std::make_shared<PickleList>();
  tuple->tuple = true;
  for (const PickleValue& item : items) place(*tuple, item, true);
  tuple->items = std::move(items);
  push(std::move(tuple));
}

void Unpickler::append(std::vector<PickleValue> items) {
  auto& list = top_container<PickleList>("appends to what is no list");
  if (list.tuple) broken("appends to a tuple");
  for (PickleValue& item : items) {
    place(list, item);
    list.items.push_back(std::move(item));
  }
}

void Unpickler::set_items(std::vector<PickleValue> items) {
  if (items.size() % 2 != 0) broken("holds a dict key without a value");
  auto& dict = top_container<PickleDict>("sets an entry of what is no dict");
  for (size_t i = 0; i < items.size(); i += 2) set_item(dict, std::move(items[i]), std::move(items[i + 1]));
}

void Unpickler::set_item(PickleDict& dict, PickleValue key, PickleValue value) {
  place(dict, key);
  place(dict, value);
  bool is_new = false;
  if (const auto* name = std::get_if<std::shared_ptr<const std::string>>(&key)) {
    is_new = dict.keys.insert(**name).second;
  } else if (const auto* index = std::get_if<int64_t>(&key)) {
    is_new = dict.keys.insert(*index).second;
  } else {
    unsupported(kPickleRecord, "holds a dict key that is neither text nor a whole number");
  }
  if (!is_new) broken("holds a dict with the same key twice");
  dict.entries.emplace_back(std::move(key), std::move(value));
}

void Unpickler::build() {
  const PickleValue state = pop();
  auto& dict = top_container<PickleDict>("sets attributes of what is no OrderedDict");
  const auto* attributes = std::get_if<std::shared_ptr<PickleDict>>(&state);
  if (!dict.ordered || dict.attributes != nullptr || attributes == nullptr) broken("sets attributes of what is no OrderedDict");
  for (const auto& [key, value] : (*attributes)->entries) {
    if (!std::holds_alternative<std::shared_ptr<const std::string>>(key)) broken("sets an attribute that has no name");
  }
  spend(cost_of(state));
  place(dict, state);
  dict.attributes = *attributes;
}

PickleValue Unpickler::finish() {
  PickleValue result = pop();
  if (!stack_.empty() || !marks_.empty()) broken("ends with values left over");
  if (position_ != bytes_.size()) broken("goes on after its end");
  require_plain(result);
  return result;
}

}  // namespace

PickleValue read_pickle(std::string_view bytes) { return Unpickler(bytes).read(); }

}  // namespace marlin::archive
