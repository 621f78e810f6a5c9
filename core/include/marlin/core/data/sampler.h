// Orders to read a data set in.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "marlin/sdk/abi.h"

namespace marlin {

/// What an order may depend on.
struct OrderRequest {
  uint64_t seed = 0;
  int64_t epoch = 0;
  int64_t batch_size = 1;  ///< Samples of one global batch. Range: >= 1.
};

/// Which samples an epoch has, and in which order. A function of the request and of what it was made with: orders are made again when
/// a run is resumed. LibTorch's default generator is left alone. Called from the thread that the loader is called from.
class MARLIN_ABI Sampler {
 public:
  virtual ~Sampler();
  /// Of one epoch. Range: >= 1.
  [[nodiscard]] virtual int64_t num_samples() const = 0;
  /// int64 [num_samples] on the CPU: indices into the data set. Undefined: 0, 1, 2, ...
  [[nodiscard]] virtual at::Tensor order(const OrderRequest& request) const = 0;
  /// A name of this way to order, e.g. "random". Kept with a position: one within an epoch is only taken by a sampler of its kind.
  [[nodiscard]] virtual std::string kind() const = 0;
};

/// 0, 1, 2, ... Kind "sequential".
class MARLIN_ABI SequentialSampler final : public Sampler {
 public:
  /// @throws Error kInvalidArgument: num_samples < 1.
  explicit SequentialSampler(int64_t num_samples);
  [[nodiscard]] int64_t num_samples() const override;
  [[nodiscard]] at::Tensor order(const OrderRequest& request) const override;
  [[nodiscard]] std::string kind() const override;

 private:
  int64_t num_samples_;
};

/// Each sample once, in another order each epoch. Kind "random".
class MARLIN_ABI RandomSampler final : public Sampler {
 public:
  /// @throws Error kInvalidArgument: num_samples < 1.
  explicit RandomSampler(int64_t num_samples);
  [[nodiscard]] int64_t num_samples() const override;
  [[nodiscard]] at::Tensor order(const OrderRequest& request) const override;
  [[nodiscard]] std::string kind() const override;

 private:
  int64_t num_samples_;
};

/// Samples drawn with probabilities in proportion to their weights. Kind "weighted", without replacement "weighted_once".
/// @par Source torch.utils.data.WeightedRandomSampler. Differs: there may be more than 2^24 weights.
class MARLIN_ABI WeightedSampler final : public Sampler {
 public:
  /// @param weights      floating or integer [samples of the data set], finite, >= 0, in all more than 0; taken as double, copied.
  /// @param num_samples  of one epoch. Range: >= 1; without replacement at most the number of weights that are not 0.
  /// @throws Error kInvalidArgument for anything else.
  WeightedSampler(const at::Tensor& weights, int64_t num_samples, bool replacement = true);
  [[nodiscard]] int64_t num_samples() const override;
  [[nodiscard]] at::Tensor order(const OrderRequest& request) const override;
  [[nodiscard]] std::string kind() const override;

 private:
  at::Tensor weights_;     // double [n]
  at::Tensor cumulative_;  // double [n]; undefined without replacement
  int64_t num_samples_;
  int64_t last_possible_;  // the last sample with a weight
};

/// Each sample once, in batches of samples of about one length: all are permuted, cut into chunks of `batches_per_bucket` batches,
/// each is sorted by length and cut into batches, and these are permuted. A short batch stays the last. Kind "bucket".
class MARLIN_ABI BucketSampler final : public Sampler {
 public:
  /// @param lengths  integer [samples of the data set], any numbers; copied.
  /// @param batches_per_bucket  more: lengths differ less within a batch, and the order is less random. Range: >= 1.
  /// @throws Error kInvalidArgument for anything else.
  explicit BucketSampler(const at::Tensor& lengths, int64_t batches_per_bucket = 100);
  [[nodiscard]] int64_t num_samples() const override;
  [[nodiscard]] at::Tensor order(const OrderRequest& request) const override;
  [[nodiscard]] std::string kind() const override;

 private:
  at::Tensor lengths_;  // int64 [n]
  int64_t batches_per_bucket_;
};

}  // namespace marlin
