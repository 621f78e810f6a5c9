#include "cli/command_line.h"

#include <algorithm>
#include <array>
#include <boost/program_options.hpp>
#include <map>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "cli/config_file.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::cli {
namespace {

namespace po = boost::program_options;

// These say what one call is to do; a file of settings has no say in it.
constexpr std::array<std::string_view, 4> kOfTheCall = {"config", "print_config", "help", "version"};

bool is_of_the_call(std::string_view full_name) {
  return std::find(kOfTheCall.begin(), kOfTheCall.end(), full_name) != kOfTheCall.end();
}

// One flag as it was typed, or a word that is none.
struct Typed {
  std::string flag;                  // without dashes; empty: a stray word
  std::optional<std::string> value;  // a stray word itself
};

// Boost knows how words become flags. That it is told of no option at all leaves the values to us: told of them, it stops at
// the first mistake, takes `--a --b` for a value of a, and refuses `--a=`.
std::vector<Typed> typed(const std::vector<std::string>& words, std::vector<std::string>& problems) {
  std::vector<std::string> clean;
  for (const std::string& word : words) {
    if (word == "--") {
      problems.emplace_back("unexpected argument '--'");  // Boost would take what follows for positional words
    } else if (word.size() > 3 && word.starts_with("--") && word.find('=') == word.size() - 1) {
      clean.insert(clean.end(), {word.substr(0, word.size() - 1), ""});
    } else {
      clean.push_back(word);
    }
  }
  using Style = po::command_line_style::style_t;
  const po::options_description none;
  const auto parsed = po::command_line_parser(clean)
                          .options(none)
                          .style(Style::allow_long | Style::long_allow_adjacent | Style::long_allow_next)
                          .allow_unregistered()
                          .run();
  std::vector<Typed> result;
  bool wants_value = false;
  for (const po::option& option : parsed.options) {
    if (!option.string_key.empty()) {
      result.push_back({option.string_key, option.value.empty() ? std::nullopt : std::optional(option.value.front())});
      wants_value = option.value.empty();
    } else if (wants_value) {
      result.back().value = option.original_tokens.front();
      wants_value = false;
    } else {
      result.push_back({"", option.original_tokens.front()});
    }
  }
  return result;
}

// Which option a full name means.
class Names {
 public:
  struct Target {
    size_t group = 0;
    const OptionSpec* spec = nullptr;
  };

  explicit Names(const std::vector<OptionGroup>& groups) {
    // First prefixes come first, so that they are the ones that nearest() suggests.
    size_t most = 0;
    for (const OptionGroup& group : groups) most = std::max(most, group.prefixes.size());
    for (size_t p = 0; p < most; ++p) {
      for (size_t g = 0; g < groups.size(); ++g) {
        if (p >= groups[g].prefixes.size()) continue;
        for (const OptionSpec& spec : groups[g].table) add(groups[g].prefixes[p] + spec.name, {g, &spec});
      }
    }
  }

  [[nodiscard]] const Target* find(const std::string& name) const {
    const auto found = targets_.find(name);
    return found == targets_.end() ? nullptr : &found->second;
  }

  [[nodiscard]] std::string hint(std::string_view name, std::string_view dashes) const {
    const std::string close = nearest(name, all_);
    return close.empty() ? "" : concat("; did you mean ", dashes, close, "?");
  }

 private:
  void add(std::string name, const Target& target) {
    if (!targets_.emplace(name, target).second) throw Error(Errc::kInvalidArgument, concat("--", name, " is declared by two groups of options"));
    all_.push_back(std::move(name));
  }

  std::vector<std::string> all_;
  std::unordered_map<std::string, Target> targets_;
};

// Fills the options of all groups and keeps what went wrong.
class Reader {
 public:
  Reader(const std::vector<OptionGroup>& groups, bool strict) : names_(groups), strict_(strict) {
    for (const OptionGroup& group : groups) options_.emplace_back(group.table);
  }

  void read(const std::vector<std::string>& words) {
    const std::vector<Typed> flags = typed(words, strict_ ? problems_ : ignored_);
    for (const Typed& flag : flags) {
      if (flag.flag == "config" && flag.value && names_.find("config")) read_file(*flag.value);
    }
    seen_.clear();  // what is typed may repeat, and then beats, what the file says
    for (const Typed& flag : flags) take(flag);
  }

