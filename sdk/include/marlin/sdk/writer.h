// Where metrics go.
#pragma once

#include <cstdint>
#include <string>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/logger.h"
#include "marlin/sdk/metrics.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

/// One set of metrics of a run.
struct MetricsEvent {
  enum class Kind : uint8_t {
    kStep,        ///< The training metrics since the last such event, `global_step` being the last step in them.
    kValidation,  ///< A validation of all loaders.
    kEpoch,       ///< The training metrics of the whole epoch.
  };
  Kind kind = Kind::kStep;
  int64_t epoch = 0;        ///< From 0.
  int64_t global_step = 0;  ///< Optimizer steps completed.
  Metrics metrics;
};

[[nodiscard]] MARLIN_ABI const char* to_string(MetricsEvent::Kind kind) noexcept;  ///< "step", "validation" or "epoch"

/// Writes metrics somewhere. Called from the training thread of rank 0, never twice at once.
class MARLIN_ABI Writer {
 public:
  virtual ~Writer();
  /// Called before the first step of a run, so that one that cannot write is told of then: what it throws ends the run. Default: nothing.
  virtual void open();
  /// What this or flush() throws later is told of once, and training goes on without the writer.
  virtual void write(const MetricsEvent& event) = 0;
  /// At the end of each epoch and of the run: what was written must be readable. Default: nothing.
  virtual void flush();

  /// The name under which its position is kept in a checkpoint. Default: none, and nothing is kept.
  [[nodiscard]] virtual std::string name() const;
  /// How far it has come: asked for each checkpoint, and to be true even if the process is killed right after. Default: empty.
  [[nodiscard]] virtual StateDict get_state();
  /// Called after open() where a run goes on from a checkpoint: what was written after that position will be written again, so it
  /// should go. Says in the log what it did. Default: nothing.
  virtual void update_state(const StateDict& state, Logger& log);
};

}  // namespace marlin
