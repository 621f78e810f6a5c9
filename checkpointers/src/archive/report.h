// How the archive's parts report what they cannot read, and what they check text with. No LibTorch header.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::archive {

/// Text from a file, fit for a message: on one line, other than printable ASCII as \xNN, cut after 80 bytes.
[[nodiscard]] std::string printable(std::string_view text);

/// `where` is a record's name. read_archive() puts the file's name before it.
[[noreturn]] void corrupt(std::string_view where, const std::string& why);
[[noreturn]] void unsupported(std::string_view where, const std::string& why);

/// Well-formed, by Unicode's table 3-7: no overlong forms, no surrogates.
[[nodiscard]] bool is_utf8(std::string_view text);

/// How deep lists, tuples and dicts may be nested, the root included.
inline constexpr int kMaxDepth = 64;

}  // namespace marlin::archive
