// Files for the archive's tests: in a folder of their own, made by the writer or by hand.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/checkpointers/archive.h"

namespace marlin::test {

/// A folder that goes when it goes out of scope.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "marlin_archive_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  [[nodiscard]] std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  std::filesystem::path put(std::string_view name, std::string_view bytes) const {
    std::filesystem::remove(path_ / name);  // a file that is replaced, rather than truncated, is not flushed to the disk by ext4
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_bytes(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

inline std::string archive_bytes(const StateDict& root, const CommitRecord& record = {}) {
  const Folder folder;
  write_archive(folder / "a.pt", root, record, Durability::kUnsynced);
  return read_bytes(folder / "a.pt");
}

/// Written, read back.
inline Archive round_trip(const Folder& folder, const StateDict& root, const CommitRecord& record = {}) {
  return read_archive(folder.put("round_trip.pt", archive_bytes(root, record)));
}

/// The seed of a random test: MARLIN_TEST_SEED, or `usual`. Printed, so that a failure can be repeated.
inline uint64_t test_seed(uint64_t usual) {
  const char* given = std::getenv("MARLIN_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : usual;
  std::cout << "seed " << seed << "\n";
  return seed;
}

/// How often a random test repeats: all of it with scripts/test --long, else a tenth.
inline int repetitions(int all) { return std::getenv("MARLIN_TEST_LONG") != nullptr ? all : all / 10; }

/// CRC-32 as the ZIP format has it, bit by bit: another implementation than the one under test.
inline uint32_t crc32(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320U : 0U);
  }
  return ~crc;
}

/// A record of a file made by hand. What is not set is as it should be.
struct HandMadeRecord {
  std::string name;
  std::string data;
  uint16_t flags = 0;
  uint16_t method = 0;
  std::optional<std::string> local_name = {};
  std::optional<uint32_t> checksum = {};
  std::optional<uint32_t> size = {};
  std::optional<uint32_t> header = {};
};

/// A plain ZIP file (no ZIP64, no descriptors, no padding), of any records.
inline std::string make_zip(const std::vector<HandMadeRecord>& records) {
  const auto put = [](std::string& bytes, auto value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); };
  std::string file;
  std::string directory;
  for (const HandMadeRecord& record : records) {
    const auto header = static_cast<uint32_t>(file.size());
    const uint32_t size = record.size.value_or(static_cast<uint32_t>(record.data.size()));
    const uint32_t checksum = record.checksum.value_or(crc32(record.data));
    const std::string& local_name = record.local_name.value_or(record.name);
    const auto common = [&](std::string& bytes, const std::string& name) {
      put(bytes, uint16_t{20}), put(bytes, record.flags), put(bytes, record.method), put(bytes, uint32_t{0});
      put(bytes, checksum), put(bytes, size), put(bytes, size);
      put(bytes, static_cast<uint16_t>(name.size())), put(bytes, uint16_t{0});
    };
    put(file, uint32_t{0x04034b50});
    common(file, local_name);
    file += local_name + record.data;
    put(directory, uint32_t{0x02014b50});
    put(directory, uint16_t{20});
    common(directory, record.name);
    put(directory, uint64_t{0}), put(directory, uint16_t{0});  // comment size, disk, attributes
    put(directory, record.header.value_or(header));
    directory += record.name;
  }
  const auto offset = static_cast<uint32_t>(file.size());
  file += directory;
  put(file, uint32_t{0x06054b50}), put(file, uint32_t{0});
  put(file, static_cast<uint16_t>(records.size())), put(file, static_cast<uint16_t>(records.size()));
  put(file, static_cast<uint32_t>(directory.size())), put(file, offset), put(file, uint16_t{0});
  return file;
}

inline std::string pickled_text(const std::string& value) {
  const auto size = static_cast<uint32_t>(value.size());
  return "X" + std::string(reinterpret_cast<const char*>(&size), 4) + value;
}

inline std::string pickled_integer(int64_t value) { return "\x8a\x08" + std::string(reinterpret_cast<const char*>(&value), 8); }

/// {"w": a float32 tensor over data/<key>, which has `num_items`}, without the two bytes that a pickle begins with.
inline std::string pickled_dict_of_tensor(int64_t offset, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                                          const std::string& key = "0", int64_t num_items = 4) {
  const auto tuple = [](const std::vector<int64_t>& values) {
    std::string result = "(";
    for (const int64_t value : values) result += pickled_integer(value);
    return result + "t";
  };
  return "}" + pickled_text("w") + "ctorch._utils\n_rebuild_tensor_v2\n((" + pickled_text("storage") + "ctorch\nFloatStorage\n" + pickled_text(key) +
         pickled_text("cpu") + pickled_integer(num_items) + "tQ" + pickled_integer(offset) + tuple(sizes) + tuple(strides) + "\x89" +
         "ccollections\nOrderedDict\n)RtRs.";
}

/// The archive of a pickle made by hand, with one storage of 16 bytes.
inline std::vector<HandMadeRecord> records_of(const std::string& pickle) {
  return {{"a/data.pkl", pickle}, {"a/byteorder", "little"}, {"a/data/0", std::string(16, '\7')}, {"a/version", "3\n"}};
}

}  // namespace marlin::test