  std::vector<Options> finish() {
    if (!problems_.empty()) throw Error(Errc::kInvalidArgument, one_line(join(problems_, "; ")));
    return std::move(options_);
  }

 private:
  void take(const Typed& typed) {
    if (typed.flag.empty()) return stray(*typed.value);
    const std::string shown = "--" + typed.flag;
    const Names::Target* target = names_.find(typed.flag);
    if (!target) {
      if (strict_) {
        const std::string hint = names_.hint(typed.flag, "--");
        problems_.push_back(concat("unknown flag ", shown, hint.empty() ? "; --help lists all there are" : hint));
      }
    } else if (!repeated(*target, shown, "")) {
      if (!typed.value && target->spec->type != OptionType::kBool) {
        problems_.push_back(shown + ": a value is missing");
      } else {
        set(*target, typed.value.value_or("true"), shown);
      }
    }
  }

  void stray(const std::string& word) {
    if (!strict_) return;
    const bool like_a_flag = word.size() > 2 && word.front() == '-' && word.find_first_of("0123456789.") != 1;
    problems_.push_back(concat("unexpected argument '", word, "'", like_a_flag ? names_.hint(word.substr(1), "--") : ""));
  }

  void read_file(const std::string& path) {
    const ConfigFile file = read_config(path);
    problems_.insert(problems_.end(), file.problems.begin(), file.problems.end());
    for (const ConfigEntry& entry : file.entries) {
      const std::string place = concat(path, ":", entry.line, ": ");
      const Names::Target* target = names_.find(entry.name);
      if (is_of_the_call(entry.name)) {
        problems_.push_back(concat(place, entry.name, " cannot stand in a file; type --", entry.name));
      } else if (!target) {
        if (strict_) problems_.push_back(concat(place, "unknown name ", entry.name, names_.hint(entry.name, "")));
      } else if (!repeated(*target, entry.name, place)) {
        set(*target, entry.value, place + entry.name);
      }
    }
  }

  bool repeated(const Names::Target& target, const std::string& shown, const std::string& place) {
    const auto [first, is_new] = seen_.emplace(target.spec, shown);
    if (is_new) return false;
    problems_.push_back(concat(place, shown, first->second == shown ? ": given twice" : concat(": given already as ", first->second)));
    return true;
  }

  void set(const Names::Target& target, const std::string& value, const std::string& shown) {
    try {
      options_[target.group].set(target.spec->name, value, shown);
    } catch (const Error& error) {
      problems_.emplace_back(error.what());
    }
  }

  Names names_;
  bool strict_;
  std::vector<Options> options_;
  std::map<const OptionSpec*, std::string> seen_;  // with the flag under which it was given
  std::vector<std::string> problems_, ignored_;
};

}  // namespace

CommandLine::CommandLine(int argc, const char* const* argv) {
  if (argc > 0 && argv[0] != nullptr) {
    const std::string_view path = argv[0];
    program_ = path.substr(path.rfind('/') + 1);
  }
  for (int i = 1; i < argc; ++i) words_.emplace_back(argv[i]);
}

Options CommandLine::preview(const OptionTable& table) const {
  const std::vector<OptionGroup> groups = {{"", {""}, table}};
  Reader reader(groups, false);
  reader.read(words_);
  return std::move(reader.finish().front());
}

std::vector<Options> CommandLine::parse(const std::vector<OptionGroup>& groups) const {
  Reader reader(groups, true);
  reader.read(words_);
  return reader.finish();
}

std::string CommandLine::print_config(const std::vector<OptionGroup>& groups, const std::vector<Options>& options) {
  // What has no prefix must come before the first section.
  std::string top, sections;
  for (size_t g = 0; g < groups.size(); ++g) {
    const std::string prefix = groups[g].prefixes.empty() ? "" : groups[g].prefixes.front();
    std::string lines;
    for (const OptionSpec& spec : groups[g].table) {
      if (prefix.empty() && is_of_the_call(spec.name)) continue;
      lines += options.at(g).has(spec.name) ? concat(spec.name, " = ", config_value(options[g].text(spec.name)), "\n") : concat("# ", spec.name, " =\n");
    }
    if (lines.empty()) continue;
    if (prefix.empty()) {
      top += lines;
    } else {
      const size_t dot = prefix.ends_with('.') ? prefix.size() - 1 : prefix.size();
      sections += concat("\n[", std::string_view(prefix).substr(0, dot), "]\n", lines);
    }
  }
  return top + sections;
}

}  // namespace marlin::cli
