// Reads and checks the header of a safetensors file held in memory. Made for files that may be broken or hostile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "archive/hash.h"
#include "safetensors/format.h"

namespace marlin::safetensors {

struct Entry {
  std::string name;
  const Dtype* dtype = nullptr;
  std::vector<int64_t> sizes;
  uint64_t begin = 0, end = 0;  ///< Bytes, from the start of the file.
};

struct FileHashes {
  archive::Hash128 own;                   ///< Of the header, these digits being zeros. Is right.
  std::vector<archive::Hash128> tensors;  ///< By entry.
};

struct Header {
  std::vector<std::pair<std::string, std::string>> metadata;  ///< Without the hashes.
  std::vector<Entry> entries;                                 ///< In the order of their bytes, which follow one another to the end of the file.
  std::optional<FileHashes> hashes;
};

/// @throws Error kCorrupt, kUnsupported (a dtype); kIo; the text is the reason alone, on one line.
[[nodiscard]] Header read_header(std::span<const std::byte> file);

}  // namespace marlin::safetensors
