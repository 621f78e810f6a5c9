#include "archive/state_plan.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/resolve_conj.h>
#include <ATen/ops/resolve_neg.h>

#include <unordered_map>

#include "archive/report.h"
#include "archive/scalar_types.h"

namespace marlin::archive {
namespace {

class Planner {
 public:
  StatePlan plan(const StateDict& root) {
    dict(root);
    return std::move(plan_);
  }

 private:
  // A part of the way from the root to the value at hand, on the call stack.
  class Step {
   public:
    Step(Planner& planner, std::string part) : path_(planner.path_) { path_.push_back(std::move(part)); }
    ~Step() { path_.pop_back(); }
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;

   private:
    std::vector<std::string>& path_;
  };

  void value(const Value& value);
  void dict(const StateDict& dict);
  void items(const std::vector<Value>& items);
  void text(const std::string& text) const;
  void tensor(at::Tensor tensor);
  [[nodiscard]] size_t storage_of(const at::Tensor& tensor);
  [[noreturn]] void refuse(const std::string& why) const;

  StatePlan plan_;
  std::unordered_map<const c10::StorageImpl*, size_t> index_;
  std::vector<std::string> path_;
  int depth_ = 0;
};

void Planner::refuse(const std::string& why) const {
  unsupported(path_.empty() ? "the state" : printable(join(path_, ".")), why);
}

void Planner::value(const Value& value) {
  if (const auto* found = value.get_if<at::Tensor>()) return tensor(*found);
  if (const auto* found = value.get_if<std::string>()) return text(*found);
  if (const auto* found = value.get_if<StateDict>()) return dict(*found);
  if (value.get_if<List>() != nullptr || value.get_if<Tuple>() != nullptr) return items(value.as_items());
}

void Planner::dict(const StateDict& dict) {
  if (++depth_ > kMaxDepth) refuse(concat("is nested deeper than ", kMaxDepth));
  for (const StateDict::Entry& entry : dict) {
    const Step step(*this, to_string(entry.key));
    if (const auto* name = std::get_if<std::string>(&entry.key)) text(*name);
    value(entry.value);
  }
  if (dict.attributes != nullptr) {
    const Step step(*this, "attributes");
    for (const StateDict::Entry& entry : *dict.attributes) {
      if (std::holds_alternative<int64_t>(entry.key)) refuse("an attribute's name is text");
    }
    this->dict(*dict.attributes);
  }
  --depth_;
}

void Planner::items(const std::vector<Value>& items) {
  if (++depth_ > kMaxDepth) refuse(concat("is nested deeper than ", kMaxDepth));
  for (size_t i = 0; i < items.size(); ++i) {
    const Step step(*this, std::to_string(i));
    value(items[i]);
  }
  --depth_;
}

void Planner::text(const std::string& text) const {
  if (text.size() > UINT32_MAX) refuse("text of 4 GiB or more");
  if (!is_utf8(text)) refuse("text that is not UTF-8");
}

void Planner::tensor(at::Tensor tensor) {
  if (const std::string why = unwritable(tensor); !why.empty()) refuse(why);
  if (!dtype_of(tensor.scalar_type())) refuse(concat("a tensor of type ", tensor.scalar_type()));
  tensor = tensor.resolve_conj().resolve_neg();
  const size_t storage = storage_of(tensor);
  plan_.tensors.push_back({std::move(tensor), storage});
}

size_t Planner::storage_of(const at::Tensor& tensor) {
  const auto [at, is_new] = index_.try_emplace(tensor.storage().unsafeGetStorageImpl(), plan_.storages.size());
  if (is_new) {
    const DtypeInfo& info = dtype_info(*dtype_of(tensor.scalar_type()));
    const bool whole = tensor.storage().nbytes() % static_cast<size_t>(info.item_size) == 0;
    plan_.storages.push_back({tensor.storage(), tensor.scalar_type(), info.storage.empty() || !whole});
  }
  PlannedStorage& storage = plan_.storages[at->second];
  if (storage.type != tensor.scalar_type()) storage.untyped = true;
  return at->second;
}

}  // namespace

std::string unwritable(const at::Tensor& tensor) {
  if (!tensor.defined()) return "an undefined tensor";
  if (tensor.is_quantized()) return "a quantised tensor; dequantise it first";
  if (tensor.is_nested()) return "a nested tensor";
  if (tensor.layout() != at::kStrided) return concat("a tensor of layout ", tensor.layout(), ", not a dense one; use to_dense() first");
  if (tensor.is_meta() || tensor._is_zerotensor() || !tensor.has_storage()) return "a tensor without memory of its own";
  const auto item_size = static_cast<size_t>(tensor.element_size());
  const auto offset = static_cast<size_t>(tensor.storage_offset());
  if (at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), item_size, offset) > tensor.storage().nbytes() && tensor.numel() > 0) {
    return "a tensor whose storage was freed or shortened";
  }
  return {};
}

StatePlan plan_state(const StateDict& root) { return Planner().plan(root); }

}  // namespace marlin::archive
