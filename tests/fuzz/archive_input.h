// What a fuzzer's input stands for: the bytes of a checkpoint file. No LibTorch header.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "archive/hash.h"
#include "archive/zip_format.h"

namespace marlin::fuzz {

/// What the bytes after the first are; the first says so, modulo 5 less '0', and in corpora is a digit. Whatever else the file needs is put
/// around them with checksums that are right: bytes changed at random would be refused for those alone.
enum class Part : uint8_t {
  kFile,                ///< '0': a whole file.
  kPickle,              ///< '1': data.pkl; storages are there, see kStorageSizes.
  kCommitRecord,        ///< '2': marlin.json.
  kHashedCommitRecord,  ///< '3': marlin.json up to its own hash, which is added.
  kLayout,              ///< '4': where the records lie: see layout_of().
};
inline constexpr size_t kNumParts = 5;

/// Bytes of data/0, data/1 and so on, beside a pickle.
inline constexpr size_t kStorageSizes[] = {96, 8, 0, 10, 5, 10, 3, 24, 8};

inline uint32_t crc32(std::string_view bytes) {
  static const auto kTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < table.size(); ++i) {
      table[i] = i;
      for (int bit = 0; bit < 8; ++bit) table[i] = (table[i] >> 1) ^ ((table[i] & 1) != 0 ? 0xedb88320U : 0U);
    }
    return table;
  }();
  uint32_t crc = ~0U;
  for (const char c : bytes) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

/// A record as the directory and its local header describe it.
struct Entry {
  std::string name;
  uint32_t header = 0;  ///< Offset of the local header.
  uint32_t size = 0;
  uint32_t checksum = 0;
  bool zip64 = false;       ///< Sizes and offset are in an extra field.
  bool descriptor = false;  ///< The flag is set.
};

inline std::string extra_field(const Entry& entry) {
  std::string extra;
  if (!entry.zip64) return extra;
  archive::put(extra, archive::kZip64Extra), archive::put(extra, uint16_t{24});
  for (const uint64_t number : {entry.size, entry.size, entry.header}) archive::put(extra, number);
  return extra;
}

inline void put_shared_fields(std::string& bytes, const Entry& entry) {
  using archive::put;
  const uint32_t size = entry.zip64 ? archive::kSeeZip64 : entry.size;
  put(bytes, uint16_t{20}), put(bytes, entry.descriptor ? archive::kDescriptorFlag : uint16_t{0});
  put(bytes, uint16_t{0}), put(bytes, uint32_t{0});  // method, time
  put(bytes, entry.checksum), put(bytes, size), put(bytes, size);
  put(bytes, static_cast<uint16_t>(entry.name.size())), put(bytes, static_cast<uint16_t>(extra_field(entry).size()));
}

inline std::string local_header(const Entry& entry) {
  std::string bytes;
  archive::put(bytes, archive::kLocalHeader);
  put_shared_fields(bytes, entry);
  return bytes + entry.name + extra_field(entry);
}

inline std::string directory_of(const std::vector<Entry>& entries, size_t offset) {
  using archive::put;
  std::string bytes;
  for (const Entry& entry : entries) {
    put(bytes, archive::kCentralHeader), put(bytes, uint16_t{20});
    put_shared_fields(bytes, entry);
    put(bytes, uint64_t{0}), put(bytes, uint16_t{0});  // comment, disk, attributes
    put(bytes, entry.zip64 ? archive::kSeeZip64 : entry.header);
    bytes += entry.name + extra_field(entry);
  }
  const auto size = static_cast<uint32_t>(bytes.size());
  const auto count = static_cast<uint16_t>(entries.size());
  put(bytes, archive::kEnd), put(bytes, uint32_t{0}), put(bytes, count), put(bytes, count), put(bytes, size);
  put(bytes, static_cast<uint32_t>(offset)), put(bytes, uint16_t{0});
  return bytes;
}

struct Record {
  std::string name;
  std::string_view data;
};

/// A plain ZIP file: no ZIP64, no descriptors, no padding.
inline std::string zip_of(const std::vector<Record>& records) {
  std::string file;
  std::vector<Entry> entries;
  for (const Record& record : records) {
    entries.push_back({record.name, static_cast<uint32_t>(file.size()), static_cast<uint32_t>(record.data.size()), crc32(record.data)});
    file.append(local_header(entries.back())).append(record.data);
  }
  return file + directory_of(entries, file.size());
}

/// A file whose directory and local headers agree, wherever its records lie. Four bytes each: name, kind (bit 0: ZIP64, bit 1: a
/// descriptor follows), offset of the local header in units of four bytes, size.
inline std::string layout_of(std::span<const uint8_t> bytes) {
  constexpr size_t kEntrySize = 4;
  std::string file(512, '\0');
  std::vector<Entry> entries;
  for (; bytes.size() >= kEntrySize; bytes = bytes.subspan(kEntrySize)) {
    const std::string name = {'a', '/', static_cast<char>(bytes[0])};
    entries.push_back({name, bytes[2] * 4U, bytes[3], 0, (bytes[1] & 1) != 0, (bytes[1] & 2) != 0});
    const std::string local = local_header(entries.back());
    file.resize(std::max(file.size(), entries.back().header + local.size()));
    file.replace(entries.back().header, local.size(), local);
  }
  return file + directory_of(entries, file.size());
}

/// The file that an input stands for.
inline std::string file_of(std::span<const uint8_t> input) {
  if (input.empty()) return {};
  const auto part = static_cast<Part>((input[0] - unsigned{'0'}) % kNumParts);
  const std::string_view bytes(reinterpret_cast<const char*>(input.data()) + 1, input.size() - 1);
  if (part == Part::kFile) return std::string(bytes);
  if (part == Part::kLayout) return layout_of(input.subspan(1));

  constexpr std::string_view kEmptyDict = "\x80\x02}.";
  std::vector<Record> records = {{"a/data.pkl", part == Part::kPickle ? bytes : kEmptyDict}, {"a/byteorder", "little"}, {"a/version", "3\n"}};
  static const std::string kStorage(128, '\7');
  if (part == Part::kPickle) {
    for (const size_t size : kStorageSizes) records.push_back({"a/data/" + std::to_string(records.size() - 3), std::string_view(kStorage).substr(0, size)});
    return zip_of(records);
  }
  std::string json(bytes);
  if (part == Part::kHashedCommitRecord) {
    json += ",\n \"xxh3_128\": \"";
    const std::string digits = archive::to_hex(archive::hash_of(json));
    json.append(digits).append("\"\n}\n");
  }
  records.push_back({"a/marlin.json", json});
  return zip_of(records);
}

}  // namespace marlin::fuzz
