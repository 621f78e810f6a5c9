#include "marlin/core/training_plan.h"

#include <algorithm>

#include "marlin/sdk/error.h"

namespace marlin {

int64_t TrainingPlan::total_steps() const {
  if (steps_per_epoch) {
    const int64_t steps = epochs * *steps_per_epoch;
    return max_steps ? std::min(steps, *max_steps) : steps;
  }
  if (max_steps) return *max_steps;
  throw Error(Errc::kInvalidArgument,
              "the number of training steps is not known, since the training loader does not know its length: "
              "give --max_steps or --max_train_steps_per_epoch, or use a schedule that needs no total");
}

}  // namespace marlin
