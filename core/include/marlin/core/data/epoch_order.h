// Which samples come when: the arithmetic that all map-style loaders share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "marlin/core/data/data_loader.h"

namespace marlin {

/// The order of an epoch and the position in it. Order: a permutation that is a function of (seed, epoch), or 0, 1, 2, ...
/// It has a generator of its own. Stands at the beginning of epoch 0 until told otherwise. One thread at a time.
class MARLIN_ABI EpochOrder {
 public:
  /// Samples [begin, end) of the order: the slice of one global batch that belongs to this rank.
  struct Slice {
    int64_t begin = 0, end = 0;
    int64_t num_global_samples = 0;
  };

  /// @throws Error kInvalidArgument: num_samples < 1, batch_size < 1, a rank out of range.
  EpochOrder(int64_t num_samples, const LoaderRequest& request, bool shuffle, bool drop_last);

  void begin_epoch(int64_t epoch);
  /// The next global batch's slice; unset at the end of the epoch.
  [[nodiscard]] std::optional<Slice> next();
  /// The order's entries [begin, end) as int64 [end - begin], a view on the CPU; undefined if the order is 0, 1, 2, ...
  [[nodiscard]] at::Tensor indices(int64_t begin, int64_t end) const;

  [[nodiscard]] int64_t num_samples() const noexcept { return num_samples_; }
  [[nodiscard]] int64_t batch_size() const noexcept { return request_.batch_size; }
  [[nodiscard]] bool shuffled() const noexcept { return shuffle_; }
  [[nodiscard]] bool drop_last() const noexcept { return drop_last_; }
  [[nodiscard]] int64_t consumed_samples() const noexcept { return position_; }
  /// "epoch", "consumed_samples", "num_samples".
  [[nodiscard]] StateDict get_state() const;
  /// @throws Error kMismatch: of a data set of another length, or no position in it. Nothing is then changed.
  void update_state(const StateDict& state);

 private:
  int64_t num_samples_;
  LoaderRequest request_;
  bool shuffle_, drop_last_;
  int64_t epoch_ = 0, position_ = 0;
  mutable at::Tensor permutation_;  // int64 [num_samples]; undefined if not shuffled, or not drawn yet
};

}  // namespace marlin
