// Writes a ZIP64 archive of stored records, in the layout of torch.save. No LibTorch header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "archive/zip_format.h"
#include "marlin/checkpointers/byte_sink.h"

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

/// Writes an archive piece by piece: for each record of the layout in turn, append() as often as its size takes; then finish().
class ZipWriter {
 public:
  /// Both are borrowed for the writer's life.
  ZipWriter(ByteSink& sink, const ZipLayout& layout) : sink_(sink), layout_(layout) {}

  /// A piece of the current record, which begins with its first piece and ends with its last byte. An empty record takes one
  /// empty piece. @throws what the sink throws.
  void append(std::span<const std::byte> bytes);
  void append(const std::string& text) { append(std::as_bytes(std::span(text))); }
  /// CRC-32 of each record that is complete.
  [[nodiscard]] const std::vector<uint32_t>& checksums() const noexcept { return checksums_; }
  /// The central directory.
  void finish();

 private:
  void begin_record();
  void end_record();
  void send(const std::string& bytes);

  ByteSink& sink_;
  const ZipLayout& layout_;
  std::vector<uint32_t> checksums_;
  uint64_t position_ = 0;      // in the file
  uint64_t record_bytes_ = 0;  // of the current record
  uint32_t checksum_ = 0;
  bool in_record_ = false;
};

}  // namespace marlin::archive
