#include "archive/pickle_calls.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>

#include "archive/report.h"

namespace marlin::archive {
namespace {

constexpr std::string_view kTorch = "torch.";
constexpr const char* kOrderedDict = "collections.OrderedDict";
constexpr const char* kCounter = "collections.Counter";
constexpr const char* kSize = "torch.Size";
constexpr const char* kTensorV2 = "torch._utils._rebuild_tensor_v2";
constexpr const char* kTensorV3 = "torch._utils._rebuild_tensor_v3";
constexpr const char* kParameter = "torch._utils._rebuild_parameter";
constexpr std::array kUntypedStorages = {"torch.storage.UntypedStorage", "torch.UntypedStorage"};

// What people do put into checkpoints, and would look for a plain word about.
constexpr std::pair<std::string_view, std::string_view> kKnownOthers[] = {
    {"torch._utils._rebuild_sparse_tensor", "a sparse tensor"},
    {"torch._utils._rebuild_qtensor", "a quantised tensor"},
    {"torch._utils._rebuild_nested_tensor", "a nested tensor"},
    {"torch._utils._rebuild_meta_tensor_no_storage", "a meta tensor"},
    {"torch._utils._rebuild_parameter_with_state", "a parameter with attributes of its own"},
    {"torch._tensor._rebuild_from_type_v2", "a tensor of a subclass, or with attributes of its own"},
    {"torch.jit._pickle.restore_type_tag", "a file of torch::pickle_save"},
    {"_codecs.encode", "Python bytes"},
    {"__builtin__.bytearray", "a Python bytearray"},
    {"__builtin__.set", "a Python set"},
    {"__builtin__.complex", "a Python complex number"},
    {"torch.device", "a device"},
    {"collections.defaultdict", "a defaultdict"},
};

bool is_untyped_storage(std::string_view name) { return std::ranges::find(kUntypedStorages, name) != kUntypedStorages.end(); }

const DtypeInfo* typed_storage(std::string_view name) { return name.starts_with(kTorch) ? dtype_of_storage(name.substr(kTorch.size())) : nullptr; }
const DtypeInfo* dtype(std::string_view name) { return name.starts_with(kTorch) ? dtype_of_name(name.substr(kTorch.size())) : nullptr; }

template <class T>
const T& get(const PickleValue& value, const char* what) {
  if (const T* found = std::get_if<T>(&value)) return *found;
  corrupt(kPickleRecord, concat(what, " is of the wrong type"));
}

const std::string& text(const PickleValue& value, const char* what) { return *get<std::shared_ptr<const std::string>>(value, what); }
const std::string& global(const PickleValue& value, const char* what) { return get<std::shared_ptr<const PickleGlobal>>(value, what)->name; }

const std::vector<PickleValue>& tuple(const PickleValue& value, const char* what) {
  const auto& list = get<std::shared_ptr<PickleList>>(value, what);
  if (!list->tuple) corrupt(kPickleRecord, concat(what, " is of the wrong type"));
  return list->items;
}

std::vector<int64_t> integers(const PickleValue& value, const char* what) {
  std::vector<int64_t> result;
  for (const PickleValue& item : tuple(value, what)) result.push_back(get<int64_t>(item, what));
  return result;
}

bool is_none_or_empty(const PickleValue& value) {
  if (std::holds_alternative<std::monostate>(value)) return true;
  const auto* dict = std::get_if<std::shared_ptr<PickleDict>>(&value);
  return dict != nullptr && (*dict)->entries.empty();
}

// No element outside the storage, and no number that overflows on the way to its address.
void check_geometry(const PickleTensor& tensor) {
  constexpr __int128 kLimit = std::numeric_limits<int64_t>::max();
  const int64_t item_size = dtype_info(tensor.dtype).item_size;
  constexpr size_t kMaxDims = 64;  // LibTorch's own limit
  if (tensor.sizes.size() != tensor.strides.size() || tensor.sizes.size() > kMaxDims) {
    corrupt(kPickleRecord, "a tensor has no matching sizes and strides");
  }
  bool empty = false;
  __int128 last = tensor.offset;
  __int128 volume = item_size;
  for (size_t i = 0; i < tensor.sizes.size(); ++i) {
    const int64_t size = tensor.sizes[i], stride = tensor.strides[i];
    if (size < 0 || stride < 0) corrupt(kPickleRecord, "a tensor has a negative size or stride");
    empty = empty || size == 0;
    volume *= std::max<int64_t>(size, 1);
    last += static_cast<__int128>(std::max<int64_t>(size - 1, 0)) * stride;
    if (volume > kLimit || last > kLimit) corrupt(kPickleRecord, "a tensor is too large");
  }
  if (tensor.offset < 0 || tensor.offset > kLimit / item_size) corrupt(kPickleRecord, "a tensor has a bad offset");
  if (!empty && (last + 1) * item_size > tensor.storage_bytes()) corrupt(kPickleRecord, "a tensor reaches past its storage");
}

// (storage, offset, sizes, strides, requires_grad, backward hooks, [dtype,] [metadata])
PickleValue tensor(const std::vector<PickleValue>& arguments, bool names_dtype) {
  const size_t required = names_dtype ? 7 : 6;
  if (arguments.size() < required || arguments.size() > required + 1) corrupt(kPickleRecord, "a tensor has the wrong number of arguments");
  if (arguments.size() > required && !is_none_or_empty(arguments[required])) {
    unsupported(kPickleRecord, "a conjugate or negative view; resolve it (resolve_conj, resolve_neg) before it is saved");
  }
  if (!is_none_or_empty(arguments[5])) unsupported(kPickleRecord, "a tensor with backward hooks");

  auto result = std::make_shared<PickleTensor>();
  result->storage = *get<std::shared_ptr<const PickleStorage>>(arguments[0], "a tensor's storage");
  result->dtype = result->storage.dtype;
  if (names_dtype) {
    const DtypeInfo* named = dtype(global(arguments[6], "a tensor's dtype"));
    if (named == nullptr) corrupt(kPickleRecord, "a tensor's dtype is none");
    result->dtype = named->dtype;
  }
  result->offset = get<int64_t>(arguments[1], "a tensor's offset");
  result->sizes = integers(arguments[2], "a tensor's sizes");
  result->strides = integers(arguments[3], "a tensor's strides");
  (void)get<bool>(arguments[4], "a tensor's requires_grad");
  check_geometry(*result);
  return std::shared_ptr<const PickleTensor>(std::move(result));
}

PickleValue ordered_dict(const std::vector<PickleValue>& arguments) {
  if (!arguments.empty()) unsupported(kPickleRecord, "an OrderedDict made from arguments");
  auto dict = std::make_shared<PickleDict>();
  dict->ordered = true;
  return dict;
}

}  // namespace

PickleValue allowed_global(const std::string& name) {
  const bool allowed = name == kOrderedDict || name == kCounter || name == kSize || name == kTensorV2 || name == kTensorV3 || name == kParameter ||
                       is_untyped_storage(name) || typed_storage(name) != nullptr || dtype(name) != nullptr;
  if (allowed) return std::make_shared<const PickleGlobal>(PickleGlobal{name});
  for (const auto& [known, meaning] : kKnownOthers) {
    if (known == name) unsupported(kPickleRecord, concat("holds ", meaning, " (", name, "), which a state dict cannot"));
  }
  unsupported(kPickleRecord, concat("holds ", printable(name), "; a checkpoint holds dicts, lists, tuples, numbers, text and tensors only"));
}

PickleValue storage_of(const PickleValue& id) {
  const std::vector<PickleValue>& parts = tuple(id, "a storage's id");
  if (parts.size() != 5 || text(parts[0], "a storage's id") != "storage") corrupt(kPickleRecord, "a storage's id is not one of torch.save's");
  const std::string& type = global(parts[1], "a storage's type");
  const DtypeInfo* typed = typed_storage(type);
  if (typed == nullptr && !is_untyped_storage(type)) corrupt(kPickleRecord, concat(printable(type), " is no storage"));
  auto storage = std::make_shared<PickleStorage>();
  storage->key = text(parts[2], "a storage's key");
  (void)text(parts[3], "a storage's location");  // wherever it was, here it comes to the CPU
  if (typed != nullptr) storage->dtype = typed->dtype;
  storage->num_items = get<int64_t>(parts[4], "a storage's size");
  const int64_t item_size = dtype_info(storage->dtype).item_size;
  if (storage->num_items < 0 || storage->num_items > std::numeric_limits<int64_t>::max() / item_size) {
    corrupt(kPickleRecord, "a storage has a bad size");
  }
  return std::shared_ptr<const PickleStorage>(std::move(storage));
}

PickleValue call_global(const PickleValue& function, const PickleValue& arguments) {
  const std::string& name = global(function, "what is called");
  const std::vector<PickleValue>& list = tuple(arguments, "an argument list");
  if (name == kOrderedDict) return ordered_dict(list);
  if (name == kTensorV2) return tensor(list, false);
  if (name == kTensorV3) return tensor(list, true);
  if (name == kParameter && list.size() == 3) return get<std::shared_ptr<const PickleTensor>>(list[0], "a parameter's data");
  if (name == kSize && list.size() == 1) {
    for (const PickleValue& item : tuple(list[0], "a torch.Size")) (void)get<int64_t>(item, "a torch.Size");
    return list[0];
  }
  if (name == kCounter && list.empty()) return std::make_shared<PickleDict>();
  if (name == kCounter && list.size() == 1) return get<std::shared_ptr<PickleDict>>(list[0], "a Counter's content");
  corrupt(kPickleRecord, concat(name, " is called in a way it is not meant to be"));
}

}  // namespace marlin::archive
