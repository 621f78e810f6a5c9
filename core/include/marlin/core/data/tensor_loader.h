// A loader over tensors in memory.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "marlin/core/data/data_loader.h"
#include "marlin/core/data/epoch_order.h"

namespace marlin {

struct TensorLoaderOptions {
  std::optional<bool> shuffle = {};  ///< Unset: for training yes, for validation no.
  bool drop_last = false;            ///< Leave a short last batch out.
  std::shared_ptr<const Sampler> sampler = {};  ///< Which samples an epoch has, in which order. Null: as `shuffle` says. Not both.
  /// Tells data sets of one length apart when a run is resumed. Unset: made of the dtypes, the shapes and up to 16 evenly spaced
  /// samples, once, when it is first needed; "": not compared.
  std::optional<std::string> fingerprint = {};
};

/// Batches of tensors that hold the whole data set: a batch is one index_select per tensor (a view where the order is the
/// data set's own), with no work per sample.
class MARLIN_ABI TensorLoader final : public DataLoader {
 public:
  /// @param tensors each [num_samples, ...], on the CPU or all on one device; kept, not copied.
  /// @throws Error kInvalidArgument: no tensor, an undefined or 0-dim one, different numbers of samples, none at all,
  /// batch_size < 1, a rank out of range, both shuffle and sampler, a sampler whose order is none of this data set (on next()).
  TensorLoader(std::vector<at::Tensor> tensors, const LoaderRequest& request, const TensorLoaderOptions& options = {});

  [[nodiscard]] std::optional<int64_t> num_samples() const override;
  [[nodiscard]] int64_t batch_size() const override;
  [[nodiscard]] bool drop_last() const override;
  void begin_epoch(int64_t epoch) override;
  [[nodiscard]] bool next(Batch& into) override;
  [[nodiscard]] int64_t consumed_samples() const override;
  [[nodiscard]] StateDict get_state() const override;
  [[nodiscard]] std::vector<std::string> differences(const StateDict& state) const override;
  void update_state(const StateDict& state) override;

 private:
  std::vector<at::Tensor> tensors_;
  EpochOrder order_;
  std::optional<at::Tensor> device_order_;  // this epoch's order where the tensors are; undefined: 0, 1, 2, ...; unset: not there yet
};

}  // namespace marlin
