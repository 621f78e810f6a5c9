// What a person watching the run sees.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/metrics.h"

namespace marlin {

/// Shows how far an epoch or a validation is. Called from the training thread; step() must cost well under a microsecond when
/// there is nothing to draw.
class MARLIN_ABI Progress {
 public:
  virtual ~Progress();
  /// @param label e.g. "epoch 3/5" or "validation". @param total steps to come; unset: not known. @param done of them already done.
  virtual void begin(const std::string& label, std::optional<int64_t> total, int64_t done) = 0;
  /// One more step is done. `loss`: of this step.
  virtual void step(double loss) = 0;
  /// @param metrics of what has ended.
  virtual void end(const Metrics& metrics) = 0;
  /// Something else is about to be written to the same terminal.
  virtual void clear_line() = 0;
};

/// Tells the time; tests put their own in its place.
using ProgressClock = std::chrono::steady_clock::time_point (*)();

/// "bar": a bar per epoch, redrawn at most ten times a second, with loss, steps/s and time left. "plain": a line when an epoch
/// ends (and every 30 s in long ones). "off": nothing. "auto": bar if `stream` is a terminal, else plain.
/// @throws Error kInvalidArgument for another mode. @param stream must live as long; normally stderr.
[[nodiscard]] MARLIN_ABI std::unique_ptr<Progress> make_progress(const std::string& mode, std::FILE* stream, ProgressClock clock = &std::chrono::steady_clock::now);

}  // namespace marlin
