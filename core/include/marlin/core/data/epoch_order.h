// Which samples come when: the arithmetic that loaders share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "marlin/core/data/data_loader.h"
#include "marlin/core/data/sampler.h"

namespace marlin {

/// Entries [begin, end) of something.
struct Range {
  int64_t begin = 0, end = 0;
};
/// The part of a global batch that belongs to a rank: contiguous, in the order of the ranks, the first ranks with one sample more.
[[nodiscard]] MARLIN_ABI Range rank_slice(int64_t num_global_samples, int rank, int world_size);
/// @throws Error kInvalidArgument: batch_size < 1, a rank out of range.
MARLIN_ABI void check_request(const LoaderRequest& request);

namespace detail {
/// The sampler of the options; null: a permutation or 0, 1, 2, ..., as `shuffle` says; unset: for training a permutation.
/// @throws Error kInvalidArgument if both are given.
[[nodiscard]] MARLIN_ABI std::shared_ptr<const Sampler> chosen_sampler(int64_t dataset_samples, const LoaderRequest& request, std::optional<bool> shuffle,
                                                                       std::shared_ptr<const Sampler> sampler);
}  // namespace detail

/// The order of an epoch and the position in it. The order is a sampler's: a function of (seed, epoch, batch size).
/// Stands at the beginning of epoch 0 until told otherwise. One thread at a time.
class MARLIN_ABI EpochOrder {
 public:
  /// Samples [begin, end) of the order: the slice of one global batch that belongs to this rank.
  struct Slice {
    int64_t begin = 0, end = 0;
    int64_t num_global_samples = 0;
  };
  /// Made once, when first needed; what it returns empty is not compared.
  using Fingerprint = std::function<std::string()>;

  /// A permutation, or 0, 1, 2, ... @throws Error kInvalidArgument: num_samples < 1, batch_size < 1, a rank out of range.
  EpochOrder(int64_t num_samples, const LoaderRequest& request, bool shuffle, bool drop_last);
  /// @param dataset_samples  how many samples there are to choose from. Range: >= 1.
  /// @param sampler          not null.
  /// @throws Error kInvalidArgument for anything else.
  EpochOrder(int64_t dataset_samples, const LoaderRequest& request, std::shared_ptr<const Sampler> sampler, bool drop_last, Fingerprint fingerprint = {});

  /// At the epoch's first batch, in the order of the request's own seed and batch size.
  void begin_epoch(int64_t epoch);
  /// The next global batch's slice; unset at the end of the epoch.
  [[nodiscard]] std::optional<Slice> next();
  /// The order's entries [begin, end) as int64 [end - begin], a view on the CPU; undefined if the order is 0, 1, 2, ...
  /// @throws Error kInvalidArgument if the sampler gave something else than num_samples() indices into the data set.
  [[nodiscard]] at::Tensor indices(int64_t begin, int64_t end) const;

  /// Of one epoch.
  [[nodiscard]] int64_t num_samples() const noexcept { return num_samples_; }
  /// Of the data set.
  [[nodiscard]] int64_t dataset_samples() const noexcept { return dataset_samples_; }
  [[nodiscard]] int64_t batch_size() const noexcept { return request_.batch_size; }
  [[nodiscard]] bool drop_last() const noexcept { return drop_last_; }
  [[nodiscard]] int64_t epoch() const noexcept { return made_for_.epoch; }
  /// That this epoch's order is made with.
  [[nodiscard]] uint64_t seed() const noexcept { return made_for_.seed; }
  [[nodiscard]] int64_t consumed_samples() const noexcept { return position_; }

  /// "epoch", "consumed_samples", "num_samples" (of the epoch), and what the order is made of: "seed", "sampler" (its kind),
  /// "order_batch_size", "dataset_samples", "fingerprint" (unless it is empty).
  [[nodiscard]] StateDict get_state() const;
  /// Another number of samples, of an epoch or of the data set, another fingerprint: one sentence each.
  [[nodiscard]] std::vector<std::string> differences(const StateDict& state) const;
  /// Goes to a position. The rest of that epoch has the order that the state's was cut from, also if this request has another seed or
  /// batch size: each sample of it comes once. Only the first three entries must be there.
  /// @throws Error kMismatch: the differences(), another kind of sampler, or no position in the epoch. Nothing is then changed.
  void update_state(const StateDict& state);

 private:
  void make_for(const OrderRequest& order);
  [[nodiscard]] OrderRequest own_order(int64_t epoch) const { return {request_.seed, epoch, request_.batch_size}; }
  [[nodiscard]] const std::string& fingerprint() const;

  int64_t dataset_samples_, num_samples_;
  LoaderRequest request_;
  std::shared_ptr<const Sampler> sampler_;
  bool drop_last_;
  mutable Fingerprint make_fingerprint_;
  mutable std::optional<std::string> fingerprint_;
  OrderRequest made_for_;
  int64_t position_ = 0;
  mutable std::optional<at::Tensor> order_;  // int64 [num_samples] or undefined; unset: not drawn yet
};

}  // namespace marlin
