// What makes two builds of libmarlin and of its plugins fit together.
#pragma once

#define MARLIN_ABI __attribute__((visibility("default")))  // everything else is hidden

#define MARLIN_VERSION "0.1.0"

namespace marlin {
/// Raised with every change of a class or struct in the sdk headers. A plugin of another number is refused.
inline constexpr unsigned kPluginAbi = 4;
}  // namespace marlin
