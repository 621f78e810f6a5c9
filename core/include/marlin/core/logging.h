// A logger for programs.
#pragma once

#include <memory>
#include <string>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/logger.h"

namespace marlin {

/// A logger that writes lines of `level` and above to standard error, "[14:03:59] [info] text" in local time, the level in
/// colour if that is a terminal. One call is one line: line ends and other control characters in the text are written as
/// escapes. Any thread may call. No state is shared with other loggers, nor with spdlog's own registry.
[[nodiscard]] MARLIN_ABI std::unique_ptr<Logger> make_console_logger(LogLevel level);

/// The level of that name, in capitals or not: DEBUG, INFO, WARNING, ERROR, OFF.
/// @throws Error kInvalidArgument that lists them.
[[nodiscard]] MARLIN_ABI LogLevel parse_log_level(const std::string& name);

}  // namespace marlin
