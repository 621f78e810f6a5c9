// A logger that a test can look into.
#pragma once

#include <algorithm>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "marlin/sdk/logger.h"

namespace marlin::testing {

class RecordingLogger final : public Logger {
 public:
  void log(LogLevel level, std::string_view line) noexcept override {
    const std::lock_guard lock(mutex_);
    lines_.emplace_back(level, line);
  }
  [[nodiscard]] std::vector<std::string> lines(LogLevel level) const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> result;
    for (const auto& [of, line] : lines_) {
      if (of == level) result.push_back(line);
    }
    return result;
  }
  [[nodiscard]] std::vector<std::string> warnings() const { return lines(LogLevel::kWarning); }
  [[nodiscard]] std::vector<std::string> errors() const { return lines(LogLevel::kError); }

 private:
  mutable std::mutex mutex_;
  std::vector<std::pair<LogLevel, std::string>> lines_;
};

}  // namespace marlin::testing
