// A whole checkpoint as two files: `checkpoint_4.json`, which makes it exist, and the tensors that it names.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/file_system.h"
#include "marlin/sdk/checkpoint.h"

namespace marlin::safetensors {

inline constexpr const char* kRecordExtension = "json";
inline constexpr const char* kTensorsExtension = "safetensors";

/// "checkpoint_4" of "checkpoint_4.safetensors", and of "checkpoint_4.1.safetensors", its name if the first was taken when it was written.
/// Nothing for other names.
[[nodiscard]] std::optional<std::string> stem_of_tensors(std::string_view file_name);

/// The files beside a record that have one of the names for its tensors. @throws Error kIo.
[[nodiscard]] std::vector<std::filesystem::path> tensor_files_of(const std::filesystem::path& record, const FileSystem& file_system);

/// Whether a file holds the tensors of a checkpoint that write_pair() wrote, rather than an export or what somebody else put there
/// under such a name: only the former may be removed.
[[nodiscard]] bool is_of_a_checkpoint(const std::filesystem::path& tensors);

/// Writes the tensors under a name that is free, then the record, both durably. Whatever fails, and whenever the process ends, the
/// checkpoint that had this name before is whole until the new one is; its tensors are left for the caller to remove.
/// @return the file of the tensors. @throws as write_safetensors(). What was written of the tensors is then gone, unless the record
/// may name it.
std::filesystem::path write_pair(const std::filesystem::path& record, const Checkpoint& checkpoint, const SavePoint& point, FileSystem& file_system);

/// The record without the tensors, and where they are. @throws Error kNotFound, kIo, kCorrupt, kUnsupported (a later version), "<file>: <reason>".
struct PairRecord {
  CommitRecord record;
  std::filesystem::path tensors;
};
[[nodiscard]] PairRecord read_record(const std::filesystem::path& record);
/// Opens both files without reading tensors. @throws as read_pair().
PairRecord open_pair(const std::filesystem::path& record);
/// All of it. @throws Error as read_record(), for either file; kCorrupt if the tensors are missing or others.
[[nodiscard]] Checkpoint read_pair(const std::filesystem::path& record, Verify verify);

}  // namespace marlin::safetensors
