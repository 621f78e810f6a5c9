// What the command-line tools have in common: commands, how each is called, and the words of one call.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace marlin::tool {

/// Exit codes.
inline constexpr int kGood = 0;   ///< Whole, equal, in order.
inline constexpr int kBad = 1;    ///< Broken, or different, or the system refused.
inline constexpr int kUsage = 2;  ///< The call itself is wrong.

struct Flag {
  std::string name;   ///< Without dashes.
  std::string value;  ///< What it takes, as in help: "N". Empty: it is a switch.
  std::string help;
  bool required = false;
};

/// The words and flags of one call.
class Arguments {
 public:
  /// A flag that the command does not know, and its value, if one followed.
  using Other = std::pair<std::string, std::optional<std::string>>;

  Arguments(std::vector<std::string> words, std::map<std::string, std::string> flags, std::vector<Other> others = {})
      : words_(std::move(words)), flags_(std::move(flags)), others_(std::move(others)) {}

  [[nodiscard]] bool has(const std::string& flag) const { return flags_.contains(flag); }
  [[nodiscard]] std::optional<std::string> find(const std::string& flag) const;
  [[nodiscard]] std::string text(const std::string& flag, const std::string& otherwise) const { return find(flag).value_or(otherwise); }
  /// Of a flag that is required. @throws Error kInvalidArgument: no whole number.
  [[nodiscard]] int64_t number(const std::string& flag) const;

  /// Of a command that takes any flag: those that it does not know, in the order given.
  [[nodiscard]] const std::vector<Other>& others() const noexcept { return others_; }

  [[nodiscard]] const std::string& word(size_t place) const { return words_.at(place); }
  /// The word as a file or a folder that is there. @throws Error kInvalidArgument: it is not.
  [[nodiscard]] std::filesystem::path file(size_t place) const;
  [[nodiscard]] std::filesystem::path folder(size_t place) const;

 private:
  std::vector<std::string> words_;
  std::map<std::string, std::string> flags_;
  std::vector<Other> others_;
};

struct Command {
  std::string name;
  std::vector<std::string> words;  ///< What it takes, as in help: "FILE".
  std::string summary;             ///< One line.
  std::string details;             ///< Lines for its own help.
  std::vector<Flag> flags;         ///< Beside --json and --help.
  int (*run)(const Arguments& arguments) = nullptr;  ///< @return the exit code. @throws Error.
  std::string any_flag = {};       ///< Flags that are not listed are kept, too; the text is how usage says so. Empty: they are refused.
};

/// A tool.
struct Program {
  std::string name;   ///< "marlin-ckpt"
  std::string codes;  ///< What the exit codes mean, for its help: "0 whole or equal, 1 broken or different, 2 usage".
  std::vector<Command> commands;
};

/// "inspect FILE [--json]".
[[nodiscard]] std::string usage(const Command& command);
[[nodiscard]] std::string help(const Program& program, const Command& command);

/// The words after the command's name. @throws Error kInvalidArgument that says what is wrong with them, and what may be meant.
/// @return nothing if --help is among them.
[[nodiscard]] std::optional<Arguments> parse(const Program& program, const Command& command, const std::vector<std::string>& words);

/// What its main() does: runs a command, and turns whatever it throws into one line on standard error. @return the exit code.
[[nodiscard]] int run_program(const Program& program, int argc, char** argv);

}  // namespace marlin::tool
