// What a plugin gets from the program that loads it.
#pragma once

#include <filesystem>
#include <string>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/logger.h"

namespace marlin {

class FileSystem;  // marlin/checkpointers/file_system.h

/// Lives longer than anything the plugin makes with it.
struct HostContext {
  Logger* logger = &null_logger();
  int rank = 0;         ///< Of this process, from 0.
  int world_size = 1;   ///< Processes of the run.
  std::filesystem::path run_dir = {};  ///< Folder that relative paths of the run's options start from. Empty: the working folder.
  FileSystem* file_system = nullptr;   ///< What files are written and removed with; null: the system's. See file_system_of().

  /// A path as an option gives it, from the run's folder.
  [[nodiscard]] std::filesystem::path in_run_dir(const std::filesystem::path& path) const { return run_dir.empty() ? path : run_dir / path; }
};

}  // namespace marlin
