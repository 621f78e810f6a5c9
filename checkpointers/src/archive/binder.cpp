#include "archive/binder.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "archive/mapped_storage.h"
#include "archive/report.h"
#include "archive/scalar_types.h"
#include "archive/zip_format.h"

namespace marlin::archive {
namespace {

constexpr uint64_t kFreePaths = 64ULL << 20;  // bytes that the paths of all tensors may always have; or those of the file, if they are more

class Binder {
 public:
  Binder(std::shared_ptr<const MappedFile> file, const ZipReader& zip) : file_(std::move(file)), zip_(zip) {}
  BoundState bind(const PickleDict& root) {
    StateDict state = dict(root);
    return {std::move(state), std::move(tensors_)};
  }

 private:
  struct Bound {
    c10::Storage storage;
    const ZipRecord* record;
  };

  StateDict dict(const PickleDict& dict);
  Value named(const std::string& name, const PickleValue& value);
  Value value(const PickleValue& value);
  std::vector<Value> items(const PickleList& list);
  at::Tensor tensor(const PickleTensor& tensor);
  const Bound& storage_of(const PickleTensor& tensor);

  std::shared_ptr<const MappedFile> file_;
  const ZipReader& zip_;
  std::unordered_map<std::string, Bound> storages_;
  std::vector<BoundTensor> tensors_;
  std::string path_;  // to the value at hand
  uint64_t paths_size_ = 0;
};

StateDict Binder::dict(const PickleDict& dict) {
  StateDict result;
  result.ordered_dict = dict.ordered;
  for (const auto& [key, item] : dict.entries) {
    if (const auto* index = std::get_if<int64_t>(&key)) {
      result.set(*index, named(std::to_string(*index), item));
    } else {
      const std::string& name = *std::get<std::shared_ptr<const std::string>>(key);
      result.set(name, named(name, item));
    }
  }
  if (dict.attributes != nullptr) {
    const size_t length = path_.size();
    path_ += path_.empty() ? "attributes" : ".attributes";
    result.attributes = std::make_shared<const StateDict>(this->dict(*dict.attributes));
    path_.resize(length);
  }
  return result;
}

std::vector<Value> Binder::items(const PickleList& list) {
  std::vector<Value> result;
  result.reserve(list.items.size());
  for (const PickleValue& item : list.items) result.push_back(named(std::to_string(result.size()), item));
  return result;
}

Value Binder::named(const std::string& name, const PickleValue& item) {
  const size_t length = path_.size();
  if (!path_.empty()) path_ += '.';
  path_ += name;
  Value result = value(item);
  path_.resize(length);
  return result;
}

Value Binder::value(const PickleValue& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag;
  if (const auto* number = std::get_if<int64_t>(&value)) return *number;
  if (const auto* number = std::get_if<double>(&value)) return *number;
  if (const auto* text = std::get_if<std::shared_ptr<const std::string>>(&value)) return **text;
  if (const auto* found = std::get_if<std::shared_ptr<const PickleTensor>>(&value)) return tensor(**found);
  if (const auto* found = std::get_if<std::shared_ptr<PickleDict>>(&value)) return dict(**found);
  if (const auto* list = std::get_if<std::shared_ptr<PickleList>>(&value)) {
    if ((*list)->tuple) return Tuple{items(**list)};
    return List{items(**list)};
  }
  return nullptr;
}

at::Tensor Binder::tensor(const PickleTensor& tensor) {
  paths_size_ += path_.size();  // dicts that refer to the same long keys, and to the same tensor, have long paths in a small file
  if (paths_size_ > std::max<uint64_t>(kFreePaths, file_->bytes().size())) corrupt("data.pkl", "its tensors have paths that would take too much memory");
  const Bound& bound = storage_of(tensor);
  at::Tensor result = at::empty({0}, at::TensorOptions().dtype(scalar_type(tensor.dtype)).device(at::kCPU));
  result.set_(bound.storage, tensor.offset, tensor.sizes, tensor.strides);
  tensors_.push_back({path_, result, bound.record});
  return result;
}

const Binder::Bound& Binder::storage_of(const PickleTensor& tensor) {
  const std::string& key = tensor.storage.key;
  const std::string where = concat("data/", printable(key));
  const ZipRecord* record = zip_.find("data/" + key);
  if (record == nullptr) corrupt(where, "the record is missing");
  // torch.save rounds a storage's size down to whole elements.
  const auto said = static_cast<uint64_t>(tensor.storage_bytes());
  const auto item_size = static_cast<uint64_t>(dtype_info(tensor.storage.dtype).item_size);
  if (record->size < said || record->size - said >= item_size) corrupt(where, concat("is of ", record->size, " bytes, data.pkl says ", said));
  const auto found = storages_.find(key);
  return found != storages_.end() ? found->second : storages_.emplace(key, Bound{storage_in(file_, record->data, record->size, kAlignment), record}).first->second;
}

}  // namespace

BoundState bind_state(const PickleDict& root, const std::shared_ptr<const MappedFile>& file, const ZipReader& zip) { return Binder(file, zip).bind(root); }

}  // namespace marlin::archive
