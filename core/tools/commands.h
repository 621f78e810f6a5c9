// The commands of marlin-plugin.
#pragma once

#include "marlin/tools/command.h"

namespace marlin::plugin_tool {

using namespace tool;  // what all tools have in common

[[nodiscard]] Command new_command();
[[nodiscard]] Command list_command();
[[nodiscard]] Command info_command();
[[nodiscard]] Command check_command();

}  // namespace marlin::plugin_tool
