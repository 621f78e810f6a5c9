#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include "archive/commit_record.h"
#include "archive/pickle_writer.h"
#include "archive/scalar_types.h"
#include "archive/state_plan.h"
#include "archive/zip_writer.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace archive {
namespace {

constexpr const char* kRoot = "checkpoint/";

// Pickles a state whose plan was made before, so that nothing in it can be refused any more.
class StatePickler {
 public:
  explicit StatePickler(const StatePlan& plan) : plan_(plan) {}
  std::string pickle(const StateDict& root) {
    dict(root);
    return out_.finish();
  }

 private:
  void value(const Value& value);
  void dict(const StateDict& dict);
  void tensor(const PlannedTensor& planned);
  void items(const std::vector<Value>& items) {
    for (const Value& item : items) value(item);
  }

  const StatePlan& plan_;
  size_t next_tensor_ = 0;
  PickleWriter out_;
};

void StatePickler::value(const Value& value) {
  if (const auto* dict = value.get_if<StateDict>()) return this->dict(*dict);
  if (value.get_if<at::Tensor>() != nullptr) return tensor(plan_.tensors[next_tensor_++]);
  if (const auto* text = value.get_if<std::string>()) return out_.text(*text);
  if (const auto* number = value.get_if<int64_t>()) return out_.integer(*number);
  if (const auto* number = value.get_if<double>()) return out_.real(*number);
  if (const auto* flag = value.get_if<bool>()) return out_.boolean(*flag);
  if (const auto* list = value.get_if<List>()) {
    out_.begin_list();
    items(list->items);
    return out_.end_list(list->items.empty());
  }
  if (const auto* tuple = value.get_if<Tuple>()) {
    out_.begin_tuple();
    items(tuple->items);
    return out_.end_tuple();
  }
  out_.null();
}

void StatePickler::dict(const StateDict& dict) {
  out_.begin_dict(dict.ordered_dict || dict.attributes != nullptr);
  for (const StateDict::Entry& entry : dict) {
    if (const auto* index = std::get_if<int64_t>(&entry.key)) {
      out_.integer(*index);
    } else {
      out_.text(std::get<std::string>(entry.key));
    }
    value(entry.value);
  }
  out_.end_dict(dict.empty());
  if (dict.attributes != nullptr) {
    this->dict(*dict.attributes);
    out_.end_attributes();
  }
}

void StatePickler::tensor(const PlannedTensor& planned) {
  const PlannedStorage& storage = plan_.storages[planned.storage];
  out_.tensor({
      .storage_key = std::to_string(planned.storage),
      .storage_bytes = static_cast<int64_t>(storage.size_bytes()),
      .dtype = *dtype_of(planned.tensor.scalar_type()),
      .untyped = storage.untyped,
      .offset = planned.tensor.storage_offset(),
      .sizes = planned.tensor.sizes(),
      .strides = planned.tensor.strides(),
  });
}

// Everything about a file but the tensors' bytes.
struct Prepared {
  StatePlan plan;
  std::string pickle;
  std::string json;
  ZipLayout layout;
};

constexpr size_t kSerializationIdSize = 40;

Prepared prepare(const StateDict& root, const CommitRecord& record) {
  Prepared file;
  file.plan = plan_state(root);
  file.pickle = StatePickler(file.plan).pickle(root);
  file.json = to_json(record);
  const auto add = [&](const std::string& name, uint64_t size) { file.layout.add(kRoot + name, size); };
  add("data.pkl", file.pickle.size());
  add(".format_version", 1);
  add(".storage_alignment", 2);
  add("byteorder", 6);
  for (size_t i = 0; i < file.plan.storages.size(); ++i) add(concat("data/", i), file.plan.storages[i].size_bytes());
  add("version", 2);
  add(".data/serialization_id", kSerializationIdSize);
  add(kCommitRecord, file.json.size());
  return file;
}

// 40 digits that depend on the names and bytes of the records before, so that equal states have equal ids.
std::string serialization_id(const ZipLayout& layout, const std::vector<uint32_t>& checksums) {
  uint64_t names = 0xcbf29ce484222325;  // FNV-1a
  uint64_t bytes = names;
  const auto mix = [](uint64_t& hash, uint64_t value) { hash = (hash ^ value) * 0x100000001b3; };
  for (size_t i = 0; i < checksums.size(); ++i) {
    for (const char c : layout.records()[i].name) mix(names, static_cast<unsigned char>(c));
    mix(bytes, checksums[i]);
  }
  std::string digits;
  for (const uint64_t hash : {names, bytes}) {
    const std::string number = std::to_string(hash);
    digits += std::string(kSerializationIdSize / 2 - number.size(), '0') + number;
  }
  return digits;
}

void write_storage(ZipWriter& zip, const c10::Storage& storage) {
  const auto write = [&](const void* data) { zip.append({static_cast<const std::byte*>(data), storage.nbytes()}); };
  if (storage.device().is_cpu() || storage.nbytes() == 0) return write(storage.data());
  const auto size = static_cast<int64_t>(storage.nbytes());
  const at::Tensor there = at::empty({0}, at::TensorOptions().dtype(at::kByte).device(storage.device())).set_(storage, 0, {size}, {1});
  write(there.cpu().const_data_ptr());
}

}  // namespace
}  // namespace archive

void write_archive(ByteSink& sink, const StateDict& root, const CommitRecord& record) {
  const c10::NoGradGuard no_grad;
  const archive::Prepared file = archive::prepare(root, record);
  archive::ZipWriter zip(sink, file.layout);
  zip.append(file.pickle);
  zip.append("1");
  zip.append(std::to_string(archive::kAlignment));
  zip.append("little");
  for (const archive::PlannedStorage& storage : file.plan.storages) archive::write_storage(zip, storage.storage);
  zip.append("3\n");
  zip.append(archive::serialization_id(file.layout, zip.checksums()));
  zip.append(file.json);
  zip.finish();
}

uint64_t archive_size(const StateDict& root, const CommitRecord& record) {
  const c10::NoGradGuard no_grad;
  return archive::prepare(root, record).layout.file_size();
}

}  // namespace marlin
