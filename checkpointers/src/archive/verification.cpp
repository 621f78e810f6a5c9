#include "archive/verification.h"

#include <algorithm>

#include "archive/mapped_file.h"
#include "archive/report.h"
#include "archive/two_threads.h"

namespace marlin::archive {

Hash128 hash_in_memory(std::span<const std::byte> bytes) {
  constexpr size_t kPiece = size_t{1} << 20;
  Hasher hasher;
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(kPiece, bytes.size()));
    bring_in(piece);
    hasher.update(piece);
    bytes = bytes.subspan(piece.size());
  }
  return hasher.digest();
}

void Verification::expect(const std::vector<ExpectedRecord>& records, const std::string& unlisted) {
  for (const ExpectedRecord& expected : records) {
    const ZipRecord* record = zip_.find(expected.name);
    if (record == nullptr) corrupt(printable(expected.name), "the record is missing");
    if (record->size != expected.size) corrupt(printable(expected.name), concat("is of ", record->size, " bytes, ", unlisted, " says ", expected.size));
    hashes_[index(*record)] = expected.hash;
  }
  for (const ZipRecord& record : zip_.records()) {
    if (record.name != unlisted && !hashes_[index(record)]) corrupt(printable(record.name), concat("is not listed in ", unlisted));
  }
}

void Verification::check(const std::vector<const ZipRecord*>& records) {
  std::vector<const ZipRecord*> todo;
  uint64_t size = 0;
  for (const ZipRecord* record : records) {
    if (done_[index(*record)]) continue;
    todo.push_back(record);
    size += record->size;
  }
  // The largest first, so that both threads end at the same time.
  std::stable_sort(todo.begin(), todo.end(), [](const ZipRecord* a, const ZipRecord* b) { return a->size > b->size; });
  for_each_on_two_threads(todo.size(), size >= kWorthAThread, [&](size_t i) { compare(*todo[i]); });
  for (const ZipRecord* record : todo) done_[index(*record)] = true;
}

void Verification::compare(const ZipRecord& record) const {
  const std::optional<Hash128>& expected = hashes_[index(record)];
  if (!expected) return zip_.verify(record);
  zip_.require_stored(record);
  if (hash_in_memory(std::as_bytes(std::span(zip_.bytes(record)))) != *expected) corrupt(printable(record.name), "its bytes do not match their hash (XXH3)");
}

}  // namespace marlin::archive
