#include "marlin/sdk/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

template <class T>
std::optional<T> number(std::string_view text) {
  T value{};
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

[[noreturn]] void refuse(std::string_view flag, const std::string& why) {
  throw Error(Errc::kInvalidArgument, concat(flag, ": ", why));
}

void check_range(const OptionSpec& spec, double value, std::string_view text, std::string_view flag) {
  const std::string unit = spec.unit.empty() ? "" : concat(" (", spec.unit, ")");
  if (std::isnan(value)) refuse(flag, "must be a number, got nan");
  if (spec.min && value < *spec.min) refuse(flag, concat("must be at least ", detail::option_text(*spec.min), unit, ", got ", text));
  if (spec.max && value > *spec.max) refuse(flag, concat("must be at most ", detail::option_text(*spec.max), unit, ", got ", text));
}

void check(const OptionSpec& spec, std::string_view text, std::string_view flag) {
  switch (spec.type) {
    case OptionType::kBool:
      if (text != "true" && text != "false") refuse(flag, concat("must be true or false, got '", text, "'"));
      break;
    case OptionType::kInt: {
      const auto value = number<int64_t>(text);
      if (!value) refuse(flag, concat("must be a whole number, got '", text, "'"));
      check_range(spec, static_cast<double>(*value), text, flag);
      break;
    }
    case OptionType::kDouble: {
      const auto value = number<double>(text);
      if (!value) refuse(flag, concat("must be a number, got '", text, "'"));
      check_range(spec, *value, text, flag);
      break;
    }
    case OptionType::kString:
      if (!spec.choices.empty() && std::find(spec.choices.begin(), spec.choices.end(), text) == spec.choices.end()) {
        const std::string close = nearest(text, spec.choices);
        refuse(flag, concat("must be one of ", join(spec.choices), ", got '", text, "'", close.empty() ? "" : "; did you mean " + close + "?"));
      }
      break;
    case OptionType::kList:
      break;
  }
}

}  // namespace

Options::Options(OptionTable table) : table_(std::move(table)), values_(table_.size()) {}

const OptionSpec& Options::spec(std::string_view name) const {
  for (const OptionSpec& spec : table_) {
    if (spec.name == name) return spec;
  }
  std::vector<std::string> names;
  for (const OptionSpec& spec : table_) names.push_back(spec.name);
  const std::string close = nearest(name, names);
  throw Error(Errc::kNotFound, concat("no option '", name, "'; ", close.empty() ? "there are: " : "did you mean " + close + "? There are: ",
                                      names.empty() ? "none" : join(names)));
}

void Options::set(std::string_view name, std::string_view text, std::string_view flag) {
  const std::string shown(flag.empty() ? name : flag);
  const OptionSpec* found = nullptr;
  try {
    found = &spec(name);
  } catch (const Error& error) {
    refuse(shown, error.what());
  }
  check(*found, text, shown);
  values_[static_cast<size_t>(found - table_.data())] = std::string(text);
}

bool Options::has(std::string_view name) const {
  const OptionSpec& found = spec(name);
  return found.default_value || values_[static_cast<size_t>(&found - table_.data())];
}

bool Options::given(std::string_view name) const { return values_[static_cast<size_t>(&spec(name) - table_.data())].has_value(); }

std::string Options::text(std::string_view name) const {
  const OptionSpec& found = spec(name);
  if (const auto& value = values_[static_cast<size_t>(&found - table_.data())]) return *value;
  if (found.default_value) return *found.default_value;
  throw Error(Errc::kNotFound, concat("option '", name, "' has no value"));
}

bool Options::bool_value(std::string_view name) const { return text(name) == "true"; }

int64_t Options::int_value(std::string_view name) const {
  if (const auto value = number<int64_t>(text(name))) return *value;
  throw Error(Errc::kInvalidArgument, concat("option '", name, "' is '", text(name), "', not a whole number"));
}

double Options::double_value(std::string_view name) const {
  if (const auto value = number<double>(text(name))) return *value;
  throw Error(Errc::kInvalidArgument, concat("option '", name, "' is '", text(name), "', not a number"));
}

std::vector<std::string> Options::list_value(std::string_view name) const { return split(text(name), ','); }

namespace detail {

void throw_missing_fields(const std::type_info& type, size_t listed, size_t fields) {
  throw Error(Errc::kInvalidArgument, concat("the option table of ", demangled(type), " lists ", listed, " of its ", fields,
                                             " fields; add the others to option_fields(), or count those without an option in kFieldsWithoutOption"));
}

std::string option_text(bool value) { return value ? "true" : "false"; }
std::string option_text(int64_t value) { return std::to_string(value); }
std::string option_text(const std::string& value) { return value; }
std::string option_text(const std::filesystem::path& value) { return value.string(); }
std::string option_text(const std::vector<std::string>& value) { return join(value, ","); }

std::string option_text(double value) {
  char buffer[32];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value);
  return error == std::errc() ? std::string(buffer, end) : std::to_string(value);
}

}  // namespace detail
}  // namespace marlin
