#include "marlin/core/early_stopping.h"

#include <cmath>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {

std::vector<OptionField<EarlyStoppingOptions>> EarlyStoppingOptions::option_fields() {
  using O = EarlyStoppingOptions;
  return {
      option_field("early_stopping.metric", &O::metric, "End once this metric of an epoch no longer gets better: val/loss, say."),
      option_field("early_stopping.patience", &O::patience, "Epochs in a row without an improvement after which the run ends.", {.unit = "epochs", .min = 1}),
      option_field("early_stopping.mode", &O::mode, "Whether lower (min) or higher (max) is better; not given: min for a metric whose name ends with 'loss'.", {.choices = {"min", "max"}}),
      option_field("early_stopping.min_delta", &O::min_delta, "What is better by no more than this is no improvement.", {.min = 0}),
  };
}

EarlyStopping::EarlyStopping(EarlyStoppingOptions options) : options_(std::move(options)) {
  if (!enabled() && options_.mode) throw Error(Errc::kInvalidArgument, "early_stopping.mode: says nothing without early_stopping.metric");
  if (!enabled()) return;
  marlin::validate(options_);
  const bool lower_is_better = options_.metric->ends_with("loss");
  if (!options_.mode && !lower_is_better) {
    throw Error(Errc::kInvalidArgument, concat("early_stopping.mode: say whether ", *options_.metric, " is better when it is lower or higher: min or max"));
  }
  max_ = options_.mode == "max";
}

bool EarlyStopping::is_better(double value) const {
  if (std::isnan(value)) return false;
  if (!best_) return true;
  return max_ ? value > *best_ + options_.min_delta : value < *best_ - options_.min_delta;
}

void EarlyStopping::observe(const Metrics& metrics) {
  if (!enabled()) return;
  const double* value = metrics.find(*options_.metric);
  if (value == nullptr) {
    std::vector<std::string> names;
    for (const auto& [name, ignored] : metrics) names.push_back(name);
    throw Error(Errc::kInvalidArgument, concat("early_stopping.metric: there is no metric '", *options_.metric, "'; there are: ", join(names)));
  }
  if (is_better(*value)) {
    best_ = *value;
    waited_ = 0;
  } else {
    ++waited_;
  }
}

std::string EarlyStopping::reason() const {
  const std::string name = options_.metric.value_or("");
  if (!best_) return concat(name, " was not a number in ", waited_, " epochs");
  return concat(name, max_ ? " has not risen by more than " : " has not fallen by more than ", options_.min_delta, max_ ? " above " : " below ", *best_, " in ", waited_,
                waited_ == 1 ? " epoch" : " epochs");
}

StateDict EarlyStopping::get_state() const {
  return {{"metric", options_.metric.value_or("")}, {"mode", max_ ? "max" : "min"}, {"best", best_ ? Value(*best_) : Value()}, {"epochs_without_improvement", waited_}};
}

void EarlyStopping::update_state(const StateDict& state) {
  if (!enabled() || state.at("metric").as_string() != *options_.metric || state.at("mode").as_string() != (max_ ? "max" : "min")) return;
  const Value& best = state.at("best");
  const int64_t waited = state.at("epochs_without_improvement").as_int();
  best_ = best.is_null() ? std::optional<double>() : best.as_double();
  waited_ = waited;
}

}  // namespace marlin
