// A checkpoint as one state dict, and what a commit record says of it. For files of any form.
#pragma once

#include <filesystem>

#include "marlin/checkpointers/archive.h"
#include "marlin/sdk/checkpoint.h"

namespace marlin {

/// The three parts under their names.
[[nodiscard]] StateDict root_of(const Checkpoint& checkpoint);
/// The reverse, with `file` as its source. @throws Error kMismatch that names the file and the part that is missing.
[[nodiscard]] Checkpoint checkpoint_of(StateDict root, const std::filesystem::path& file);

[[nodiscard]] CommitRecord record_of(const SavePoint& point);
/// Of the whole run.
[[nodiscard]] inline int64_t completed_epochs(const SavePoint& point) noexcept { return point.unit == Unit::kEpoch ? point.epoch + 1 : point.epoch; }
[[nodiscard]] CommitRecord record_of_model(int64_t index);

}  // namespace marlin
