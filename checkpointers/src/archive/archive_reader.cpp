#include "marlin/checkpointers/archive_reader.h"

#include <memory>
#include <utility>

#include "archive/binder.h"
#include "archive/commit_record.h"
#include "archive/load_into.h"
#include "archive/mapped_file.h"
#include "archive/named_file.h"
#include "archive/pickle_reader.h"
#include "archive/report.h"
#include "archive/verification.h"
#include "archive/zip_reader.h"

namespace marlin {
namespace archive {
namespace {

std::string_view require(const ZipReader& zip, const char* name) {
  const ZipRecord* record = zip.find(name);
  if (record == nullptr) corrupt(name, "the record is missing");
  return zip.bytes(*record);
}

// A safetensors file begins with the size of its header, a JSON object, in 8 bytes.
bool is_safetensors(std::string_view file) {
  if (file.size() < 10 || file[8] != '{') return false;
  uint64_t size = 0;
  for (size_t i = 8; i-- > 0;) size = size << 8 | static_cast<unsigned char>(file[i]);
  return size >= 2 && size <= file.size() - 8;
}

// Tells files of other kinds from broken ones before anything else is looked at.
std::span<const std::byte> refuse_others(std::span<const std::byte> file) {
  constexpr std::string_view kLegacyMagic = "\x80\x02\x8a\x0a";
  if (file.empty()) corrupt("zip directory", "the file is empty");
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (is_safetensors(text)) throw Error(Errc::kUnsupported, "a safetensors file, not a .pt checkpoint; --checkpointer safetensors and Python's safetensors read it");
  if (!text.starts_with(kLegacyMagic)) return file;
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

std::vector<ExpectedRecord> expected_records(const CommitRecord& record) {
  std::vector<ExpectedRecord> expected;
  expected.reserve(record.records.size());
  for (const RecordEntry& entry : record.records) expected.push_back({entry.name, entry.size, *hash_of_hex(entry.xxh3_128)});
  return expected;
}

bool is_storage(const ZipRecord& record) { return record.name.starts_with("data/"); }

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

}  // namespace
}  // namespace archive

class ArchiveReader::Impl {
 public:
  Impl(const std::filesystem::path& path, Verify verify);

  void check(const std::vector<const archive::ZipRecord*>& records) {
    if (verify_ == Verify::kLazy) verification_.check(records);
  }
  [[nodiscard]] std::vector<const archive::ZipRecord*> records_of_tensors() const;
  void load_into(const StateDict& live);

  std::optional<CommitRecord> record;
  Verified verified = Verified::kNothing;
  archive::BoundState bound;
  std::vector<TensorInfo> infos;

 private:
  void check_before_use();

  std::shared_ptr<const archive::MappedFile> file_;
  archive::ZipReader zip_;
  archive::Verification verification_;
  Verify verify_;
};

ArchiveReader::Impl::Impl(const std::filesystem::path& path, Verify verify)
    : file_(std::make_shared<const archive::MappedFile>(path)), zip_(archive::refuse_others(file_->bytes())), verification_(zip_), verify_(verify) {
  archive::refuse_others(zip_);
  record = archive::read_commit_record(zip_);
  check_before_use();
  archive::check_format(zip_);
  const archive::PickleValue root = archive::read_pickle(archive::require(zip_, "data.pkl"));
  const auto* dict = std::get_if<std::shared_ptr<archive::PickleDict>>(&root);
  if (dict == nullptr) archive::unsupported("data.pkl", "does not hold a dict, as a checkpoint does");
  bound = archive::bind_state(**dict, file_, zip_);
  infos.reserve(bound.tensors.size());
  for (const archive::BoundTensor& found : bound.tensors) {
    infos.push_back({found.path, found.tensor.scalar_type(), found.tensor.sizes().vec(), found.record->name});
  }
}

// What is not a tensor is read at once, and so verified in any case.
void ArchiveReader::Impl::check_before_use() {
  const bool has_hashes = record && !record->records.empty();
  if (has_hashes) verification_.expect(archive::expected_records(*record), archive::kCommitRecord);
  std::vector<const archive::ZipRecord*> now;
  for (const archive::ZipRecord& found : zip_.records()) {
    if (verify_ != Verify::kFull && archive::is_storage(found)) {
      zip_.require_stored(found);
    } else {
      now.push_back(&found);
    }
  }
  verification_.check(now);
  if (verify_ == Verify::kOff) return;
  if (!has_hashes) {
    verified = Verified::kChecksums;
  } else {
    verified = verify_ == Verify::kFull ? Verified::kHashes : Verified::kAsTaken;
  }
}

std::vector<const archive::ZipRecord*> ArchiveReader::Impl::records_of_tensors() const {
  std::vector<const archive::ZipRecord*> records;
  records.reserve(bound.tensors.size());
  for (const archive::BoundTensor& tensor : bound.tensors) records.push_back(tensor.record);
  return records;
}

void ArchiveReader::Impl::load_into(const StateDict& live) {
  const archive::LoadPlan plan = archive::plan_load(bound, live);
  if (!plan.problems.empty()) throw Error(Errc::kMismatch, concat("is of another model: ", join(plan.problems, "; ")));
  check(plan.records);
  archive::load(plan);
}

namespace {

template <class Call>
auto named(const std::filesystem::path& file, const Call& call) {
  return archive::with_file_name(file, call, "data.pkl: ");
}

}  // namespace

ArchiveReader::ArchiveReader(const std::filesystem::path& file, Verify verify)
    : path_(file), impl_(named(file, [&] { return std::make_unique<Impl>(file, verify); })) {}
ArchiveReader::~ArchiveReader() = default;
ArchiveReader::ArchiveReader(ArchiveReader&&) noexcept = default;
ArchiveReader& ArchiveReader::operator=(ArchiveReader&&) noexcept = default;

const std::optional<CommitRecord>& ArchiveReader::record() const noexcept { return impl_->record; }
Verified ArchiveReader::verified() const noexcept { return impl_->verified; }
const std::vector<TensorInfo>& ArchiveReader::tensors() const noexcept { return impl_->infos; }

at::Tensor ArchiveReader::tensor(std::string_view path) {
  return named(path_, [&] {
    for (const archive::BoundTensor& found : impl_->bound.tensors) {
      if (found.path != path) continue;
      impl_->check({found.record});
      return found.tensor;
    }
    throw Error(Errc::kNotFound, concat("holds no tensor '", path, "'"));
  });
}

StateDict ArchiveReader::state() {
  return named(path_, [&] {
    impl_->check(impl_->records_of_tensors());
    return impl_->bound.root;
  });
}

void ArchiveReader::load_into(const StateDict& live) {
  named(path_, [&] { impl_->load_into(live); });
}

Archive read_archive(const std::filesystem::path& file, Verify verify) {
  ArchiveReader reader(file, verify);
  return {reader.state(), reader.record(), reader.verified()};
}

}  // namespace marlin
