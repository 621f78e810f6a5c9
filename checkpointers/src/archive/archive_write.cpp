#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <memory>
#include <span>
#include <utility>

#include "archive/commit_record.h"
#include "archive/pickle_writer.h"
#include "archive/scalar_types.h"
#include "archive/state_plan.h"
#include "archive/zip_writer.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/durable_file.h"
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

// Everything about a file but the tensors' bytes, and what depends on them.
struct Prepared {
  StatePlan plan;
  std::string pickle;
  CommitRecord record;  ///< The hashes are still zero.
  ZipLayout layout;
};

constexpr size_t kSerializationIdSize = 40;

Prepared prepare(const StateDict& root, const CommitRecord& record) {
  Prepared file;
  file.plan = plan_state(root);
  file.pickle = StatePickler(file.plan).pickle(root);
  file.record = record;
  file.record.records.clear();
  const auto add = [&](const std::string& name, uint64_t size) {
    file.layout.add(kRoot + name, size);
    file.record.records.push_back({name, size, to_hex({})});
  };
  add("data.pkl", file.pickle.size());
  add(".format_version", 1);
  add(".storage_alignment", 2);
  add("byteorder", 6);
  for (size_t i = 0; i < file.plan.storages.size(); ++i) add(concat("data/", i), file.plan.storages[i].size_bytes());
  add("version", 2);
  add(".data/serialization_id", kSerializationIdSize);
  file.layout.add(concat(kRoot, kCommitRecord), to_json(file.record).size());  // hashes are of fixed width, so this is its size in the end
  return file;
}

// 40 digits that depend on the names and bytes of the records before, so that equal states have equal ids.
std::string serialization_id(const ZipLayout& layout, std::span<const RecordDigest> digests) {
  uint64_t names = 0xcbf29ce484222325;  // FNV-1a
  uint64_t bytes = names;
  const auto mix = [](uint64_t& hash, uint64_t value) { hash = (hash ^ value) * 0x100000001b3; };
  for (size_t i = 0; i < digests.size(); ++i) {
    for (const char c : layout.records()[i].name) mix(names, static_cast<unsigned char>(c));
    mix(bytes, digests[i].checksum);
  }
  std::string digits;
  for (const uint64_t hash : {names, bytes}) {
    const std::string number = std::to_string(hash);
    digits += std::string(kSerializationIdSize / 2 - number.size(), '0') + number;
  }
  return digits;
}

// One that is not on the CPU is copied there when it is its turn.
RecordBytes bytes_of(const c10::Storage& storage) {
  const auto span_of = [&](const void* data) { return std::span(static_cast<const std::byte*>(data), storage.nbytes()); };
  if (storage.device().is_cpu() || storage.nbytes() == 0) return {span_of(storage.data())};
  const c10::NoGradGuard no_grad;  // of the writing thread
  const auto size = static_cast<int64_t>(storage.nbytes());
  const at::Tensor there = at::empty({0}, at::TensorOptions().dtype(at::kByte).device(storage.device())).set_(storage, 0, {size}, {1});
  const auto here = std::make_shared<const at::Tensor>(there.cpu());
  return {span_of(here->const_data_ptr()), here};
}

RecordSource text_source(std::string_view text) {
  return [text] { return RecordBytes{std::as_bytes(std::span(text))}; };
}

void write_to(WritableFile& file, Prepared prepared, bool start_flush) {
  std::vector<RecordSource> sources = {text_source(prepared.pickle), text_source("1"), text_source("64"), text_source("little")};
  static_assert(kAlignment == 64);
  for (const PlannedStorage& storage : prepared.plan.storages) sources.push_back([&storage] { return bytes_of(storage.storage); });
  sources.push_back(text_source("3\n"));
  ZipWriter zip(file, prepared.layout, start_flush);
  zip.write(sources);
  zip.append(serialization_id(prepared.layout, zip.digests()));
  for (size_t i = 0; i < zip.digests().size(); ++i) prepared.record.records[i].xxh3_128 = to_hex(zip.digests()[i].hash);
  zip.append(to_json(prepared.record));
  zip.finish();
}

}  // namespace
}  // namespace archive

void write_archive(const std::filesystem::path& file, const StateDict& root, const CommitRecord& record, Durability durability, FileSystem& file_system) {
  const c10::NoGradGuard no_grad;
  archive::Prepared prepared = archive::prepare(root, record);
  const uint64_t size = prepared.layout.file_size();
  const auto write = [&](WritableFile& to) { archive::write_to(to, std::move(prepared), durability == Durability::kDurable); };
  write_atomically(file, size, write, durability, file_system);
}

uint64_t archive_size(const StateDict& root, const CommitRecord& record) {
  const c10::NoGradGuard no_grad;
  return archive::prepare(root, record).layout.file_size();
}

}  // namespace marlin
