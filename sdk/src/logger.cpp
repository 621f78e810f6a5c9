#include "marlin/sdk/logger.h"

namespace marlin {
namespace {
class NullLogger final : public Logger {
 public:
  void log(LogLevel, std::string_view) noexcept override {}
  bool enabled(LogLevel) const noexcept override { return false; }
};
}  // namespace

Logger::~Logger() = default;
bool Logger::enabled(LogLevel) const noexcept { return true; }

Logger& null_logger() noexcept {
  static NullLogger logger;
  return logger;
}

}  // namespace marlin
