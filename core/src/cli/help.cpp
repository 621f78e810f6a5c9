// CommandLine::help.
#include <algorithm>
#include <string_view>

#include "cli/command_line.h"
#include "marlin/sdk/text.h"

namespace marlin::cli {
namespace {

constexpr size_t kWidth = 100;
constexpr size_t kWidestFlags = 42;  // a longer flag has a line of its own

const char* type_name(OptionType type) {
  switch (type) {
    case OptionType::kBool: return "bool";
    case OptionType::kInt: return "int";
    case OptionType::kDouble: return "number";
    case OptionType::kString: return "text";
    case OptionType::kList: return "list";
  }
  return "";
}

std::string range_of(const OptionSpec& spec) {
  const auto number = [](double value) { return detail::option_text(value); };
  if (spec.min && spec.max) return concat(number(*spec.min), " to ", number(*spec.max));
  if (spec.min) return "at least " + number(*spec.min);
  if (spec.max) return "at most " + number(*spec.max);
  return "";
}

std::string explained(const OptionSpec& spec) {
  std::string facts = "default none";
  if (spec.default_value) facts = concat("default ", spec.default_value->empty() ? "\"\"" : *spec.default_value);
  if (!spec.unit.empty()) facts += "; unit " + spec.unit;
  if (const std::string range = range_of(spec); !range.empty()) facts += "; " + range;
  if (!spec.choices.empty()) facts += "; one of " + join(spec.choices);
  return concat(spec.help, spec.help.empty() ? "[" : " [", facts, "]");
}

// Breaks at spaces; a word that is longer than a line is cut.
std::vector<std::string> wrapped(std::string_view text, size_t width) {
  std::vector<std::string> lines;
  while (text.size() > width) {
    size_t end = text.rfind(' ', width);
    if (end == std::string_view::npos || end == 0) end = width;
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(end);
    text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  }
  if (!text.empty()) lines.emplace_back(text);
  return lines;
}

std::string left_of(const std::string& prefix, const OptionSpec& spec) { return concat("  --", prefix, spec.name, " ", type_name(spec.type)); }

}  // namespace

std::string CommandLine::help(const std::string& usage, const std::vector<OptionGroup>& groups) {
  size_t column = 0;
  const auto prefix_of = [](const OptionGroup& group) { return group.prefixes.empty() ? std::string() : group.prefixes.front(); };
  for (const OptionGroup& group : groups) {
    for (const OptionSpec& spec : group.table) {
      const size_t size = left_of(prefix_of(group), spec).size() + 2;
      if (size <= kWidestFlags) column = std::max(column, size);
    }
  }
  column = std::max<size_t>(column, 8);

  std::string text = usage;
  if (!text.ends_with('\n')) text += '\n';
  for (const OptionGroup& group : groups) {
    if (group.table.empty()) continue;
    std::string heading = group.heading;
    for (size_t p = 1; p < group.prefixes.size(); ++p) heading += concat(p == 1 ? " (or --" : ", --", group.prefixes[p], "NAME");
    text += concat("\n", heading, group.prefixes.size() > 1 ? "):\n" : ":\n");
    for (const OptionSpec& spec : group.table) {
      std::string left = left_of(prefix_of(group), spec);
      if (left.size() + 2 > column) {
        text += left + '\n';
        left.clear();
      }
      for (const std::string& line : wrapped(explained(spec), kWidth - column)) {
        text += left + std::string(column - left.size(), ' ') + line + '\n';
        left.clear();
      }
    }
  }
  return text;
}

}  // namespace marlin::cli
