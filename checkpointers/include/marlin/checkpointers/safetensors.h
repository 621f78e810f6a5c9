// Files in the safetensors format: an 8-byte length, a JSON header of that length, and the tensors' bytes, without gaps.
// SAFETENSORS.md describes what libmarlin puts into the header, and what a reader checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "marlin/checkpointers/archive_reader.h"
#include "marlin/checkpointers/durable_file.h"
#include "marlin/checkpointers/file_system.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/checkpoint.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

/// The header's `__metadata__`: names and texts.
using SafetensorsMetadata = std::vector<std::pair<std::string, std::string>>;

/// Whether a safetensors file says in its metadata what its bytes were when it was written.
enum class Hashes : uint8_t {
  kXxh3,  ///< XXH3 of 128 bits, of each tensor and of the header.
  kNone,  ///< For files whose metadata others go on with: nothing is in it but what was given.
};

/// A file that was written.
struct SafetensorsWritten {
  uint64_t size_bytes = 0;
  std::string xxh3_128;  ///< Of the header, which holds those of the tensors: it stands for every byte of the file. Empty: Hashes::kNone.
};

/// Writes the tensors, whole or not at all, by write_atomically(). Those of the largest elements come first, then by name, so that each
/// begins at a multiple of its element's size; equal tensors and metadata give equal bytes. Shared storage is written once for each
/// tensor. Conjugate and negative views are resolved, and what is not on the CPU is copied there for as long as it takes to write it.
/// Large files are written by two threads.
/// @param metadata  the first entries of `__metadata__`, beside the hashes.
/// @throws Error kUnsupported that names the tensor: it is undefined, sparse, quantised or without memory (meta), its dtype is none
///   that all readers of the format know, its name is `__metadata__`, another's or not UTF-8; or the header is larger than readers
///   take (100 MB). kInvalidArgument: a name of the metadata is given twice, or is one of libmarlin's. Nothing has been written then.
///   kIo as write_atomically().
/// @note Borrows the tensors for the call. They must not change meanwhile.
MARLIN_ABI SafetensorsWritten write_safetensors(const std::filesystem::path& file, std::vector<NamedTensor> tensors, const SafetensorsMetadata& metadata = {},
                                                Hashes hashes = Hashes::kXxh3, Durability durability = Durability::kDurable,
                                                FileSystem& file_system = posix_file_system());

/// An open safetensors file, of libmarlin's or anybody's. The header is read and checked at once: every offset, size and shape before
/// memory is asked for.
///
/// What `verify` says is compared with the file's hashes, tensor by tensor; the header is in any case. A file without hashes, as
/// others write it, can be read, but changed bytes of its tensors cannot be told.
///
/// Tensors are on the CPU and contiguous. They alias a private mapping of the file, as those of ArchiveReader do, with the same
/// consequences; those that do not start at a multiple of their element's size there are copies.
///
/// Every failure is an Error whose text is "<file>: <reason>" on one line. kNotFound: there is no such file. kIo: it cannot be read.
/// kCorrupt: truncated, changed, or no safetensors file at all. kUnsupported: whole, but with a dtype that is not read here.
/// @note One thread at a time.
/// @par Source the safetensors format's description (huggingface/safetensors, README). Differs: a key that the format does not know is
///   refused within a tensor's entry, and so are more than 64 dimensions.
class MARLIN_ABI SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::filesystem::path& file, Verify verify = Verify::kFull);
  ~SafetensorsReader();
  SafetensorsReader(SafetensorsReader&&) noexcept;
  SafetensorsReader& operator=(SafetensorsReader&&) noexcept;

  /// In the header's order, without the hashes.
  [[nodiscard]] const SafetensorsMetadata& metadata() const noexcept;
  /// kNothing, too, if the file has no hashes.
  [[nodiscard]] Verified verified() const noexcept;
  /// The file's size and own hash; the hash is empty if it has none.
  [[nodiscard]] const SafetensorsWritten& written() const noexcept;

  /// In the order of their bytes. `record` is empty.
  [[nodiscard]] const std::vector<TensorInfo>& tensors() const noexcept;
  /// @throws Error kNotFound: there is none of that name; and as above.
  [[nodiscard]] at::Tensor tensor(std::string_view name);
  /// All of them under their names.
  [[nodiscard]] StateDict state();

 private:
  class Impl;
  std::filesystem::path path_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace marlin
