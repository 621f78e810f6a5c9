// Which of a folder's checkpoints stay when only the newest are to be kept.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "marlin/checkpointers/names.h"
#include "marlin/sdk/abi.h"

namespace marlin {

/// A folder's epoch files and step files, each with the highest number first. Their numbers cannot be compared with each other.
struct FilesByAge {
  std::vector<std::filesystem::path> epochs, steps;
};

/// The regular files of `folder` itself that have such a name; none if there is no such folder. Nothing is opened.
[[nodiscard]] MARLIN_ABI FilesByAge files_by_age(const std::filesystem::path& folder, const CheckpointNames& names);

/// What `keep_last` makes of files of one kind.
struct KeepPlan {
  std::vector<std::filesystem::path> kept;      ///< The newest that can be opened, newest first; at most keep_last.
  std::vector<std::filesystem::path> unopened;  ///< Among them, those that cannot be: not counted, and left for a person to look at.
  std::vector<std::filesystem::path> surplus;   ///< To be removed, in this order: oldest first.
};

/// Opens as many of the files as it takes, without reading their tensors, and changes none.
/// @param newest_first  files of one kind, as files_by_age() has them.
/// @param keep_last  Range: >= 1. Whoever removes files wants 2 or more, so that one stays if another turns out broken.
/// @param just_written  counts as the first that is kept, whatever its number, and is not opened; empty: none is.
/// @param can_be_opened  empty: whether ArchiveReader opens it.
[[nodiscard]] MARLIN_ABI KeepPlan plan_keep_last(const std::vector<std::filesystem::path>& newest_first, int64_t keep_last,
                                                 const std::filesystem::path& just_written = {},
                                                 const std::function<bool(const std::filesystem::path&)>& can_be_opened = {});

}  // namespace marlin
