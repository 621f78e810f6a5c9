#include "archive/report.h"

namespace marlin::archive {

std::string printable(std::string_view text) {
  constexpr size_t kMaxBytes = 80;
  constexpr const char* kDigits = "0123456789abcdef";
  std::string result;
  for (const char c : text.substr(0, kMaxBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      result += c;
    } else {
      result += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  if (text.size() > kMaxBytes) result += "...";
  return result;
}

void corrupt(std::string_view where, const std::string& why) { throw Error(Errc::kCorrupt, concat(where, ": ", why)); }
void unsupported(std::string_view where, const std::string& why) { throw Error(Errc::kUnsupported, concat(where, ": ", why)); }

bool is_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  for (size_t i = 0; i < text.size();) {
    const unsigned lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4) return false;
    // Only the second byte's range depends on the lead: it excludes overlong forms, surrogates and what is past U+10FFFF.
    const unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (byte(i + 1) < low || byte(i + 1) > high) return false;
    for (size_t k = 2; k < length; ++k) {
      if (byte(i + k) < 0x80 || byte(i + k) > 0xbf) return false;
    }
    i += length;
  }
  return true;
}

}  // namespace marlin::archive
