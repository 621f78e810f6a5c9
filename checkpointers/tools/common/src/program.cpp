#include <c10/util/Exception.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <exception>
#include <iostream>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/command.h"
#include "marlin/tools/text.h"

namespace marlin::tool {
namespace {

void print_help(const Program& program) {
  Table table({{""}, {""}});
  for (const Command& command : program.commands) table.add({concat("  ", command.name, " ", join(command.words, " ")), command.summary});
  std::cout << "usage: " << program.name << " COMMAND ... [--json]\n\n" << table.text()
            << "\n" << program.name << " COMMAND --help lists a command's flags; --version says the version.\nExit codes: " << program.codes << ".\n";
}

void refuse_command(const Program& program, const std::string& word) {
  const auto refuse = [](const std::string& why) { throw Error(Errc::kInvalidArgument, why); };
  const auto meant = [&](const std::vector<std::string>& candidates) {
    const std::string close = nearest(word, candidates);
    return close.empty() ? "" : concat("; did you mean ", close, "?");
  };
  std::vector<std::string> names;
  for (const Command& command : program.commands) names.push_back(command.name);
  if (word.empty()) refuse(concat("a command is missing: ", join(names), "; ", program.name, " --help tells of each"));
  std::string hint = meant(word.starts_with('-') ? std::vector<std::string>{"--help", "--version"} : names);
  if (word.starts_with('-')) refuse(concat("unknown flag ", word, hint.empty() ? "; the command comes first, its flags after it" : hint));
  refuse(concat("unknown command '", word, "'", hint.empty() ? concat("; there are ", join(names)) : hint));
}

int run(const Program& program, const std::vector<std::string>& words) {
  const std::string first = words.empty() ? "" : words.front();
  if (first == "--help") {
    print_help(program);
    return kGood;
  }
  if (first == "--version") {
    std::cout << "libmarlin " MARLIN_VERSION " (LibTorch " TORCH_VERSION ")\n";
    return kGood;
  }
  for (const Command& command : program.commands) {
    if (command.name != first) continue;
    const std::optional<Arguments> arguments = parse(program, command, {words.begin() + 1, words.end()});
    if (arguments) return command.run(*arguments);
    std::cout << help(program, command);
    return kGood;
  }
  refuse_command(program, first);
  return kUsage;
}

// LibTorch warns of rare dtypes when it meets one, on a standard error that is for errors.
struct NoWarnings : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

int report(const char* problem, int code) {
  std::cerr << "error: " << printable(problem) << std::endl;
  return code;
}

}  // namespace

int run_program(const Program& program, int argc, char** argv) {
  NoWarnings no_warnings;
  const c10::WarningUtils::WarningHandlerGuard guard(&no_warnings);
  try {
    const int code = run(program, {argv + std::min(argc, 1), argv + argc});
    if (std::cout.flush()) return code;
    throw Error(Errc::kIo, "standard output cannot be written to");
  } catch (const Error& error) {
    return report(error.what(), error.code() == Errc::kInvalidArgument ? kUsage : kBad);
  } catch (const c10::Error& error) {
    return report(error.what_without_backtrace(), kBad);
  } catch (const std::exception& error) {
    return report(error.what(), kBad);
  }
}

}  // namespace marlin::tool
