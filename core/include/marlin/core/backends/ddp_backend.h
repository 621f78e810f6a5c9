// Several processes, one device each, the same model.
#pragma once

#include <memory>
#include <optional>

#include "marlin/core/backends/sp_backend.h"

namespace marlin {

struct MARLIN_ABI DdpOptions {
  double timeout_seconds = 60.0;           ///< Longest wait for another rank. Range: 1 to 1e6.
  double bucket_mb = 25.0;                 ///< Gradients of about so many MiB are summed together. Range: > 0.
  bool broadcast_buffers = true;           ///< After each step, and before each epoch and validation, all ranks take rank 0's buffers. Off: each has its own; rank 0's are saved.
  bool shared_memory = true;               ///< MARLIN_MAIN connects ranks of one machine so that they sum in memory that they share, 16 MiB each in /dev/shm; off: over Gloo.
  bool gather_outputs = true;              ///< What steps return as outputs reaches the callbacks of all ranks; off: each has its own.
  std::optional<int64_t> check_every = {}; ///< Compare the bits of parameters and buffers on all ranks every so many steps. Range: >= 1.

  static std::vector<OptionField<DdpOptions>> option_fields();
};

/// The backends `ddp` and, made with AmpOptions, `ddp-amp`: gradients of each global batch are summed over the ranks, in buckets while backward
/// runs on, weighted by samples, so that any number of ranks makes the same step. A rank that has no sample of a short last batch takes part with
/// nothing. Micro-batches that do not close a step are not summed; parameters that no rank used have no gradient, those that some did not use need no option.
///
/// The first train() or validate() gives all ranks rank 0's parameters and buffers, and throws Error kMismatch if their models differ; after every step
/// their bits are the same. Sums of metrics and losses are over all ranks, and the
/// same on all. Sparse gradients are refused. With one rank it does what `sp` does.
/// @par Source torch.nn.parallel.DistributedDataParallel, pymarlin's DDP. Differs: weighted by samples; see docs/adr.
class MARLIN_ABI DistributedBackend : public SingleProcessBackend {
 public:
  explicit DistributedBackend(const DdpOptions& options = {});
  DistributedBackend(const DdpOptions& options, const AmpOptions& amp);
  ~DistributedBackend() override;
  void init(const BackendSetup& setup) override;
  [[nodiscard]] EpochResult train(DataLoader& loader, int64_t epoch, int64_t steps_done, StepListener& listener) override;
  [[nodiscard]] EpochResult validate(DataLoader& loader, const std::string& name, int64_t epoch, StepListener& listener) override;

 protected:
  [[nodiscard]] double begin_step(const Batch& batch) override;
  [[nodiscard]] std::vector<int64_t> micro_batches(const Batch& batch) const override;
  void before_last_backward(const MetricSums& metrics, const Totals& totals) override;
  void sum_gradients(int64_t optimizer) override;
  void join_step(MetricSums& metrics, Totals& totals) override;
  void end_step() override;
  void join_val_step(const Batch& batch, MetricSums& metrics) override;
  void gather_outputs(std::vector<at::Tensor>& outputs) override;
  [[nodiscard]] Wishes wishes() const override;

 private:
  struct Parts;

  DdpOptions options_;
  std::unique_ptr<Parts> parts_;   // none with one rank
};

}  // namespace marlin
