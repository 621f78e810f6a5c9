// Rules for which checkpoints of a folder stay. Knows nothing of files.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/checkpoint.h"
#include "marlin/sdk/metrics.h"

namespace marlin {

/// A union of rules: what none of them keeps goes.
///   last:N            the newest N, of epochs and of steps each
///   best:K:METRIC     the K of the highest METRIC, of equal ones the newer; best:K:METRIC:min  of the lowest. NaN and unknown: none.
///   every:N           those whose number is a multiple of N
///   pin:N             the one with number N
class MARLIN_ABI KeepPolicy {
 public:
  /// A checkpoint, as the rules see it.
  struct Candidate {
    Unit unit = Unit::kEpoch;
    int64_t number = 0;      ///< As in its name: what `every` and `pin` look at.
    std::optional<int64_t> age = {};  ///< The highest of its unit is the newest. Unset: its number.
    Metrics metrics = {};
  };

  /// No rules: everything stays.
  KeepPolicy() = default;
  /// "last:3,best:2:val/accuracy,every:10,pin:5". Empty: no rules. @param option  how messages name it.
  /// @throws Error kInvalidArgument that names the rule: unknown, incomplete, a number below 1 (pin: below 0), twice the same.
  explicit KeepPolicy(std::string_view text, std::string_view option = "keep");

  [[nodiscard]] bool empty() const noexcept { return rules_.empty(); }
  /// Whether a rule looks at metrics, so that a candidate's must be known.
  [[nodiscard]] bool needs_metrics() const noexcept;
  /// The least number of checkpoints that stay, if there are as many.
  [[nodiscard]] int64_t keeps_at_least() const noexcept;
  /// For each candidate why it stays, e.g. "last:3, best:2:val/accuracy"; empty: no rule keeps it.
  [[nodiscard]] std::vector<std::string> reasons(std::span<const Candidate> candidates) const;
  [[nodiscard]] const std::string& text() const noexcept { return text_; }

 private:
  struct Rule {
    enum class Kind : uint8_t { kLast, kBest, kEvery, kPin };
    Kind kind = Kind::kLast;
    int64_t number = 0;
    std::string metric = {};
    bool min = false;
    std::string text = {};
  };
  [[nodiscard]] static Rule rule(std::string_view text, std::string_view option);

  std::string text_;
  std::vector<Rule> rules_;
};

}  // namespace marlin
