// The checkpoints of a folder, whatever their prefix.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "commands.h"
#include "marlin/checkpointers/names.h"

namespace marlin::ckpt {

/// A file by its name alone.
struct NamedFile {
  std::filesystem::path path;
  std::string prefix;
  CheckpointNames::Form form = CheckpointNames::Form::kEpoch;
  int64_t index = 0;
  uint64_t size_bytes = 0;
};

/// --prefix and --ext.
[[nodiscard]] std::vector<Flag> name_flags();
[[nodiscard]] std::string extension(const Arguments& arguments);

/// The regular files directly in `folder` that a checkpointer could have written, of any prefix, or of that of --prefix: by
/// prefix, then by form (epoch, step, suspect, model), the highest number first. Hidden files are no checkpoints.
/// @throws Error kInvalidArgument: --prefix or --ext can be no checkpointer's; kIo: the folder cannot be read.
[[nodiscard]] std::vector<NamedFile> named_files(const std::filesystem::path& folder, const Arguments& arguments);

/// "checkpoints: no checkpoints (files like checkpoint_4.pt)".
[[nodiscard]] std::string none_in(const std::filesystem::path& folder, const Arguments& arguments);

/// "epoch", "step", "suspect", "model".
[[nodiscard]] const char* to_string(CheckpointNames::Form form);

/// An error of the reader without the file's name, where that is said already.
[[nodiscard]] std::string reason(const std::filesystem::path& file, const std::string& error);

}  // namespace marlin::ckpt
