// The commands of marlin-ckpt.
#pragma once

#include "marlin/tools/command.h"

namespace marlin::ckpt {

using namespace tool;  // what all tools have in common

[[nodiscard]] Command ls_command();
[[nodiscard]] Command inspect_command();
[[nodiscard]] Command verify_command();
[[nodiscard]] Command diff_command();
[[nodiscard]] Command export_command();
[[nodiscard]] Command prune_command();

}  // namespace marlin::ckpt
