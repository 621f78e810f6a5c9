// Named options: one table drives parsing, help, --print_config and validation.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "marlin/sdk/abi.h"

namespace marlin {

enum class OptionType : uint8_t { kBool, kInt, kDouble, kString, kList };

/// One option, as it is typed and explained.
struct OptionSpec {
  std::string name;                                 ///< Lower-case letters, digits, '_' and '.'.
  OptionType type = OptionType::kString;
  std::optional<std::string> default_value = {};    ///< As it would be typed. Unset: the option may have no value at all.
  std::string help = {};                            ///< One sentence.
  std::string unit = {};
  std::optional<double> min = {};                   ///< For numbers: the least that is allowed.
  std::optional<double> max = {};
  std::vector<std::string> choices = {};            ///< If not empty: for strings, what is allowed.
};
using OptionTable = std::vector<OptionSpec>;

/// Values for the options of one table, checked as they are set. Texts as typed; lists are separated by commas.
class MARLIN_ABI Options {
 public:
  Options() = default;
  explicit Options(OptionTable table);

  [[nodiscard]] const OptionTable& table() const noexcept { return table_; }

  /// Sets one value. `flag` is how messages name it, e.g. "--module.lr" or "run.ini:3: module.lr".
  /// @throws Error kInvalidArgument: no such option, not of its type, out of range. Nothing is then set.
  void set(std::string_view name, std::string_view text, std::string_view flag = {});

  /// Whether it has a value: a default or one that was set.
  [[nodiscard]] bool has(std::string_view name) const;
  /// Whether it was set, rather than left at its default.
  [[nodiscard]] bool given(std::string_view name) const;
  /// The value as it would be typed. @throws Error kNotFound: no such option, or no value.
  [[nodiscard]] std::string text(std::string_view name) const;

  /// T: bool, int64_t, double, std::string, std::filesystem::path, std::vector<std::string>, or std::optional of one of them.
  /// @throws Error kNotFound: no such option, or no value and T is not an optional.
  template <class T> [[nodiscard]] T get(std::string_view name) const;

 private:
  [[nodiscard]] const OptionSpec& spec(std::string_view name) const;
  [[nodiscard]] bool bool_value(std::string_view name) const;
  [[nodiscard]] int64_t int_value(std::string_view name) const;
  [[nodiscard]] double double_value(std::string_view name) const;
  [[nodiscard]] std::vector<std::string> list_value(std::string_view name) const;

