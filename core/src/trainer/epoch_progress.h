// What has gathered in the epoch that is under way.
#pragma once

#include <string>
#include <vector>

#include "backends/output_collector.h"
#include "marlin/core/metric_sums.h"
#include "trainer/generators.h"

namespace marlin {

struct EpochProgress {
  enum class Phase : uint8_t { kTrain, kValidation };

  Phase phase = Phase::kTrain;
  MetricSums epoch;                             // of its training steps
  MetricSums window;                            // of those since the last "step" record
  OutputCollector outputs;                      // of its training steps

  Metrics validated;                            // of the loaders that are through
  std::vector<std::string> validated_loaders;
  bool recorded = false;                        // writers have been told of them
  StateDict before_begin;                       // the generators' states as the epoch began; empty: it began in another process
  StateDict before_loader;                      // the generators' states as the loader that is under way began; empty: none is

  // As of the last completed step; a step that throws has moved on from there.
  int64_t marked_step = -1, marked_samples = 0;
  GeneratorMark mark;

  void forget_validation() {
    validated = {};
    validated_loaders.clear();
    recorded = false;
    before_loader = {};
  }
  void mark_step(int64_t global_step, int64_t consumed_samples) {
    marked_step = global_step;
    marked_samples = consumed_samples;
    mark.take();
  }

  /// "phase", "epoch_metrics", "step_metrics", "outputs", "validated".
  [[nodiscard]] StateDict get_state() const;
  /// What is not there is as at an epoch's begin. @throws Error kMismatch: an entry of another kind.
  [[nodiscard]] static EpochProgress of(const StateDict& state);
};

/// Name -> value.
[[nodiscard]] StateDict to_state(const Metrics& metrics);
/// @throws Error kMismatch: an entry of another kind.
[[nodiscard]] Metrics to_metrics(const StateDict& state);

}  // namespace marlin
