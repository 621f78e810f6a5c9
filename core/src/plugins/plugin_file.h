// What a plugin's file says of itself before it is loaded.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "marlin/sdk/plugin.h"

namespace marlin {

/// The facts of a plugin, as far as they can be told without running any of its code.
struct PluginFile {
  std::string path;
  BuildFacts facts;                 ///< Of another SDK ABI: only what every version has is filled in, down to `sanitizer`.
  uint32_t descriptor_size = 0;     ///< Bytes.
  // Filled in if the SDK ABI is this one:
  std::string name, version;
  std::vector<PluginKind> kinds;    ///< What it makes. In order: exactly one.
  // Of any:
  std::vector<std::string> needed;  ///< The libraries it is linked with.
  bool holds_torch = false;         ///< LibTorch's own code is in it.
};

/// Safe on any file.
/// @throws Error kPlugin, text beginning "plugin <file>: ": missing, a folder, unreadable, empty, not an ELF file, one of another
///   machine, damaged, or one that exports no plugin descriptor.
[[nodiscard]] PluginFile read_plugin_file(const std::string& path);

/// Everything that was built otherwise than this library, and what would have to be done, in one line; nothing: all agrees.
[[nodiscard]] std::optional<std::string> build_differences(const PluginFile& file);

/// Whether it would bring LibTorch into the process a second time, where this process has it; and what would have to be done.
[[nodiscard]] std::optional<std::string> second_torch(const PluginFile& file);

}  // namespace marlin
