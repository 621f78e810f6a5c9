#include "cli/config_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>

#include "marlin/sdk/text.h"

namespace marlin::cli {
namespace {

constexpr std::string_view kSpace = " \t\r\v\f";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

bool is_space(char c) { return kSpace.find(c) != std::string_view::npos; }
bool starts_comment(char c) { return c == '#' || c == ';'; }

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

bool is_comment_or_empty(std::string_view text) {
  const std::string_view rest = trimmed(text);
  return rest.empty() || starts_comment(rest.front());
}

bool is_name(std::string_view text) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
  };
  return !text.empty() && std::all_of(text.begin(), text.end(), allowed);
}

// What a line turned out to be wrong with; caught by the reader, which knows the line's number.
struct Problem {
  std::string text;
};

// Up to a comment, which white space must come before: `a#b` is a value.
std::string unquoted(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (starts_comment(text[i]) && i > 0 && is_space(text[i - 1])) return std::string(trimmed(text.substr(0, i)));
  }
  return std::string(trimmed(text));
}

char unescaped(char c) {
  switch (c) {
    case '"':
    case '\\': return c;
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    default: throw Problem{concat("unknown escape \\", c, " in a quoted value; there are \\\" \\\\ \\n \\r \\t")};
  }
}

// `text` starts behind the opening quote.
std::string quoted(std::string_view text) {
  std::string value;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') {
      if (!is_comment_or_empty(text.substr(i + 1))) {
        throw Problem{concat("'", trimmed(text.substr(i + 1)), "' after the closing quote; write \\\" for a quote within a value")};
      }
      return value;
    }
    if (text[i] != '\\') {
      value += text[i];
    } else if (++i < text.size()) {
      value += unescaped(text[i]);
    }
  }
  throw Problem{"the closing quote is missing"};
}

std::string section_name(std::string_view line) {
  const size_t end = line.find(']');
  if (end == std::string_view::npos) throw Problem{concat("a section needs a closing bracket, got '", line, "'")};
  const std::string_view name = trimmed(line.substr(1, end - 1));
  if (!is_name(name) || !is_comment_or_empty(line.substr(end + 1))) throw Problem{concat("not a section name: '", line, "'")};
  return std::string(name);
}

ConfigEntry entry_of(std::string_view line, const std::string& section) {
  const size_t equals = line.find('=');
  if (equals == std::string_view::npos) throw Problem{concat("expected name = value, got '", trimmed(line), "'")};
  const std::string_view name = trimmed(line.substr(0, equals));
  if (!is_name(name)) throw Problem{concat("not a name: '", name, "'")};
  const std::string_view rest = line.substr(equals + 1);
  const std::string_view value = trimmed(rest);
  ConfigEntry entry;
  entry.name = section.empty() ? std::string(name) : concat(section, ".", name);
  entry.value = !value.empty() && value.front() == '"' ? quoted(value.substr(1)) : unquoted(rest);
  return entry;
}

}  // namespace

ConfigFile parse_config(std::string_view text, const std::string& path) {
  ConfigFile file{path, {}, {}};
  std::string section;
  if (text.substr(0, kByteOrderMark.size()) == kByteOrderMark) text.remove_prefix(kByteOrderMark.size());
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (is_comment_or_empty(line)) continue;
    try {
      if (line.front() == '[') {
        section = section_name(line);
        continue;
      }
      file.entries.push_back(entry_of(line, section));
      file.entries.back().line = number;
    } catch (const Problem& problem) {
      file.problems.push_back(concat(path, ":", number, ": ", problem.text));
    }
  }
  return file;
}

ConfigFile read_config(const std::string& path) {
  std::error_code ignored;
  const auto refused = [&](std::string_view why) { return ConfigFile{path, {}, {concat("--config: cannot read ", path, ": ", why)}}; };
  if (path.empty()) return ConfigFile{path, {}, {"--config: must name a file, got ''"}};
  if (std::filesystem::is_directory(path, ignored)) return refused("it is a folder");
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) return refused(std::strerror(errno));
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (in.bad()) return refused("reading failed");
  return parse_config(text, path);
}

std::string config_value(std::string_view value) {
  const auto special = [](char c) { return starts_comment(c) || c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20; };
  const bool plain = !value.empty() && trimmed(value) == value && std::none_of(value.begin(), value.end(), special);
  if (plain) return std::string(value);
  std::string result = "\"";
  for (const char c : value) {
    switch (c) {
      case '"': result += "\\\""; break;
      case '\\': result += "\\\\"; break;
      case '\n': result += "\\n"; break;
      case '\r': result += "\\r"; break;
      case '\t': result += "\\t"; break;
      default: result += c;
    }
  }
  return result + '"';
}

}  // namespace marlin::cli
