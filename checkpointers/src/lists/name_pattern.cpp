#include "marlin/checkpointers/name_pattern.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

using Field = NamePattern::Field;

constexpr std::array<std::string_view, 6> kFields = {"filename_prefix", "name", "score_name", "score", "global_step", "ext"};  // by Field
constexpr size_t kLongestName = 255;
constexpr int kDecimals = 4;

std::string_view name_of(Field field) { return kFields[static_cast<size_t>(field)]; }

template <class T>
std::optional<T> number_of(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

bool all_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// What a format may be: a width for steps, decimals for scores. @return its digits.
std::optional<std::string> digits_of(Field field, std::string_view format) {
  const bool is_step = field == Field::kGlobalStep && format.size() >= 3 && format.starts_with('0') && format.ends_with('d');
  const bool is_score = field == Field::kScore && format.size() >= 3 && format.starts_with('.') && format.ends_with('f');
  if (!is_step && !is_score) return std::nullopt;
  const std::string_view digits = format.substr(1, format.size() - 2);
  if (!all_digits(digits) || digits.size() > 2) return std::nullopt;
  return std::string(digits);
}

std::string step_text(int64_t step, size_t width) {
  std::string digits = std::to_string(step);
  return digits.size() < width ? std::string(width - digits.size(), '0') + digits : digits;
}

std::string for_names(std::string text) {
  std::replace(text.begin(), text.end(), '/', '_');
  return text;
}

// How many of the first characters can be a score or a step, at most.
size_t number_prefix(std::string_view text, Field field) {
  if (field == Field::kGlobalStep) return std::min(text.find_first_not_of("0123456789"), text.size());
  for (const std::string_view word : {"inf", "-inf"}) {
    if (text.starts_with(word)) return word.size();
  }
  return std::min(text.find_first_not_of("-0123456789.e+"), text.size());
}

std::optional<double> score_of(std::string_view text) {
  if (text == "inf" || text == "-inf") return text == "inf" ? HUGE_VAL : -HUGE_VAL;
  return number_of<double>(text);
}

}  // namespace

bool holds_separator(std::string_view text) noexcept { return text.find_first_of(std::string_view("/\\\0", 3)) != std::string_view::npos; }

std::string score_text(double score, int decimals) {
  if (!std::isfinite(score)) return std::isnan(score) ? "nan" : score > 0 ? "inf" : "-inf";
  constexpr double kExact = 9007199254740992.0;  // above, every number is whole
  char text[64];
  if (score == std::floor(score) && std::fabs(score) < kExact) {
    std::snprintf(text, sizeof text, "%lld", static_cast<long long>(score));
    return text;
  }
  if (std::fabs(score) >= kExact) {
    std::snprintf(text, sizeof text, "%.6g", score);
    return text;
  }
  std::snprintf(text, sizeof text, "%.*f", decimals, score);
  const bool is_zero = std::string_view(text).find_first_not_of("-0.") == std::string_view::npos;
  return is_zero && text[0] == '-' ? text + 1 : text;
}

std::string setup_filename_pattern(bool with_prefix, bool with_score, bool with_score_name, bool with_global_step) {
  if (!with_score && !with_global_step) {
    throw Error(Errc::kInvalidArgument, "setup_filename_pattern: at least one of with_score and with_global_step must be true, or all names would be one");
  }
  if (with_score_name && !with_score) throw Error(Errc::kInvalidArgument, "setup_filename_pattern: with_score_name needs with_score");
  std::string pattern = with_prefix ? "{filename_prefix}_{name}" : "{name}";
  if (with_global_step) pattern += "_{global_step}";
  if (with_score) pattern += with_score_name ? "_{score_name}={score}" : "_{score}";
  return pattern + ".{ext}";
}

std::string unique_name(const std::string& name, int64_t global_step, const std::function<bool(const std::string&)>& taken) {
  if (!taken(name)) return name;
  const size_t dot = name.rfind('.');
  const size_t end = dot == std::string::npos || dot == 0 ? name.size() : dot;
  const std::string stem = concat(name.substr(0, end), "_", global_step), extension = name.substr(end);
  for (int64_t i = 1;; ++i) {
    const std::string candidate = i == 1 ? stem + extension : concat(stem, "_", i, extension);
    if (!taken(candidate)) return candidate;
  }
}

NamePattern::NamePattern(std::string_view pattern, std::string_view option) : text_(pattern), option_(option) {
  if (pattern.empty()) refuse("must not be empty");
  if (holds_separator(pattern)) refuse("must not hold a path separator; the folder belongs to save_dir");
  if (pattern.starts_with('.')) refuse("must not begin with a dot: hidden files are not looked at");
  for (size_t at = 0; at < pattern.size();) {
    const std::string_view rest = pattern.substr(at);
    const bool is_brace = rest.front() == '{' || rest.front() == '}';
    if (!is_brace || rest.starts_with("{{") || rest.starts_with("}}")) {
      if (pieces_.empty() || pieces_.back().field) pieces_.push_back({});
      pieces_.back().text += rest.front();
      at += is_brace ? 2 : 1;
      continue;
    }
    const size_t end = rest.find('}');
    if (rest.front() == '}' || end == std::string_view::npos) refuse("has a brace without its other one; write '{{' or '}}' for a brace");
    pieces_.push_back(placeholder(rest.substr(1, end - 1)));
    at += end + 1;
  }
}

