// Reads a ZIP or ZIP64 archive of stored records held in memory. Made for files that may be broken or hostile. No LibTorch header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace marlin::archive {

struct ZipRecord {
  std::string name;     ///< Without the root folder, which all records share.
  uint64_t header = 0;  ///< Offset of the local header.
  uint64_t data = 0;    ///< Offset of the data.
  uint64_t size = 0;    ///< In the file.
  uint32_t checksum = 0;
  bool compressed = false;
  bool encrypted = false;
};

/// The records of an archive. After construction every record lies inside the file, none overlaps another, no name occurs
/// twice or leads out of the root folder, and the local headers say the same as the directory.
class ZipReader {
 public:
  /// @param file  borrowed for the reader's life.
  /// @throws Error kCorrupt; "<record>: <reason>" on one line.
  explicit ZipReader(std::span<const std::byte> file);

  /// In the directory's order.
  [[nodiscard]] const std::vector<ZipRecord>& records() const noexcept { return records_; }
  /// Null if there is none.
  [[nodiscard]] const ZipRecord* find(const std::string& name) const;
  /// As they are in the file.
  [[nodiscard]] std::string_view bytes(const ZipRecord& record) const;
  /// @throws Error kUnsupported if it is compressed or encrypted.
  void require_stored(const ZipRecord& record) const;
  /// @throws Error kCorrupt if the record's bytes do not have its checksum; kUnsupported if it is compressed or encrypted; kIo.
  void verify(const ZipRecord& record) const;

 private:
  struct Directory {
    uint64_t offset, size, count;
  };
  struct Header;

  [[nodiscard]] Header read_header(uint64_t at) const;
  [[nodiscard]] Directory find_directory() const;
  [[nodiscard]] Directory read_zip64_end(uint64_t end) const;
  void read_directory(const Directory& directory);
  [[nodiscard]] ZipRecord read_record(uint64_t& position, uint64_t directory_end) const;
  void check_local_header(ZipRecord& record, const Header& central, std::string_view full_name) const;
  void check_descriptor(const ZipRecord& record) const;
  void check_overlaps(uint64_t directory_offset) const;
  void take_root_folder(std::string& name);

  /// @throws Error kCorrupt unless the bytes are inside the file.
  [[nodiscard]] std::string_view slice(uint64_t offset, uint64_t size) const;
  template <class T>
  [[nodiscard]] T number(uint64_t offset) const;

  std::string_view file_;
  std::string root_;  // with the slash
  std::vector<ZipRecord> records_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace marlin::archive
