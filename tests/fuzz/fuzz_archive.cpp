// A libFuzzer target: reads what may be a checkpoint file as ArchiveReader does, up to where tensors are made, so that it needs no
// LibTorch. What must hold of every input: it is read or told in one line; nothing is read outside of its bytes (AddressSanitizer),
// no number overflows (UndefinedBehaviorSanitizer), memory and time stay within libFuzzer's limits, and what was read keeps the
// promises that the parsers' headers make.
//
//   fuzz_archive FILE...      runs these inputs alone; scripts/fuzz and run_fuzz.py look for new ones
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <unordered_set>

#include "archive/commit_record.h"
#include "archive/pickle_reader.h"
#include "archive/report.h"
#include "archive/verification.h"
#include "archive/zip_reader.h"
#include "archive_input.h"
#include "marlin/sdk/error.h"

namespace marlin::fuzz {
namespace {

using namespace archive;

void require(bool holds, const char* promise) {
  if (holds) return;
  std::fprintf(stderr, "fuzz_archive: broken promise: %s\n", promise);
  std::abort();
}

// In memory of their own, so that AddressSanitizer sees a read just past them.
std::vector<char> alone(std::string_view bytes) { return {bytes.begin(), bytes.end()}; }
std::string_view view(const std::vector<char>& bytes) { return {bytes.data(), bytes.size()}; }

void check_records(const ZipReader& zip) {
  std::vector<const ZipRecord*> in_file;
  for (const ZipRecord& record : zip.records()) {
    require(zip.find(record.name) == &record, "no record's name occurs twice");
    require(("/" + record.name + "/").find("/../") == std::string::npos, "no record's name leads out of the root folder");
    require(zip.bytes(record).size() == record.size, "every record lies inside the file");
    in_file.push_back(&record);
  }
  std::sort(in_file.begin(), in_file.end(), [](const ZipRecord* a, const ZipRecord* b) { return a->header < b->header; });
  for (size_t i = 1; i < in_file.size(); ++i) {
    require(in_file[i - 1]->data + in_file[i - 1]->size <= in_file[i]->header, "no record overlaps another");
  }
}

// Its list of records aside, what is read is written as what it was. The list is the writer's own.
void check_commit_record(CommitRecord record) {
  record.records.clear();
  const std::string written = to_json(record);
  require(to_json(commit_record_of(written)) == written, "a commit record is read as it was written");
}

// In int64_t, as LibTorch computes it: an overflow ends the process.
void check_tensor(const PickleTensor& tensor) {
  require(tensor.sizes.size() == tensor.strides.size(), "a tensor has as many strides as sizes");
  require(tensor.offset >= 0, "a tensor's offset is not negative");
  int64_t last = tensor.offset;
  int64_t size_bytes = dtype_info(tensor.dtype).item_size;
  bool empty = false;
  for (size_t i = 0; i < tensor.sizes.size(); ++i) {
    require(tensor.sizes[i] >= 0 && tensor.strides[i] >= 0, "no size or stride is negative");
    empty = empty || tensor.sizes[i] == 0;
    last += std::max<int64_t>(tensor.sizes[i] - 1, 0) * tensor.strides[i];
    size_bytes *= std::max<int64_t>(tensor.sizes[i], 1);
  }
  if (!empty) require((last + 1) * dtype_info(tensor.dtype).item_size <= tensor.storage_bytes(), "no element lies outside the storage");
}

// What a state dict is made of, each container once.
class StateCheck {
 public:
  void value(const PickleValue& value, int depth = 1) {
    require(!std::holds_alternative<std::shared_ptr<const PickleGlobal>>(value), "a global is never a value");
    require(!std::holds_alternative<std::shared_ptr<const PickleStorage>>(value), "a storage is never a value");
    require(depth <= kMaxDepth + 1, "nesting is bounded");
    if (const auto* tensor = std::get_if<std::shared_ptr<const PickleTensor>>(&value)) check_tensor(**tensor);
    if (const auto* list = std::get_if<std::shared_ptr<PickleList>>(&value)) this->list(**list, depth);
    if (const auto* dict = std::get_if<std::shared_ptr<PickleDict>>(&value)) this->dict(**dict, depth);
  }

 private:
  void list(const PickleList& list, int depth) {
    if (!seen_.insert(&list).second) return;
    for (const PickleValue& item : list.items) value(item, depth + 1);
  }
  void dict(const PickleDict& dict, int depth) {
    if (!seen_.insert(&dict).second) return;
    for (const auto& [key, item] : dict.entries) {
      require(std::holds_alternative<int64_t>(key) || std::holds_alternative<std::shared_ptr<const std::string>>(key), "a key is text or a whole number");
      value(item, depth + 1);
    }
    if (dict.attributes != nullptr) this->dict(*dict.attributes, depth + 1);
  }

  std::unordered_set<const void*> seen_;
};

std::optional<CommitRecord> read_commit_record(const ZipReader& zip) {
  const ZipRecord* found = zip.find(kCommitRecord);
  if (found == nullptr) return std::nullopt;
  zip.verify(*found);
  CommitRecord record = commit_record_of(view(alone(zip.bytes(*found))));
  check_commit_record(record);
  return record;
}

void verify(const ZipReader& zip, const std::optional<CommitRecord>& record) {
  Verification verification(zip);
  if (record && !record->records.empty()) {
    std::vector<ExpectedRecord> expected;
    for (const RecordEntry& entry : record->records) expected.push_back({entry.name, entry.size, hash_of_hex(entry.xxh3_128).value()});
    verification.expect(expected, kCommitRecord);
  }
  std::vector<const ZipRecord*> all;
  for (const ZipRecord& found : zip.records()) all.push_back(&found);
  verification.check(all);
}

void read(std::string_view file) {
  const ZipReader zip(std::as_bytes(std::span(file)));
  check_records(zip);
  verify(zip, read_commit_record(zip));
  if (const ZipRecord* pickle = zip.find("data.pkl")) StateCheck().value(read_pickle(view(alone(zip.bytes(*pickle)))));
}

void check_error(const Error& error) {
  const std::string_view text = error.what();
  require(error.code() == Errc::kCorrupt || error.code() == Errc::kUnsupported, "an unusable file is corrupt or unsupported");
  require(text.find(": ") != std::string_view::npos && text.size() < 1000, "a message says where and why");
  require(std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; }), "a message is one line of printable ASCII");
}

}  // namespace
}  // namespace marlin::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<char> file = marlin::fuzz::alone(marlin::fuzz::file_of({data, size}));
  try {
    marlin::fuzz::read(marlin::fuzz::view(file));
  } catch (const marlin::Error& error) {
    marlin::fuzz::check_error(error);
  }
  return 0;
}
