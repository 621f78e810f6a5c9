// Where libmarlin and its plugins write log lines.
#pragma once

#include <cstdint>
#include <string_view>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/text.h"

namespace marlin {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError, kOff };

/// A sink for lines. Calls may come from any thread.
class MARLIN_ABI Logger {
 public:
  virtual ~Logger();

  /// One line, without its end. Must not throw.
  virtual void log(LogLevel level, std::string_view line) noexcept = 0;
  /// Whether a line of this level would be kept. Default: yes.
  [[nodiscard]] virtual bool enabled(LogLevel level) const noexcept;

  template <class... Args> void debug(const Args&... args) { write(LogLevel::kDebug, args...); }
  template <class... Args> void info(const Args&... args) { write(LogLevel::kInfo, args...); }
  template <class... Args> void warning(const Args&... args) { write(LogLevel::kWarning, args...); }
  template <class... Args> void error(const Args&... args) { write(LogLevel::kError, args...); }

 private:
  template <class... Args>
  void write(LogLevel level, const Args&... args) {
    if (enabled(level)) log(level, concat(args...));
  }
};

/// A logger that keeps nothing: what an embedded Trainer uses unless it is given one. Lives as long as the process.
[[nodiscard]] MARLIN_ABI Logger& null_logger() noexcept;

}  // namespace marlin
