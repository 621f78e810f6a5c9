// Why a run has failed, in a line.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace marlin::distributed {

enum class Saw : uint8_t { kClosed, kNothing };  ///< Of a peer: a broken connection; nothing within the limit.

/// What the monitors of the other ranks have said.
struct Answers {
  std::vector<int> silent;  ///< Nothing.
  std::vector<int> left;    ///< That they have ended.
  std::vector<int> late;    ///< Fewer calls than others.
};

/// @param names of all ranks.
[[nodiscard]] std::string verdict_on(const Answers& answers, const std::vector<std::string>& names, Saw saw, std::chrono::milliseconds limit);
[[nodiscard]] std::string verdict_of_gone(const std::string& name);
[[nodiscard]] std::string verdict_of_silent(const std::string& name, std::chrono::milliseconds limit);

}  // namespace marlin::distributed
