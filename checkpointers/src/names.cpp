#include "marlin/checkpointers/names.h"

#include <array>
#include <charconv>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

constexpr std::array<std::string_view, 4> kInfix = {"_", "_step_", "_suspect_", "_model_"};  // by Form

std::optional<int64_t> plain_number(std::string_view text) {
  if (text.empty() || (text.size() > 1 && text.front() == '0')) return std::nullopt;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.front() == '-') return std::nullopt;
  return value;
}

}  // namespace

CheckpointNames::CheckpointNames(std::string prefix, std::string extension) : prefix_(std::move(prefix)), extension_(std::move(extension)) {
  const auto refuse = [](std::string_view option, std::string_view value, const std::string& why) {
    throw Error(Errc::kInvalidArgument, concat("checkpointer.", option, ": '", value, "' ", why));
  };
  for (const auto& [option, value] : {std::pair<std::string_view, std::string_view>{"file_prefix", prefix_}, {"file_ext", extension_}}) {
    if (value.empty()) refuse(option, value, "must not be empty");
    if (value.find_first_of(std::string_view("/\\\0", 3)) != std::string_view::npos) refuse(option, value, "must not hold a path separator; folders belong to save_dir");
  }
  if (extension_.front() == '.') refuse("file_ext", extension_, "is given without the dot");
  for (const std::string_view ending : {"_step", "_suspect", "_model"}) {
    if (prefix_.ends_with(ending)) refuse("file_prefix", prefix_, concat("must not end in '", ending, "': its files could be taken for another kind's"));
  }
}

std::string CheckpointNames::name(Form form, int64_t index) const {
  return concat(prefix_, kInfix[static_cast<size_t>(form)], index, ".", extension_);
}

std::optional<CheckpointNames::Parsed> CheckpointNames::parse(std::string_view file_name) const {
  if (!file_name.starts_with(prefix_) || file_name.size() <= prefix_.size() + extension_.size() + 1) return std::nullopt;
  if (!file_name.ends_with(extension_) || file_name[file_name.size() - extension_.size() - 1] != '.') return std::nullopt;
  const std::string_view middle = file_name.substr(prefix_.size(), file_name.size() - prefix_.size() - extension_.size() - 1);
  for (size_t form = 0; form < kInfix.size(); ++form) {
    if (!middle.starts_with(kInfix[form])) continue;
    if (const auto index = plain_number(middle.substr(kInfix[form].size()))) return Parsed{static_cast<Form>(form), *index};
  }
  return std::nullopt;
}

}  // namespace marlin