  OptionTable table_;
  std::vector<std::optional<std::string>> values_;  // by position in table_; unset: the default holds
};

namespace detail {
template <class T> struct is_optional : std::false_type {};
template <class T> struct is_optional<std::optional<T>> : std::true_type {};

[[nodiscard]] MARLIN_ABI std::string option_text(bool value);
[[nodiscard]] MARLIN_ABI std::string option_text(int64_t value);
[[nodiscard]] MARLIN_ABI std::string option_text(double value);  ///< The shortest text that reads back as the same number.
[[nodiscard]] MARLIN_ABI std::string option_text(const std::string& value);
[[nodiscard]] MARLIN_ABI std::string option_text(const std::filesystem::path& value);
[[nodiscard]] MARLIN_ABI std::string option_text(const std::vector<std::string>& value);

template <class T>
constexpr OptionType option_type() {
  if constexpr (is_optional<T>::value) return option_type<typename T::value_type>();
  else if constexpr (std::is_same_v<T, bool>) return OptionType::kBool;
  else if constexpr (std::is_same_v<T, int64_t>) return OptionType::kInt;
  else if constexpr (std::is_same_v<T, double>) return OptionType::kDouble;
  else if constexpr (std::is_same_v<T, std::vector<std::string>>) return OptionType::kList;
  else {
    static_assert(std::is_same_v<T, std::string> || std::is_same_v<T, std::filesystem::path>, "not a type an option can have");
    return OptionType::kString;
  }
}
}  // namespace detail

template <class T>
T Options::get(std::string_view name) const {
  if constexpr (detail::is_optional<T>::value) {
    return has(name) ? T(get<typename T::value_type>(name)) : T();
  } else {
    constexpr OptionType type = detail::option_type<T>();
    if constexpr (type == OptionType::kBool) return bool_value(name);
    else if constexpr (type == OptionType::kInt) return int_value(name);
    else if constexpr (type == OptionType::kDouble) return double_value(name);
    else if constexpr (type == OptionType::kList) return list_value(name);
    else return T(text(name));
  }
}

/// What an option field may be told besides its name and help.
struct OptionLimits {
  std::string unit = {};
  std::optional<double> min = {};
  std::optional<double> max = {};
  std::vector<std::string> choices = {};
};

/// Ties one option to one field of the options struct S.
template <class S>
struct OptionField {
  OptionSpec spec;
  std::function<void(S&, const Options&)> read;
  std::function<std::optional<std::string>(const S&)> text;  ///< The field's value as it would be typed; unset: none.
};

/// The table of a struct is a static function of it, and lists every field:
/// @code static std::vector<OptionField<Mine>> option_fields() { return {option_field("lr", &Mine::lr, "Learning rate.")}; } @endcode
template <class S, class T>
[[nodiscard]] OptionField<S> option_field(std::string name, T S::* member, std::string help, OptionLimits limits = {}) {
  OptionSpec spec{name, detail::option_type<T>(), std::nullopt, std::move(help), std::move(limits.unit), limits.min, limits.max, std::move(limits.choices)};
  return {std::move(spec), [name, member](S& into, const Options& options) { into.*member = options.get<T>(name); },
          [member](const S& from) -> std::optional<std::string> {
            if constexpr (detail::is_optional<T>::value) {
              if (!(from.*member)) return std::nullopt;
              return detail::option_text(*(from.*member));
            } else {
              return detail::option_text(from.*member);
            }
          }};
}

/// The same for an enum: `limits.choices` are the names of its values 0, 1, 2, ...
template <class S, class T>
  requires std::is_enum_v<T>
[[nodiscard]] OptionField<S> option_field(std::string name, T S::* member, std::string help, OptionLimits limits) {
  OptionSpec spec{name, OptionType::kString, std::nullopt, std::move(help), {}, {}, {}, limits.choices};
  return {std::move(spec),
          [name, member, names = limits.choices](S& into, const Options& options) {
            into.*member = static_cast<T>(std::find(names.begin(), names.end(), options.text(name)) - names.begin());
          },
          [member, names = limits.choices](const S& from) -> std::optional<std::string> {
            const auto value = static_cast<size_t>(from.*member);
            return value < names.size() ? names[value] : "value " + std::to_string(value);
          }};
}

/// The fields of a struct that is a field of S itself, under the names that they have there.
template <class S, class Part>
[[nodiscard]] std::vector<OptionField<S>> option_part(Part S::* member) {
  std::vector<OptionField<S>> result;
  for (OptionField<Part>& field : Part::option_fields()) {
    result.push_back({std::move(field.spec), [member, read = std::move(field.read)](S& into, const Options& options) { read(into.*member, options); },
                      [member, text = std::move(field.text)](const S& from) { return text(from.*member); }});
  }
  return result;
}

namespace detail {
struct AnyField {
  template <class T> operator T() const noexcept;  // never called
};
template <class S, class... Fields>
consteval size_t num_fields() {
  if constexpr (requires { S{Fields{}..., AnyField{}}; }) return num_fields<S, Fields..., AnyField>();
  else return sizeof...(Fields);
}
[[noreturn]] MARLIN_ABI void throw_missing_fields(const std::type_info& type, size_t listed, size_t fields);

// A field that was forgotten would be one that nobody can set. (A struct that has bases or constructors cannot be counted.)
template <class S>
void check_all_listed(const std::vector<OptionField<S>>& listed) {
  if constexpr (std::is_aggregate_v<S>) {
    size_t fields = num_fields<S>();
    if constexpr (requires { S::kFieldsWithoutOption; }) fields -= S::kFieldsWithoutOption;
    if (listed.size() < fields) throw_missing_fields(typeid(S), listed.size(), fields);
  }
}
}  // namespace detail

/// The option table of S; defaults are those of `defaults`.
/// @throws Error kInvalidArgument: S is an aggregate of which a field is not listed. Fields that shall have no option are counted in
///   a `static constexpr size_t kFieldsWithoutOption` of S.
template <class S>
[[nodiscard]] OptionTable option_table(const S& defaults = S{}) {
  OptionTable table;
  detail::check_all_listed<S>(S::option_fields());
  for (OptionField<S>& field : S::option_fields()) {
    field.spec.default_value = field.text(defaults);
    table.push_back(std::move(field.spec));
  }
  return table;
}

/// The same as a function for PluginInfo::options: MARLIN_PLUGIN(..., .options = &marlin::options_of<Mine>).
template <class S>
[[nodiscard]] OptionTable options_of() {
  return option_table<S>();
}

/// Checks a struct that was filled in C++ as if each field had been typed.
/// @param prefix stands before the field's name in messages, e.g. "checkpointer.".
/// @throws Error kInvalidArgument for the first field that is out of its range.
template <class S>
void validate(const S& value, const std::string& prefix = {}) {
  Options options(option_table<S>());
  for (const OptionField<S>& field : S::option_fields()) {
    if (auto text = field.text(value)) options.set(field.spec.name, *text, prefix + field.spec.name);
  }
}

/// S, filled from options that were made from its table.
template <class S>
[[nodiscard]] S parse(const Options& options) {
  S result;
  for (const OptionField<S>& field : S::option_fields()) field.read(result, options);
  return result;
}

}  // namespace marlin
