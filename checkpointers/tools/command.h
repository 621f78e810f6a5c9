// What the commands of marlin-ckpt have in common: how each is called, and the words of one call.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace marlin::ckpt {

/// Exit codes.
inline constexpr int kGood = 0;   ///< Whole, or equal.
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
  Arguments(std::vector<std::string> words, std::map<std::string, std::string> flags)
      : words_(std::move(words)), flags_(std::move(flags)) {}

  [[nodiscard]] bool has(const std::string& flag) const { return flags_.contains(flag); }
  [[nodiscard]] std::optional<std::string> find(const std::string& flag) const;
  [[nodiscard]] std::string text(const std::string& flag, const std::string& otherwise) const { return find(flag).value_or(otherwise); }
  /// Of a flag that is required. @throws Error kInvalidArgument: no whole number.
  [[nodiscard]] int64_t number(const std::string& flag) const;

  [[nodiscard]] const std::string& word(size_t place) const { return words_.at(place); }
  /// The word as a file or a folder that is there. @throws Error kInvalidArgument: it is not.
  [[nodiscard]] std::filesystem::path file(size_t place) const;
  [[nodiscard]] std::filesystem::path folder(size_t place) const;

 private:
  std::vector<std::string> words_;
  std::map<std::string, std::string> flags_;
};

struct Command {
  std::string name;
  std::vector<std::string> words;  ///< What it takes, as in help: "FILE".
  std::string summary;             ///< One line.
  std::string details;             ///< Lines for its own help.
  std::vector<Flag> flags;         ///< Beside --json and --help.
  int (*run)(const Arguments& arguments) = nullptr;  ///< @return the exit code. @throws Error.
};

/// "inspect FILE [--json]".
[[nodiscard]] std::string usage(const Command& command);
[[nodiscard]] std::string help(const Command& command);

/// The words after the command's name. @throws Error kInvalidArgument that says what is wrong with them, and what may be meant.
/// @return nothing if --help is among them.
[[nodiscard]] std::optional<Arguments> parse(const Command& command, const std::vector<std::string>& words);

[[nodiscard]] Command ls_command();
[[nodiscard]] Command inspect_command();
[[nodiscard]] Command verify_command();
[[nodiscard]] Command diff_command();
[[nodiscard]] Command export_command();
[[nodiscard]] Command prune_command();

}  // namespace marlin::ckpt
