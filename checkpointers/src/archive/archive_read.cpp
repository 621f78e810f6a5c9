#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <cstring>
#include <memory>
#include <unordered_map>

#include "archive/commit_record.h"
#include "archive/mapped_file.h"
#include "archive/pickle_reader.h"
#include "archive/report.h"
#include "archive/scalar_types.h"
#include "archive/zip_format.h"
#include "archive/zip_reader.h"
#include "marlin/checkpointers/archive.h"

namespace marlin {
namespace archive {
namespace {

std::string_view require(const ZipReader& zip, const char* name) {
  const ZipRecord* record = zip.find(name);
  if (record == nullptr) corrupt(name, "the record is missing");
  return zip.bytes(*record);
}

// Tells files of other kinds from broken ones before anything else is looked at.
void refuse_others(std::span<const std::byte> file) {
  constexpr std::string_view kLegacyMagic = "\x80\x02\x8a\x0a";
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (!text.starts_with(kLegacyMagic)) return;
  unsupported("zip directory", "written in torch.save's format from before PyTorch 1.6; load it in Python and save it again");
}

void refuse_others(const ZipReader& zip) {
  if (zip.find("constants.pkl") != nullptr) {
    unsupported("constants.pkl", "a TorchScript or torch::save archive; what is read are state dicts that libmarlin or Python's torch.save wrote");
  }
  uint64_t bytes = 0;
  bool any = false;
  for (const ZipRecord& record : zip.records()) bytes += record.size, any = any || record.checksum != 0;
  if (bytes > 0 && !any) {
    unsupported("zip directory", "holds no checksums (written with torch.serialization.set_crc32_options(False)); save it again with them");
  }
}

// Before all else, so that a file of a later version is told as that and not as a broken one.
std::optional<CommitRecord> read_commit_record(const ZipReader& zip) {
  constexpr uint64_t kMaxSize = 64ULL << 20;
  const ZipRecord* record = zip.find(kCommitRecord);
  if (record == nullptr) return std::nullopt;
  zip.verify(*record);
  if (record->size > kMaxSize) corrupt(kCommitRecord, "is too large");
  return commit_record_of(zip.bytes(*record));
}

void check_format(const ZipReader& zip) {
  if (const ZipRecord* order = zip.find("byteorder"); order != nullptr && zip.bytes(*order) != "little") {
    unsupported("byteorder", concat("is '", printable(zip.bytes(*order)), "'; only little-endian files are read"));
  }
  // torch.load takes these; 3 is what torch.save has written since PyTorch 1.6.
  std::string_view version = require(zip, "version");
  if (version.ends_with('\n')) version.remove_suffix(1);
  if (version.empty() || version.find_first_not_of("0123456789") != std::string_view::npos) corrupt("version", "is no number");
  if (version != "1" && version != "2" && version != "3") {
    unsupported("version", concat("of torch.save's format is ", printable(version), "; 1 to 3 are read"));
  }
}

// Turns what the pickle says into tensors over the mapping.
class Binder {
 public:
  Binder(std::shared_ptr<const MappedFile> file, const ZipReader& zip) : file_(std::move(file)), zip_(zip) {}
  StateDict dict(const PickleDict& dict);

 private:
  Value value(const PickleValue& value);
  std::vector<Value> items(const PickleList& list);
  at::Tensor tensor(const PickleTensor& tensor);
  const c10::Storage& storage_of(const PickleTensor& tensor);
  [[nodiscard]] c10::Storage make_storage(const ZipRecord& record) const;

  std::shared_ptr<const MappedFile> file_;
  const ZipReader& zip_;
  std::unordered_map<std::string, c10::Storage> storages_;
};

StateDict Binder::dict(const PickleDict& dict) {
  StateDict result;
  result.ordered_dict = dict.ordered;
  for (const auto& [key, item] : dict.entries) {
    if (const auto* index = std::get_if<int64_t>(&key)) {
      result.set(*index, value(item));
    } else {
      result.set(*std::get<std::shared_ptr<const std::string>>(key), value(item));
    }
  }
  if (dict.attributes != nullptr) result.attributes = std::make_shared<const StateDict>(this->dict(*dict.attributes));
  return result;
}

std::vector<Value> Binder::items(const PickleList& list) {
  std::vector<Value> result;
  result.reserve(list.items.size());
  for (const PickleValue& item : list.items) result.push_back(value(item));
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
  const c10::Storage& storage = storage_of(tensor);
  const at::Tensor result = at::empty({0}, at::TensorOptions().dtype(scalar_type(tensor.dtype)).device(at::kCPU));
  return result.set_(storage, tensor.offset, tensor.sizes, tensor.strides);
}

const c10::Storage& Binder::storage_of(const PickleTensor& tensor) {
  const std::string& key = tensor.storage.key;
  const std::string where = concat("data/", printable(key));
  const ZipRecord* record = zip_.find("data/" + key);
  if (record == nullptr) corrupt(where, "the record is missing");
  // torch.save rounds a storage's size down to whole elements.
  const auto said = static_cast<uint64_t>(tensor.storage_bytes());
  const auto item_size = static_cast<uint64_t>(dtype_info(tensor.storage.dtype).item_size);
  if (record->size < said || record->size - said >= item_size) corrupt(where, concat("is of ", record->size, " bytes, data.pkl says ", said));
  const auto found = storages_.find(key);
  return found != storages_.end() ? found->second : storages_.emplace(key, make_storage(*record)).first->second;
}

c10::Storage Binder::make_storage(const ZipRecord& record) const {
  using Owner = std::shared_ptr<const MappedFile>;
  std::byte* data = file_->bytes().data() + record.data;
  const bool aligned = reinterpret_cast<uintptr_t>(data) % kAlignment == 0;
  if (record.size == 0 || !aligned) {
    c10::Storage copy(c10::Storage::use_byte_size_t(), record.size, c10::GetCPUAllocator()->allocate(record.size), c10::GetCPUAllocator(), true);
    if (record.size > 0) std::memcpy(copy.mutable_data(), data, record.size);
    return copy;
  }
  const auto release = [](void* owner) { delete static_cast<Owner*>(owner); };
  return {c10::Storage::use_byte_size_t(), record.size, at::DataPtr(data, new Owner(file_), release, at::kCPU)};
}

Archive read(const std::filesystem::path& path) {
  const auto file = std::make_shared<const MappedFile>(path);
  refuse_others(file->bytes());
  const ZipReader zip(file->bytes());
  refuse_others(zip);
  Archive result;
  result.record = read_commit_record(zip);
  for (const ZipRecord& record : zip.records()) zip.verify(record);
  check_format(zip);
  const PickleValue root = read_pickle(require(zip, "data.pkl"));
  const auto* dict = std::get_if<std::shared_ptr<PickleDict>>(&root);
  if (dict == nullptr) unsupported("data.pkl", "does not hold a dict, as a checkpoint does");
  result.root = Binder(file, zip).dict(**dict);
  return result;
}

}  // namespace
}  // namespace archive

Archive read_archive(const std::filesystem::path& file) {
  try {
    return archive::read(file);
  } catch (const Error& error) {
    throw Error(error.code(), concat(file.string(), ": ", error.what()));
  } catch (const c10::Error& error) {
    throw Error(Errc::kCorrupt, concat(file.string(), ": data.pkl: LibTorch refuses a tensor: ", archive::printable(error.what_without_backtrace())));
  }
}

}  // namespace marlin
