// The commit record as JSON.
#pragma once

#include <string>
#include <string_view>

#include "marlin/checkpointers/archive.h"

namespace marlin::archive {

inline constexpr const char* kCommitRecord = "marlin.json";
inline constexpr int64_t kFormatVersion = 1;

/// Always of kFormatVersion. Text that is not UTF-8 is written with its bad bytes replaced.
[[nodiscard]] std::string to_json(const CommitRecord& record);

/// Keys that it does not know are passed over: a later libmarlin may add some without a new format version.
/// @throws Error kUnsupported (a later format version), kCorrupt.
[[nodiscard]] CommitRecord commit_record_of(std::string_view json);

}  // namespace marlin::archive
