// Signals as requests to a Trainer.
#pragma once

#include <csignal>

#include "marlin/core/trainer.h"

namespace marlin {

/// While one lives, SIGTERM and the first SIGINT stop the trainer after its running step with a checkpoint, a second SIGINT, also in a later
/// train(), ends the process at once, and SIGUSR1 has the trainer save. The handlers only set flags; they stand in for whatever was there, a SIGINT that was
/// inherited as ignored too, and what was there comes back at the end. Programs of MARLIN_MAIN have them from before the first step on;
/// no one else does unless asked. One at a time in a process.
class MARLIN_ABI StopSignals {
 public:
  /// @param trainer must live as long. @throws Error kInvalidArgument: there is another one.
  explicit StopSignals(Trainer& trainer);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

 private:
  struct sigaction term_, int_, usr1_;  // as they were
};

/// From now on, a SIGUSR1 does not end the process, but is remembered for the next StopSignals.
MARLIN_ABI void remember_save_signal() noexcept;

}  // namespace marlin
