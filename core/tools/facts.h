// What a plugin's file says of itself, as the commands tell it. Nothing is loaded.
#pragma once

#include <string>

#include "marlin/tools/json.h"
#include "plugins/plugin_file.h"

namespace marlin::plugin_tool {

/// "checkpointer"; of a descriptor that makes several things or nothing: "backend, writer", "-".
[[nodiscard]] std::string kinds_text(const PluginFile& file);
/// "LibTorch 2.15".
[[nodiscard]] std::string built_for(const PluginFile& file);
/// Why this libmarlin would not load it; empty: it would.
[[nodiscard]] std::string refusal(const PluginFile& file);

}  // namespace marlin::plugin_tool
