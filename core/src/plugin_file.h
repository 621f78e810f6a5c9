// What a plugin's file says of itself before it is loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "marlin/sdk/plugin.h"

namespace marlin {

/// The part of a PluginDescriptor that needs no loader: it holds no pointer, so it lies in the file as it will lie in memory.
struct DescriptorHead {
  char magic[8];
  uint32_t size;
  BuildFacts facts;
};

/// Reads the head of the exported `marlin_plugin` of a shared library, by its dynamic symbol table. Safe on any file.
/// @throws Error kPlugin, text beginning "plugin <file>: ": missing, a folder, unreadable, empty, not an ELF file, one of another
///   machine, damaged, or one that exports no marlin_plugin.
[[nodiscard]] DescriptorHead read_descriptor_head(const std::string& file);

/// Checks that the head was compiled with the same headers and settings as this library.
/// @throws Error kPlugin that tells everything that differs, and the remedy.
void check_build(const std::string& file, const DescriptorHead& head);

}  // namespace marlin
