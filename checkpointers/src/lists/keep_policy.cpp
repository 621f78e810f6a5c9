#include "marlin/checkpointers/keep_policy.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

using Candidate = KeepPolicy::Candidate;

int64_t age_of(const Candidate& candidate) { return candidate.age.value_or(candidate.number); }

void keep_last(std::span<const Candidate> candidates, Unit unit, int64_t count, std::vector<char>& kept) {
  std::vector<size_t> places;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i].unit == unit) places.push_back(i);
  }
  const auto wanted = std::min(places.size(), static_cast<size_t>(count));
  std::nth_element(places.begin(), places.begin() + static_cast<std::ptrdiff_t>(wanted), places.end(), [&](size_t a, size_t b) { return age_of(candidates[a]) > age_of(candidates[b]); });
  for (size_t i = 0; i < wanted; ++i) kept[places[i]] = 1;
}

// Of equal values the newer, so that a plateau keeps what has been trained longest.
void keep_best(std::span<const Candidate> candidates, const std::string& metric, bool min, int64_t count, std::vector<char>& kept) {
  struct Ranked {
    double value;
    int64_t age;
    size_t place;
  };
  std::vector<Ranked> ranked;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const double* value = candidates[i].metrics.find(metric);
    if (value != nullptr && !std::isnan(*value)) ranked.push_back({min ? -*value : *value, age_of(candidates[i]), i});
  }
  const auto wanted = std::min(ranked.size(), static_cast<size_t>(count));
  std::nth_element(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(wanted), ranked.end(), [](const Ranked& a, const Ranked& b) { return a.value != b.value ? a.value > b.value : a.age > b.age; });
  for (size_t i = 0; i < wanted; ++i) kept[ranked[i].place] = 1;
}

}  // namespace

KeepPolicy::Rule KeepPolicy::rule(std::string_view text, std::string_view option) {
  const auto refuse = [&](const std::string& why) {
    throw Error(Errc::kInvalidArgument, concat(option, ": '", text, "' ", why, "; there are: last:N, best:K:METRIC, best:K:METRIC:min, every:N, pin:N"));
  };
  if (text.ends_with(':')) refuse("is incomplete");
  const std::vector<std::string> parts = split(text, ':');
  Rule rule;
  rule.text = std::string(text);
  if (parts.empty()) refuse("is no rule");
  if (parts[0] == "last") rule.kind = Rule::Kind::kLast;
  else if (parts[0] == "best") rule.kind = Rule::Kind::kBest;
  else if (parts[0] == "every") rule.kind = Rule::Kind::kEvery;
  else if (parts[0] == "pin") rule.kind = Rule::Kind::kPin;
  else refuse("is no rule");
  const bool best = rule.kind == Rule::Kind::kBest;
  if (parts.size() < (best ? 3 : 2)) refuse("is incomplete");
  if (parts.size() > (best ? 4 : 2)) refuse("has too many parts");
  const auto number = whole_number(parts[1]);
  const int64_t least = rule.kind == Rule::Kind::kPin ? 0 : 1;
  if (!number || *number < least) refuse(concat("needs a whole number of at least ", least, " after '", parts[0], ":'"));
  rule.number = *number;
  if (!best) return rule;
  rule.metric = parts[2];
  if (rule.metric.empty()) refuse("names no metric");
  if (parts.size() == 4 && parts[3] != "min" && parts[3] != "max") refuse(concat("ends in '", parts[3], "', which is neither min nor max"));
  rule.min = parts.size() == 4 && parts[3] == "min";
  return rule;
}

KeepPolicy::KeepPolicy(std::string_view text, std::string_view option) : text_(text) {
  if (text.empty()) return;
  if (text.ends_with(',')) throw Error(Errc::kInvalidArgument, concat(option, ": '", text, "' ends in a comma"));
  for (const std::string& each : split(text, ',')) {
    Rule rule = KeepPolicy::rule(each, option);
    if (std::any_of(rules_.begin(), rules_.end(), [&](const Rule& other) { return other.text == rule.text; })) throw Error(Errc::kInvalidArgument, concat(option, ": '", each, "' stands there twice"));
    rules_.push_back(std::move(rule));
  }
}

bool KeepPolicy::needs_metrics() const noexcept {
  return std::any_of(rules_.begin(), rules_.end(), [](const Rule& rule) { return rule.kind == Rule::Kind::kBest; });
}

int64_t KeepPolicy::keeps_at_least() const noexcept {
  int64_t least = 0;
  for (const Rule& rule : rules_) {
    if (rule.kind == Rule::Kind::kLast) least = std::max(least, rule.number);
  }
  return least;
}

std::vector<std::string> KeepPolicy::reasons(std::span<const Candidate> candidates) const {
  std::vector<std::string> reasons(candidates.size());
  std::vector<char> kept(candidates.size());
  for (const Rule& rule : rules_) {
    std::fill(kept.begin(), kept.end(), 0);
    switch (rule.kind) {
      case Rule::Kind::kLast:
        for (const Unit unit : {Unit::kEpoch, Unit::kStep}) keep_last(candidates, unit, rule.number, kept);
        break;
      case Rule::Kind::kBest: keep_best(candidates, rule.metric, rule.min, rule.number, kept); break;
      case Rule::Kind::kEvery:
        for (size_t i = 0; i < candidates.size(); ++i) kept[i] = candidates[i].number % rule.number == 0;
        break;
      case Rule::Kind::kPin:
        for (size_t i = 0; i < candidates.size(); ++i) kept[i] = candidates[i].number == rule.number;
        break;
    }
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (kept[i]) reasons[i] += (reasons[i].empty() ? "" : ", ") + rule.text;
    }
  }
  return reasons;
}

}  // namespace marlin
