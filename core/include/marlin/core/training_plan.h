// How long a run is.
#pragma once

#include <cstdint>
#include <optional>

#include "marlin/sdk/abi.h"

namespace marlin {

/// What a module is told when it makes its optimizers and schedules. Counts are exact.
struct MARLIN_ABI TrainingPlan {
  int64_t epochs = 1;                             ///< Of the whole run; with reset_optimizers_schedulers on a resume, those that remain.
  std::optional<int64_t> steps_per_epoch;         ///< Optimizer steps; unset: the training loader does not know its length.
  std::optional<int64_t> max_steps;               ///< The run ends after this many optimizer steps, if it gets that far.
  int64_t train_batch_size = 1;                   ///< Samples per optimizer step, over all ranks.

  /// Optimizer steps of the whole plan. @throws Error kInvalidArgument if they are not known, naming what would make them known.
  [[nodiscard]] int64_t total_steps() const;
};

}  // namespace marlin
