#include "archive/load_into.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "archive/report.h"
#include "archive/two_threads.h"

namespace marlin::archive {
namespace {

class Matcher {
 public:
  explicit Matcher(const BoundState& file) : file_(file) {
    for (const BoundTensor& bound : file.tensors) records_.emplace(bound.tensor.unsafeGetTensorImpl(), bound.record);
  }
  LoadPlan match(const StateDict& live) {
    dict(live, &file_.root);
    return std::move(plan_);
  }

 private:
  void dict(const StateDict& live, const StateDict* found) {
    for (const StateDict::Entry& entry : live) value(to_string(entry.key), entry.value, found == nullptr ? nullptr : found->find(entry.key));
  }
  void value(const std::string& name, const Value& live, const Value* found) {
    const size_t length = path_.size();
    path_ += path_.empty() ? name : "." + name;
    if (const auto* tensor = live.get_if<at::Tensor>()) match_tensor(*tensor, found == nullptr ? nullptr : found->get_if<at::Tensor>());
    if (const auto* inner = live.get_if<StateDict>()) dict(*inner, found == nullptr ? nullptr : found->get_if<StateDict>());
    if (live.get_if<List>() != nullptr || live.get_if<Tuple>() != nullptr) items(live.as_items(), found);
    path_.resize(length);
  }
  void items(const std::vector<Value>& live, const Value* found) {
    const bool is_sequence = found != nullptr && (found->get_if<List>() != nullptr || found->get_if<Tuple>() != nullptr);
    for (size_t i = 0; i < live.size(); ++i) {
      value(std::to_string(i), live[i], is_sequence && i < found->as_items().size() ? &found->as_items()[i] : nullptr);
    }
  }
  void match_tensor(const at::Tensor& live, const at::Tensor* found) {
    const std::string name = printable(path_);
    if (found == nullptr) {
      plan_.problems.push_back(concat(name, " is missing"));
    } else if (!live.defined() || live.scalar_type() != found->scalar_type() || live.sizes() != found->sizes()) {
      plan_.problems.push_back(concat(name, " is ", found->scalar_type(), " ", found->sizes(), ", not ", live.defined() ? concat(live.scalar_type(), " ", live.sizes()) : "undefined"));
    } else {
      plan_.copies.push_back({live, *found});
      plan_.records.push_back(records_.at(found->unsafeGetTensorImpl()));
    }
  }

  const BoundState& file_;
  std::unordered_map<const c10::TensorImpl*, const ZipRecord*> records_;
  LoadPlan plan_;
  std::string path_;
};

}  // namespace

LoadPlan plan_load(const BoundState& file, const StateDict& live) { return Matcher(file).match(live); }

// Two threads, by storage: tensors that share one may overlap.
void load(const LoadPlan& plan) {
  struct Group {
    std::vector<const LoadPlan::Copy*> copies;
    uint64_t size = 0;
  };
  std::vector<Group> groups;
  std::unordered_map<const c10::StorageImpl*, size_t> index;
  uint64_t total = 0;
  for (const LoadPlan::Copy& copy : plan.copies) {
    const auto [at, is_new] = index.try_emplace(copy.to.has_storage() ? copy.to.storage().unsafeGetStorageImpl() : nullptr, groups.size());
    if (is_new) groups.emplace_back();
    groups[at->second].copies.push_back(&copy);
    groups[at->second].size += copy.from.nbytes();
    total += copy.from.nbytes();
  }
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.size > b.size; });
  for_each_on_two_threads(groups.size(), total >= kWorthAThread, [&](size_t i) {
    const c10::NoGradGuard no_grad;
    for (const LoadPlan::Copy* copy : groups[i].copies) copy->to.copy_(copy->from);
  });
}

}  // namespace marlin::archive
