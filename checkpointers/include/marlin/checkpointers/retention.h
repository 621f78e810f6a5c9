// Which of a folder's checkpoints stay.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "marlin/checkpointers/keep_policy.h"
#include "marlin/checkpointers/names.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/metrics.h"

namespace marlin {

/// A folder's epoch files and step files, each with the highest number first. Their numbers cannot be compared with each other.
struct FilesByAge {
  std::vector<std::filesystem::path> epochs, steps;
};

/// The regular files of `folder` itself that have such a name; none if there is no such folder. Nothing is opened.
[[nodiscard]] MARLIN_ABI FilesByAge files_by_age(const std::filesystem::path& folder, const CheckpointNames& names);

/// What a policy makes of one file.
struct KeptFile {
  enum class Fate : uint8_t {
    kStays,
    kUnopened,  ///< A rule would keep it, but it cannot be opened: not counted, and left for a person to look at.
    kGoes,
  };
  std::filesystem::path path;
  Fate fate = Fate::kStays;
  std::string why;  ///< "last:3, best:2:val/accuracy", "no rule keeps it", ...
};

/// Looks at a file without reading its tensors, as often as it is asked. @return its metrics; unset: it cannot be opened.
using LookAtFile = std::function<std::optional<Metrics>(const std::filesystem::path&)>;
/// The one that opens files of ArchiveReader.
[[nodiscard]] MARLIN_ABI std::optional<Metrics> look_at_archive(const std::filesystem::path& file);

/// Which files stay; without rules, all. The newest two always do, whatever the rules say, so that one is left if another turns out broken. Looks at those that a
/// rule keeps, or at all if a rule needs metrics, and changes none.
/// @param just_written  stays, counts as the newest whatever its number, and needs no look; empty: none is.
/// @return all of them, oldest first, epoch files before step files: to be removed in this order.
[[nodiscard]] MARLIN_ABI std::vector<KeptFile> plan_keep(const FilesByAge& files, const CheckpointNames& names, const KeepPolicy& policy, const LookAtFile& look = &look_at_archive,
                                                         const std::filesystem::path& just_written = {});

}  // namespace marlin
