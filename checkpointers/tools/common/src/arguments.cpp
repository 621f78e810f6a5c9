#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <system_error>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/command.h"
#include "marlin/tools/text.h"

namespace marlin::tool {
namespace {

namespace po = boost::program_options;
namespace fs = std::filesystem;

[[noreturn]] void refuse(const std::string& why) { throw Error(Errc::kInvalidArgument, why); }

std::vector<Flag> all_flags(const Command& command) {
  std::vector<Flag> flags = command.flags;
  flags.push_back({"json", "", "Print one JSON document."});
  flags.push_back({"help", "", "Print this."});
  return flags;
}

[[noreturn]] void refuse_flag(const Program& program, const Command& command, const std::string& given) {
  std::vector<std::string> names;
  for (const Flag& flag : all_flags(command)) names.push_back("--" + flag.name);
  const std::string close = nearest(given, names);
  if (!close.empty()) refuse(concat("unknown flag ", given, "; did you mean ", close, "?"));
  refuse(concat("unknown flag ", given, "; ", program.name, " ", command.name, " --help lists all there are"));
}

po::options_description described(const Command& command) {
  po::options_description description;
  for (const Flag& flag : all_flags(command)) {
    if (flag.value.empty()) {
      description.add_options()(flag.name.c_str(), "");
    } else {
      description.add_options()(flag.name.c_str(), po::value<std::string>(), "");
    }
  }
  return description;
}

std::vector<po::option> split(const Program& program, const Command& command, const std::vector<std::string>& words) {
  using Style = po::command_line_style::style_t;
  const po::options_description description = described(command);
  try {
    return po::command_line_parser(words)
        .options(description)
        .style(Style::allow_long | Style::long_allow_adjacent | Style::long_allow_next)
        .run()
        .options;
  } catch (const po::unknown_option& error) {
    refuse_flag(program, command, error.get_option_name());
  } catch (const po::error& error) {
    refuse(error.what());
  }
}

// Takes out the flags that the command does not know, with what follows each unless that is a flag, too.
std::vector<Arguments::Other> take_others(const Command& command, std::vector<std::string>& words) {
  std::vector<Arguments::Other> others;
  std::vector<std::string> rest;
  const std::vector<Flag> flags = all_flags(command);
  auto word = words.begin();
  for (; word != words.end() && *word != "--"; ++word) {
    const size_t equals = word->find('=');
    const std::string name = word->starts_with("--") ? word->substr(2, equals == std::string::npos ? equals : equals - 2) : "";
    if (name.empty() || std::any_of(flags.begin(), flags.end(), [&](const Flag& flag) { return flag.name == name; })) {
      rest.push_back(*word);
    } else if (equals != std::string::npos) {
      others.emplace_back(name, word->substr(equals + 1));
    } else if (word + 1 != words.end() && !(word + 1)->starts_with("--")) {
      others.emplace_back(name, *++word);
    } else {
      others.emplace_back(name, std::nullopt);
    }
  }
  rest.insert(rest.end(), word, words.end());
  words = std::move(rest);
  return others;
}

// What is at a path; nothing there is refused.
fs::file_status status_of(const std::string& word) {
  std::error_code error;
  const fs::file_status status = fs::status(word, error);
  if (!fs::exists(status)) refuse(concat("'", word, "': ", error ? error.message() : "No such file or directory"));
  return status;
}

}  // namespace

std::optional<std::string> Arguments::find(const std::string& flag) const {
  const auto found = flags_.find(flag);
  return found == flags_.end() ? std::nullopt : std::optional(found->second);
}

int64_t Arguments::number(const std::string& flag) const {
  const std::string& given = flags_.at(flag);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(given.data(), given.data() + given.size(), value);
  if (error != std::errc() || end != given.data() + given.size()) refuse(concat("--", flag, ": must be a whole number, got '", given, "'"));
  return value;
}

fs::path Arguments::file(size_t place) const {
  const std::string& name = word(place);
  if (fs::is_directory(status_of(name))) refuse(concat("'", name, "' is a folder; name one file of it"));
  return name;
}

fs::path Arguments::folder(size_t place) const {
  if (!fs::is_directory(status_of(word(place)))) refuse(concat("'", word(place), "' is not a folder"));
  return word(place);
}

std::string usage(const Command& command) {
  std::string text = concat(command.name, " ", join(command.words, " "));
  for (const Flag& flag : command.flags) {
    const std::string shown = concat("--", flag.name, flag.value.empty() ? "" : " ", flag.value);
    text += flag.required ? " " + shown : " [" + shown + "]";
  }
  return concat(text, command.any_flag.empty() ? "" : " ", command.any_flag, " [--json]");
}

std::string help(const Program& program, const Command& command) {
  Table table({{""}, {""}});
  for (const Flag& flag : all_flags(command)) table.add({concat("  --", flag.name, flag.value.empty() ? "" : " ", flag.value), flag.help});
  return concat("usage: ", program.name, " ", usage(command), "\n\n", command.details, "\n\n", table.text());
}

std::optional<Arguments> parse(const Program& program, const Command& command, const std::vector<std::string>& given) {
  std::vector<std::string> words = given;
  std::vector<Arguments::Other> others;
  if (!command.any_flag.empty()) others = take_others(command, words);
  // What follows `--` are words, whatever they begin with.
  const auto end_of_flags = std::find(words.begin(), words.end(), "--");
  std::vector<std::string> found;
  std::map<std::string, std::string> flags;
  for (const po::option& option : split(program, command, {words.begin(), end_of_flags})) {
    if (option.string_key.empty()) {
      const std::string& word = option.original_tokens.front();
      if (word.size() > 1 && word.starts_with('-')) refuse_flag(program, command, word);
      found.push_back(word);
    } else if (!flags.emplace(option.string_key, option.value.empty() ? "" : option.value.front()).second) {
      refuse(concat("--", option.string_key, ": given twice"));
    }
  }
  if (end_of_flags != words.end()) found.insert(found.end(), end_of_flags + 1, words.end());
  if (flags.contains("help")) return std::nullopt;
  const std::string hint = concat("; usage: ", program.name, " ", usage(command));
  if (found.size() < command.words.size()) refuse(concat(command.words[found.size()], " is missing", hint));
  if (found.size() > command.words.size()) refuse(concat("unexpected argument '", found[command.words.size()], "'", hint));
  for (const Flag& flag : command.flags) {
    if (flag.required && !flags.contains(flag.name)) refuse(concat("--", flag.name, " ", flag.value, " is missing", hint));
  }
  return Arguments(std::move(found), std::move(flags), std::move(others));
}

}  // namespace marlin::tool
