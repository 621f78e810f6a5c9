#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>
#include <vector>

#include "marlin/core/logging.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

spdlog::level::level_enum spdlog_level(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarning: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
    case LogLevel::kOff: return spdlog::level::off;
  }
  return spdlog::level::off;
}

class ConsoleLogger final : public Logger {
 public:
  explicit ConsoleLogger(LogLevel level) : level_(level), logger_("marlin", std::make_shared<spdlog::sinks::stderr_color_sink_mt>()) {
    logger_.set_level(spdlog_level(level));
    logger_.set_pattern("[%H:%M:%S] [%^%l%$] %v");
    logger_.set_error_handler([](const std::string&) {});  // a line that cannot be written is no reason to write another
  }

  void log(LogLevel level, std::string_view line) noexcept override {
    if (!enabled(level)) return;
    try {
      const std::string safe = one_line(line);
      logger_.log(spdlog_level(level), spdlog::string_view_t(safe.data(), safe.size()));
    } catch (...) {  // out of memory: the line is lost, the run goes on
    }
  }

  [[nodiscard]] bool enabled(LogLevel level) const noexcept override { return level != LogLevel::kOff && level >= level_; }

 private:
  LogLevel level_;
  spdlog::logger logger_;
};

constexpr std::array<std::pair<const char*, LogLevel>, 5> kLevels = {{{"DEBUG", LogLevel::kDebug},
                                                                      {"INFO", LogLevel::kInfo},
                                                                      {"WARNING", LogLevel::kWarning},
                                                                      {"ERROR", LogLevel::kError},
                                                                      {"OFF", LogLevel::kOff}}};

}  // namespace

std::unique_ptr<Logger> make_console_logger(LogLevel level) { return std::make_unique<ConsoleLogger>(level); }

LogLevel parse_log_level(const std::string& name) {
  std::string upper = name;
  std::transform(upper.begin(), upper.end(), upper.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  std::vector<std::string> names;
  for (const auto& [text, level] : kLevels) {
    if (upper == text) return level;
    names.emplace_back(text);
  }
  const std::string close = nearest(upper, names);
  throw Error(Errc::kInvalidArgument, concat("a log level must be one of ", join(names), ", got '", one_line(name), "'",
                                             close.empty() ? "" : concat("; did you mean ", close, "?")));
}

}  // namespace marlin
