// Putting a message together.
#pragma once

#include <sstream>
#include <string>
#include <string_view>
#include <typeinfo>
#include <vector>

#include "marlin/sdk/abi.h"

namespace marlin {

/// The arguments, each written with operator<<, one after the other.
template <class... Args>
[[nodiscard]] std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return std::move(out).str();
}

/// "a, b, c".
[[nodiscard]] MARLIN_ABI std::string join(const std::vector<std::string>& parts, std::string_view separator = ", ");

/// The parts between separators; nothing for an empty text, and none after a separator that ends it.
[[nodiscard]] MARLIN_ABI std::vector<std::string> split(std::string_view text, char separator);

/// `text` with line ends and other control characters written as escapes (`\n`, `\r`, `\x1b`); tabs stay.
[[nodiscard]] MARLIN_ABI std::string one_line(std::string_view text);

/// The name of a type as it is written in a program: "std::runtime_error".
[[nodiscard]] MARLIN_ABI std::string demangled(const std::type_info& type);

/// The candidate that differs from `word` by the fewest typing mistakes (insert, delete, replace, swap of neighbours);
/// empty if none comes near enough to be meant.
[[nodiscard]] MARLIN_ABI std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace marlin
