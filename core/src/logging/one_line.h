// Text that stays on its line.
#pragma once

#include <string>
#include <string_view>

namespace marlin {

/// `text` with line ends and other control characters written as escapes (`\n`, `\r`, `\x1b`); tabs stay.
[[nodiscard]] inline std::string one_line(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string result;
  result.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') result += "\\n";
    else if (c == '\r') result += "\\r";
    else if ((byte < 0x20 && c != '\t') || byte == 0x7f) (result += "\\x") += {kHex[byte >> 4], kHex[byte & 15]};
    else result += c;
  }
  return result;
}

}  // namespace marlin
