// The commit record as JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "archive/report.h"
#include "marlin/checkpointers/archive.h"

namespace marlin::archive {

inline constexpr const char* kCommitRecord = "marlin.json";
inline constexpr int64_t kFormatVersion = 1;

/// Always of kFormatVersion. Text that is not UTF-8 is written with its bad bytes replaced; names of records must be UTF-8.
/// @param more  further members, as JSON: `,\n "state": {}`.
[[nodiscard]] std::string to_json(const CommitRecord& record, std::string_view more = {});

/// Keys that it does not know are passed over: a later libmarlin may add some without a new format version.
/// @param where  how messages name it. @param max_depth  of nesting. @param document  if not null: the whole of it.
/// @throws Error kUnsupported (a later format version), kCorrupt.
[[nodiscard]] CommitRecord commit_record_of(std::string_view json, std::string_view where = kCommitRecord, int max_depth = kMaxDepth,
                                            nlohmann::json* document = nullptr);

}  // namespace marlin::archive
