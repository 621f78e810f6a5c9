// Compares an archive's records with the hashes that its commit record lists, or with their checksums. No LibTorch header.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "archive/hash.h"
#include "archive/zip_reader.h"

namespace marlin::archive {

/// What the commit record says of a record.
struct ExpectedRecord {
  std::string name;
  uint64_t size = 0;
  Hash128 hash;
};

/// Of a part of a mapped file, which is brought in piece by piece. @throws Error kIo.
[[nodiscard]] Hash128 hash_in_memory(std::span<const std::byte> bytes);

/// One thread at a time; large records are hashed by two of its own.
class Verification {
 public:
  /// @param zip  borrowed for the verification's life.
  explicit Verification(const ZipReader& zip) : zip_(zip), hashes_(zip.records().size()), done_(zip.records().size(), false) {}

  /// From now on hashes are compared, not checksums. @param unlisted  the record that holds the list, and so no hash of itself.
  /// @throws Error kCorrupt unless the list has every other record of the archive, with its size, and no more.
  void expect(const std::vector<ExpectedRecord>& records, const std::string& unlisted);

  /// Compares those that have not been compared before. @throws Error kCorrupt, kUnsupported (compressed), kIo; the first in order.
  void check(const std::vector<const ZipRecord*>& records);

 private:
  [[nodiscard]] size_t index(const ZipRecord& record) const { return static_cast<size_t>(&record - zip_.records().data()); }
  void compare(const ZipRecord& record) const;

  const ZipReader& zip_;
  std::vector<std::optional<Hash128>> hashes_;  // by record
  std::vector<bool> done_;
};

}  // namespace marlin::archive
