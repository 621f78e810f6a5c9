// One process, one device.
#pragma once

#include "marlin/core/trainer_backend.h"

namespace marlin {

class OutputCollector;

/// The sizes of the fewest near-equal micro-batches of at most `limit` samples; they differ by one at most, larger ones first.
/// `limit` unset: one. No samples: none.
[[nodiscard]] MARLIN_ABI std::vector<int64_t> micro_batch_sizes(int64_t num_samples, std::optional<int64_t> limit);

/// The backend `sp`.
class MARLIN_ABI SingleProcessBackend : public TrainerBackend, private StepOptimizer {
 public:
  void init(const BackendSetup& setup) override;
  [[nodiscard]] EpochResult train(DataLoader& loader, int64_t epoch, int64_t steps_done, StepListener& listener) override;
  [[nodiscard]] EpochResult validate(DataLoader& loader, const std::string& name, int64_t epoch, StepListener& listener) override;
  [[nodiscard]] int64_t global_step_completed() const override { return global_step_; }
  [[nodiscard]] int64_t batches_completed() const override { return batches_; }
  [[nodiscard]] StateDict get_state() const override;
  void update_state(const StateDict& state) override;

 private:
  enum : char { kUntouched, kTouched, kStepped };

  void train_step(Batch& batch, int64_t epoch, OutputCollector& outputs);
  void val_step(Batch& batch, StepContext& context, OutputCollector& outputs);
  void micro_step(Batch& micro, const StepContext& context, double step_samples, OutputCollector& outputs);
  void backward(const at::Tensor& loss, double weight, bool retain_graph, const std::vector<at::Tensor>& inputs);
  void record_loss(double loss, double samples);
  void finish_step(double step_samples, size_t num_micro_batches);
  void optimize(const at::Tensor& loss, size_t optimizer_index, bool retain_graph) override;
  void clip(const std::vector<at::Tensor>& parameters);
  [[nodiscard]] double checked_loss(const at::Tensor& loss, const char* what) const;
  [[noreturn]] void fail(const std::string& what) const;

  BackendSetup setup_;
  std::vector<std::vector<at::Tensor>> parameters_;  // of each optimizer: those that take gradients
  int64_t global_step_ = 0, batches_ = 0;

  // The step that is running.
  int64_t epoch_ = 0;
  double weight_ = 1.0;            // of the micro-batch, as a share of the step's samples
  double weight_seen_ = 0.0;       // what the micro-batches so far counted themselves as
  double loss_total_ = 0.0, loss_weight_ = 0.0;
  bool closes_step_ = false;
  bool manual_ = false;            // train_step called optimize()
  std::vector<char> touched_;      // by optimizer: kUntouched, kTouched (has gradients) or kStepped
  MetricSums step_metrics_;
};

}  // namespace marlin
