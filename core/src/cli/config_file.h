// The file that --config names.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace marlin::cli {

/// One `name = value` of a file. A section's name stands before those of its entries: `period` in [checkpointer] is
/// "checkpointer.period".
struct ConfigEntry {
  std::string name;
  std::string value;
  int line = 0;  ///< From 1.
};

struct ConfigFile {
  std::string path;                   ///< As it was given.
  std::vector<ConfigEntry> entries;   ///< In the order of the file.
  std::vector<std::string> problems;  ///< One line for each thing that could not be read, "run.ini:3: ..."; empty: all was read.
};

/// Reads a file. Its own failures are problems, too: nothing is thrown for a file that is missing.
[[nodiscard]] ConfigFile read_config(const std::string& path);

/// Reads the text of a file. `path` is for messages.
///
/// Lines end with LF or CRLF; a byte order mark is skipped. A line is empty, a comment (first character `#` or `;`), a section
/// `[name]`, or `name = value`. A comment may follow after white space. A value in double quotes may hold anything, with the
/// escapes \" \\ \n \r \t; any other stands for itself, without the white space around it.
[[nodiscard]] ConfigFile parse_config(std::string_view text, const std::string& path);

/// The value as parse_config reads it back: in quotes if it needs them.
[[nodiscard]] std::string config_value(std::string_view value);

}  // namespace marlin::cli
