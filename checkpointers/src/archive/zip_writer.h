// Writes a ZIP64 archive of stored records, in the layout of torch.save. No LibTorch header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "archive/hash.h"
#include "archive/zip_format.h"
#include "marlin/checkpointers/file_system.h"

namespace marlin::archive {

/// Where everything lies in an archive; known before the first byte is written, as all sizes are.
class ZipLayout {
 public:
  struct Record {
    std::string name;     ///< With the root folder.
    uint64_t size;
    uint64_t header = 0;  ///< Offset of the local header.
    uint64_t data = 0;    ///< Offset of the data, a multiple of kAlignment.
  };

  /// The next record. Names are distinct, and shorter than 64 KiB.
  void add(std::string name, uint64_t size);
  [[nodiscard]] const std::vector<Record>& records() const noexcept { return records_; }
  [[nodiscard]] uint64_t directory_offset() const noexcept { return end_; }
  [[nodiscard]] uint64_t file_size() const noexcept { return end_ + directory_size_; }

 private:
  std::vector<Record> records_;
  uint64_t end_ = 0;
  uint64_t directory_size_ = kZip64EndSize + kZip64LocatorSize + kEndSize;
};

/// The bytes of a record, and what keeps them in memory (null: the caller does).
struct RecordBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner = {};
};
/// Called when it is the record's turn. Any thread.
using RecordSource = std::function<RecordBytes()>;

struct RecordDigest {
  uint32_t checksum = 0;  ///< CRC-32.
  Hash128 hash;
};

/// Writes the records of a layout, first to last: some with write(), those that depend on the digests of others with append();
/// then finish(). What the file throws passes through.
class ZipWriter {
 public:
  /// Both are borrowed for the writer's life. @param start_flush  let the device write while more is prepared.
  ZipWriter(WritableFile& file, const ZipLayout& layout, bool start_flush);
  ~ZipWriter();

  /// The next records, one for each source, each hashed and written piece by piece while a piece is in the processor's cache;
  /// from two threads if there is enough to do. The file's bytes do not depend on which writes what.
  void write(const std::vector<RecordSource>& sources);
  /// The next record, a small one.
  void append(std::string_view text);
  /// Of every record so far.
  [[nodiscard]] std::span<const RecordDigest> digests() const noexcept { return {digests_.data(), next_}; }
  /// The central directory.
  void finish();

 private:
  class Pieces;
  struct Unit;

  [[nodiscard]] std::vector<Unit> units(size_t end) const;
  void write_record(size_t index, std::span<const std::byte> bytes, Pieces& out);

  WritableFile& file_;
  const ZipLayout& layout_;
  bool start_flush_;
  std::vector<RecordDigest> digests_;
  size_t next_ = 0;               // the first record that is not written
  std::unique_ptr<Pieces> tail_;  // from the first append() on
};

}  // namespace marlin::archive