void NamePattern::refuse(const std::string& why) const { throw Error(Errc::kInvalidArgument, concat(option_, ": '", text_, "' ", why)); }

NamePattern::Piece NamePattern::placeholder(std::string_view inside) const {
  const std::string_view word = inside.substr(0, inside.find(':'));
  const auto found = std::find(kFields.begin(), kFields.end(), word);
  if (found == kFields.end()) refuse(concat("has the unknown placeholder {", word, "}; there are: {", join(std::vector<std::string>(kFields.begin(), kFields.end()), "} {"), "}"));
  const auto field = static_cast<Field>(found - kFields.begin());
  if (has(field)) refuse(concat("has {", word, "} twice"));
  if (word.size() == inside.size()) return {field, {}};
  const auto digits = digits_of(field, inside.substr(word.size() + 1));
  if (!digits) refuse(concat("has a format in {", inside, "} that is not known: there are {global_step:05d} and {score:.2f}, with any number of digits up to 99"));
  return {field, *digits};
}

bool NamePattern::has(Field field) const noexcept {
  return std::any_of(pieces_.begin(), pieces_.end(), [&](const Piece& piece) { return piece.field == field; });
}

std::string NamePattern::piece(const Piece& piece, const NameParts& parts) const {
  const auto missing = [&] { throw Error(Errc::kInvalidArgument, concat(option_, ": '", text_, "' asks for {", name_of(*piece.field), "}, and there is none")); };
  if (!piece.field) return piece.text;
  const int digits = piece.text.empty() ? -1 : number_of<int>(piece.text).value_or(-1);
  switch (*piece.field) {
    case Field::kPrefix: return parts.filename_prefix;
    case Field::kName: return parts.name;
    case Field::kExt: return parts.ext;
    case Field::kScoreName:
      if (parts.score_name.empty()) missing();
      return for_names(parts.score_name);
    case Field::kScore:
      if (!parts.score) missing();
      return score_text(*parts.score, digits < 0 ? kDecimals : digits);
    case Field::kGlobalStep:
      if (!parts.global_step) missing();
      return step_text(*parts.global_step, digits < 0 ? 0 : static_cast<size_t>(digits));
  }
  return {};
}

std::string NamePattern::name(const NameParts& parts) const {
  std::string result;
  for (const Piece& each : pieces_) result += piece(each, parts);
  if (result.size() > kLongestName) throw Error(Errc::kInvalidArgument, concat(option_, ": the name '", result, "' is longer than ", kLongestName, " bytes"));
  return result;
}

// What can be of several lengths is matched greedily and given back until the rest fits: a literal after it may begin with digits.
bool NamePattern::matches(size_t at, std::string_view rest, const NameParts& parts, Parsed& parsed) const {
  if (at == pieces_.size()) return rest.empty();
  const Piece& each = pieces_[at];
  const bool is_number = each.field == Field::kScore || each.field == Field::kGlobalStep;
  const bool is_any = each.field == Field::kName && parts.name.empty();
  if (!is_number && !is_any) {
    const std::string expected = piece(each, parts);
    return rest.starts_with(expected) && matches(at + 1, rest.substr(expected.size()), parts, parsed);
  }
  for (size_t length = is_any ? rest.size() : number_prefix(rest, *each.field); length > 0; --length) {
    const std::string_view text = rest.substr(0, length);
    const auto score = each.field == Field::kScore ? score_of(text) : std::nullopt;
    const auto step = each.field == Field::kGlobalStep ? number_of<int64_t>(text) : std::nullopt;
    if ((is_number && !score && !step) || !matches(at + 1, rest.substr(length), parts, parsed)) continue;
    if (score) parsed.score = score;
    if (step) parsed.global_step = step;
    return true;
  }
  return false;
}

std::optional<NamePattern::Parsed> NamePattern::parse(std::string_view file_name, const NameParts& parts) const {
  Parsed parsed;
  if (matches(0, file_name, parts, parsed)) return parsed;
  // As unique_name() makes them: one or two counters more before the extension.
  const size_t dot = file_name.rfind('.');
  std::string_view stem = file_name.substr(0, std::min(dot, file_name.size()));
  const std::string extension(dot == std::string_view::npos ? "" : file_name.substr(dot));
  for (int i = 0; i < 2 && !is_fixed(); ++i) {
    const size_t underscore = stem.rfind('_');
    if (underscore == std::string_view::npos || !all_digits(stem.substr(underscore + 1))) return std::nullopt;
    stem = stem.substr(0, underscore);
    if (matches(0, std::string(stem) + extension, parts, parsed)) return parsed;
  }
  return std::nullopt;
}

}  // namespace marlin
