// From the words of a command line, and the file it names, to checked options.
#pragma once

#include <string>
#include <vector>

#include "marlin/sdk/options.h"

namespace marlin::cli {

/// Options that stand together in --help and share their prefixes.
struct OptionGroup {
  std::string heading;                ///< "Trainer", "Module", "Checkpointer default".
  std::vector<std::string> prefixes;  ///< Each flag may be typed with any of these, e.g. {""} or {"checkpointer.", "checkpointer.default."}.
                                      ///< The first is the one that help and print_config show.
  OptionTable table;
};

/// `--name value`, `--name=value`; for a bool `--name` alone is true. No abbreviations, no short flags. A word that begins with
/// `--` is never taken for a value unless it is joined with `=`. What is typed wins over what the file of --config says.
class CommandLine {
 public:
  CommandLine(int argc, const char* const* argv);

  /// The program's name, without its folder.
  [[nodiscard]] const std::string& program() const noexcept { return program_; }

  /// The first pass: just these options, typed without a prefix or from the file. Anything else is passed over.
  /// @throws Error kInvalidArgument as parse() does.
  [[nodiscard]] Options preview(const OptionTable& table) const;

  /// The second pass: everything must belong to a group. @return the options of each group, in the order of the groups.
  /// @throws Error kInvalidArgument with every problem in its one line, joined by "; ".
  [[nodiscard]] std::vector<Options> parse(const std::vector<OptionGroup>& groups) const;

  /// What --help prints: at most 100 columns wide, ends with a line end.
  [[nodiscard]] static std::string help(const std::string& usage, const std::vector<OptionGroup>& groups);

  /// What --print_config prints: a file that --config reads back to the same values. Without `config`, `print_config`, `help`,
  /// `version`, which belong to one call; options without a value are comments.
  [[nodiscard]] static std::string print_config(const std::vector<OptionGroup>& groups, const std::vector<Options>& options);

 private:
  std::string program_;
  std::vector<std::string> words_;
};

}  // namespace marlin::cli
