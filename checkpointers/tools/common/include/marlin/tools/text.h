// Text for people: aligned columns, sizes, and nothing that moves the cursor of a terminal.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace marlin::tool {

/// `text` with control characters written as escapes (`\n`, `\x1b`): names and texts of a file stay on their line.
[[nodiscard]] std::string printable(std::string_view text);

/// In double quotes, printable, and cut after `max_bytes`, never within a character.
[[nodiscard]] std::string quoted(std::string_view text, size_t max_bytes);

/// "812 B", "1.3 MiB".
[[nodiscard]] std::string human_size(uint64_t bytes);

/// The shortest text that reads back as the same number; "nan", "inf", "-inf".
[[nodiscard]] std::string shortest(double value);

/// Six digits of it, which is enough to look at.
[[nodiscard]] std::string rounded(double value);

/// "1 file", "3 files".
[[nodiscard]] std::string counted(uint64_t count, std::string_view noun);

/// Rows under a heading, in columns as wide as what they hold. Counts characters, not bytes.
class Table {
 public:
  struct Column {
    std::string heading;
    bool right = false;  ///< Numbers are aligned at their end.
  };

  /// @param columns  without a heading in any, no heading is printed.
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  /// Missing cells are empty. What is past the last column's start need not fit any width.
  void add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  [[nodiscard]] bool empty() const noexcept { return rows_.empty(); }
  /// Every line ends with a newline, none with a space.
  [[nodiscard]] std::string text() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace marlin::tool
