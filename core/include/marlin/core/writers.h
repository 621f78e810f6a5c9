// The writers that are built in.
#pragma once

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "marlin/sdk/writer.h"

namespace marlin {

/// One line per validation and per epoch: `epoch=0 global_step=23 train/loss=0.5312`. Step events are left to files.
[[nodiscard]] MARLIN_ABI std::unique_ptr<Writer> make_stdout_writer(std::FILE* stream = stdout);

/// Appends one JSON object a line to `<dir>/metrics.jsonl`: {"kind":"step","epoch":0,"global_step":23,"train/loss":0.53,...}.
/// NaN and infinities are written as strings. The folder is made on the first line; a file that is there is kept.
/// @throws Error kInvalidArgument if `dir` is there and no folder; its write() throws kIo.
[[nodiscard]] MARLIN_ABI std::unique_ptr<Writer> make_jsonl_writer(const std::filesystem::path& dir);

}  // namespace marlin
