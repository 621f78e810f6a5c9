// Ending a run that no longer gets better.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "marlin/sdk/metrics.h"
#include "marlin/sdk/options.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

/// Flags `early_stopping.metric` and so on.
struct MARLIN_ABI EarlyStoppingOptions {
  std::optional<std::string> metric = {};  ///< Looked at after each epoch, as in a record: "val/loss". Unset: never stop early.
  int64_t patience = 3;                    ///< End after so many epochs in a row without an improvement. Range: >= 1.
  std::optional<std::string> mode = {};    ///< "min" or "max". Unset: "min", for a metric whose name ends with "loss"; for others it must be given.
  double min_delta = 0.0;                  ///< What is not better than the best by more than this is no improvement. Range: >= 0.

  static std::vector<OptionField<EarlyStoppingOptions>> option_fields();
};

/// Counts epochs without an improvement. One thread.
/// @par Source Ignite handlers/early_stopping.py, Lightning EarlyStopping. Differs: its state is kept, and patience may be raised on a
/// resume; NaN is no improvement.
class MARLIN_ABI EarlyStopping {
 public:
  /// @throws Error kInvalidArgument: an option is out of its range, mode is needed, or given without a metric.
  explicit EarlyStopping(EarlyStoppingOptions options = {});

  [[nodiscard]] bool enabled() const noexcept { return options_.metric.has_value(); }
  /// Another epoch is done. @throws Error kInvalidArgument that lists the metrics there are, if this one is not among them.
  void observe(const Metrics& metrics);
  /// Whether the run is to end.
  [[nodiscard]] bool is_over() const noexcept { return enabled() && waited_ >= options_.patience; }
  /// "val/loss has not fallen by more than 0 below 0.0815 in 3 epochs"
  [[nodiscard]] std::string reason() const;

  /// "metric", "mode", "best" (null: none yet), "epochs_without_improvement".
  [[nodiscard]] StateDict get_state() const;
  /// Takes the state of the same metric and mode; begins anew with another's.
  void update_state(const StateDict& state);

 private:
  [[nodiscard]] bool is_better(double value) const;

  EarlyStoppingOptions options_;
  bool max_ = false;
  std::optional<double> best_;
  int64_t waited_ = 0;  // epochs in a row without an improvement
};

}  // namespace marlin
