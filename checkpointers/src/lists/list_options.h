// Options that checkpointers with lists have in common.
#pragma once

#include <atomic>
#include <charconv>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "folder_check.h"
#include "lists/saver.h"
#include "marlin/checkpointers/name_pattern.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/options.h"
#include "marlin/sdk/text.h"

namespace marlin {

/// A number of checkpoints, or "all", which is an unset field.
template <class S>
[[nodiscard]] OptionField<S> count_field(std::string name, std::optional<int64_t> S::* member, const std::string& help) {
  OptionSpec spec{name, OptionType::kString, std::nullopt, concat(help, " A whole number of at least 1, or 'all'.")};
  const auto read = [name, member](S& into, const Options& options) {
    const std::string text = options.text(name);
    if (text == "all") {
      into.*member = std::nullopt;
      return;
    }
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) throw Error(Errc::kInvalidArgument, concat("checkpointer.", name, ": must be a whole number, or 'all', got '", text, "'"));
    into.*member = value;
  };
  const auto text = [member](const S& from) -> std::optional<std::string> { return from.*member ? std::to_string(*(from.*member)) : "all"; };
  return {std::move(spec), read, text};
}

/// @throws Error kInvalidArgument: a prefix that cannot begin a file's name, or hides it.
inline void check_prefix(const std::string& option, const std::string& prefix) {
  if (holds_separator(prefix)) throw Error(Errc::kInvalidArgument, concat(option, ": '", prefix, "' must not hold a path separator; the folder belongs to save_dir"));
  if (prefix.starts_with('.')) throw Error(Errc::kInvalidArgument, concat(option, ": '", prefix, "' must not begin with a dot: hidden files are not looked at"));
}

/// What the Saver of either is told; the rest is set by hand.
template <class O>
[[nodiscard]] SaverOptions saver_options(const O& options, std::string owner, const HostContext& host, std::shared_ptr<Storage> storage) {
  validate(options, "checkpointer.");
  SaverOptions result;
  result.owner = std::move(owner);
  result.storage = std::move(storage);
  result.logger = host.logger;
  result.level = log_level_of(options.log_level);
  result.keep = KeepPolicy(options.keep, "checkpointer.keep");
  result.delete_existing = options.delete_existing_checkpoints;
  result.load_dir = options.load_dir;
  if (result.load_dir && !result.load_dir->empty()) result.load_dir = host.in_run_dir(*result.load_dir).string();
  result.load_filename = options.load_filename;
  return result;
}

/// Says a thing once for a point of the run, which is looked at when it is due and when it is saved.
class OncePerStep {
 public:
  [[nodiscard]] bool operator()(const SavePoint& point) noexcept { return step_.exchange(point.global_step) != point.global_step; }
  void reset() noexcept { step_ = -1; }

 private:
  std::atomic<int64_t> step_ = -1;
};

/// Those that both have, under one help.
template <class O>
[[nodiscard]] std::vector<OptionField<O>> list_option_fields() {
  return {
      option_field("delete_existing_checkpoints", &O::delete_existing_checkpoints, "Start over: remove files that an earlier run of this checkpointer left."),
      option_field("keep", &O::keep, "What stays although it left its list, a union: last:N,best:K:METRIC[:min],every:N,pin:N. Empty: nothing."),
      option_field("load_dir", &O::load_dir, "Folder to resume from; its newest checkpoint is taken. None there is an error."),
      option_field("load_filename", &O::load_filename, "File in load_dir to resume from, instead of the newest."),
      option_field("log_level", &O::log_level, "The least that this checkpointer logs.", {.choices = {"DEBUG", "INFO", "WARNING", "ERROR", "OFF"}}),
  };
}

}  // namespace marlin
