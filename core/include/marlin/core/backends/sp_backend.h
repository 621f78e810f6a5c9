// One process, one device.
#pragma once

#include "marlin/core/backends/grad_scaler.h"
#include "marlin/core/trainer_backend.h"
#include "marlin/sdk/options.h"

namespace marlin {

class OutputCollector;

/// The sizes of the fewest near-equal micro-batches of at most `limit` samples; they differ by one at most, larger ones first.
/// `limit` unset: one. No samples: none.
[[nodiscard]] MARLIN_ABI std::vector<int64_t> micro_batch_sizes(int64_t num_samples, std::optional<int64_t> limit);

/// Mixed precision: forward passes run in a type of half the size where that is safe (autocast); parameters, gradients and optimizers stay in float32.
struct MARLIN_ABI AmpOptions {
  std::string dtype = "auto";         ///< bfloat16, float16 (CUDA only) or auto: bfloat16 on the CPU, float16 on CUDA.
  std::string grad_scaler = "auto";   ///< on, off or auto: on for float16.
  double init_scale = 65536.0;        ///< These four as in GradScalerOptions.
  double growth_factor = 2.0;
  double backoff_factor = 0.5;
  int64_t growth_interval = 2000;

  static std::vector<OptionField<AmpOptions>> option_fields();
};

/// The backends `sp` and, made with AmpOptions, `sp-amp`.
///
/// With a grad scaler a step whose gradients are not finite is skipped: no optimizer and no scheduler steps, it is no global step, and its
/// metrics do not count; the next steps go on with a smaller scale. @throws Error kTraining from train() after 40 such steps in a row.
/// @par Source pymarlin's SingleProcess and SingleProcessAmp. Differs: skipped steps are no steps, and the scaler's state is in the checkpoint.
class MARLIN_ABI SingleProcessBackend : public TrainerBackend, private StepOptimizer {
 public:
  SingleProcessBackend();
  explicit SingleProcessBackend(const AmpOptions& amp);
  ~SingleProcessBackend() override;
  /// @throws Error kInvalidArgument, kUnsupported: AmpOptions that cannot be, or not on this device.
  void init(const BackendSetup& setup) override;
  [[nodiscard]] EpochResult train(DataLoader& loader, int64_t epoch, int64_t steps_done, StepListener& listener) override;
  [[nodiscard]] EpochResult validate(DataLoader& loader, const std::string& name, int64_t epoch, StepListener& listener) override;
  [[nodiscard]] int64_t global_step_completed() const override { return global_step_; }
  [[nodiscard]] int64_t batches_completed() const override { return batches_; }
  [[nodiscard]] int64_t skipped_steps() const override { return skipped_steps_; }
  /// With AmpOptions also "skipped_steps" and, with a grad scaler, "scaler": its state.
  [[nodiscard]] StateDict get_state() const override;
  [[nodiscard]] std::vector<std::string> differences(const StateDict& state) const override;
  void update_state(const StateDict& state) override;

 protected:
  // What several ranks do besides. Alone there is nothing to do.
  struct Totals {
    double loss = 0.0, loss_weight = 0.0;   // of the step
    double weight_seen = 0.0;               // what its micro-batches counted themselves as
  };
  /// Of the step that begins: the samples that weights are shares of.
  [[nodiscard]] virtual double begin_step(const Batch& batch);
  [[nodiscard]] virtual std::vector<int64_t> micro_batches(const Batch& batch) const;
  /// Before the step's last backward, once its metrics are known; not with manual optimisation.
  virtual void before_last_backward(const MetricSums& metrics, const Totals& totals);
  /// Sums the gradients of that optimizer's parameters, or of all (-1), before they are used.
  virtual void sum_gradients(int64_t optimizer);
  /// Once gradients are summed: what all ranks' metrics and totals come to.
  virtual void join_step(MetricSums& metrics, Totals& totals);
  /// After the step, be it skipped or not.
  virtual void end_step();
  virtual void join_val_step(const Batch& batch, MetricSums& metrics);
  /// What all ranks' outputs come to, in data set order.
  virtual void gather_outputs(std::vector<at::Tensor>& outputs);
  [[nodiscard]] virtual Wishes wishes() const;

  [[nodiscard]] const BackendSetup& setup() const noexcept { return setup_; }
  [[nodiscard]] const std::vector<std::vector<at::Tensor>>& parameters() const noexcept { return parameters_; }
  [[nodiscard]] bool manual() const noexcept { return manual_; }
  /// That the last micro-batch returned.
  [[nodiscard]] size_t num_outputs() const noexcept { return num_outputs_; }
  [[noreturn]] void fail(const std::string& what) const;

 private:
  enum : char { kUntouched, kTouched, kStepped, kSkipped };
  struct Amp;

  void train_step(Batch& batch, int64_t epoch, OutputCollector& outputs);
  void val_step(Batch& batch, StepContext& context, OutputCollector& outputs);
  void micro_step(Batch& micro, const StepContext& context, OutputCollector& outputs);
  [[nodiscard]] StepOutput forward(const StepContext& context, Batch& micro);
  void backward(const at::Tensor& loss, double weight, bool retain_graph, const std::vector<at::Tensor>& inputs);
  void record_loss(double loss, double samples);
  void finish_step();
  void end_manual_step();
  void optimize(const at::Tensor& loss, size_t optimizer_index, bool retain_graph) override;
  [[nodiscard]] bool unscale(const std::vector<at::Tensor>& parameters);
  void end_scaled_step(bool overflowed);
  void clip(const std::vector<at::Tensor>& parameters);
  [[nodiscard]] double checked_loss(const at::Tensor& loss, const char* what) const;

  std::unique_ptr<Amp> amp_;
  BackendSetup setup_;
  std::vector<std::vector<at::Tensor>> parameters_;  // of each optimizer
  int64_t global_step_ = 0, batches_ = 0, skipped_steps_ = 0;

  // The step that is running.
  int64_t epoch_ = 0;
  double step_samples_ = 0.0;
  double weight_ = 1.0;            // of the micro-batch, as a share of the step's samples
  Totals totals_;
  bool undivided_ = true;          // one rank, one micro-batch
  bool has_samples_ = true;        // the micro-batch
  size_t num_outputs_ = 0;
  bool closes_step_ = false;
  bool manual_ = false;            // train_step called optimize()
  bool skipped_ = false;           // for an overflow
  std::vector<char> touched_;      // by optimizer: kUntouched, kTouched (has gradients), kStepped or kSkipped
  MetricSums step_metrics_;
};

}  // namespace marlin
