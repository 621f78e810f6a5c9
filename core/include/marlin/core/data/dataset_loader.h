// A loader over LibTorch's own data sets.
#pragma once

#include <c10/util/ArrayRef.h>
#include <torch/data/datasets/base.h>
#include <torch/data/example.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "marlin/core/data/data_loader.h"
#include "marlin/core/data/epoch_order.h"
#include "marlin/core/data/tensor_loader.h"
#include "marlin/sdk/error.h"

namespace marlin {

using DatasetLoaderOptions = TensorLoaderOptions;

/// A batch of what LibTorch's data sets give: data, and target if there is one. Examples that are not stacked yet are stacked
/// along a new first dimension. @throws Error kInvalidArgument for no examples.
[[nodiscard]] MARLIN_ABI Batch to_batch(torch::data::Example<> stacked);
[[nodiscard]] MARLIN_ABI Batch to_batch(torch::data::TensorExample stacked);
[[nodiscard]] MARLIN_ABI Batch to_batch(const std::vector<torch::data::Example<>>& examples);
[[nodiscard]] MARLIN_ABI Batch to_batch(const std::vector<torch::data::TensorExample>& examples);

namespace detail {
/// The indices to ask a data set for: of this slice; for an empty one of a single sample, which has the shapes that are needed.
[[nodiscard]] MARLIN_ABI std::vector<size_t> dataset_indices(const EpochOrder& order, const EpochOrder::Slice& slice);
/// Cuts what was collated down to the slice, and sets its counts. @throws Error kInvalidArgument if a tensor has another
/// number of samples than were asked for.
[[nodiscard]] MARLIN_ABI Batch dataset_batch(Batch collated, const EpochOrder::Slice& slice);
/// @throws Error kInvalidArgument for a data set that does not know its size.
[[nodiscard]] MARLIN_ABI int64_t dataset_size(const std::optional<size_t>& size);
}  // namespace detail

/// Batches of a torch::data map-style data set, transforms included: anything with `size()` and `get_batch(ArrayRef<size_t>)`,
/// such as torch::data::datasets::MNIST(...).map(Normalize<>(...)).map(Stack<>()). Read in the calling thread.
///
/// A rank that has no sample of a short last batch reads one for its shapes, and delivers tensors of [0, ...].
/// @par Source torch::data::StatelessDataLoader. Differs: its order can be saved, resumed and shared by ranks.
template <class Dataset>
class DatasetLoader final : public DataLoader {
 public:
  using Indices = c10::ArrayRef<size_t>;
  static_assert(requires(Dataset& set, Indices indices) { set.get_batch(indices); },
                "DatasetLoader needs a map-style data set: get_batch(c10::ArrayRef<size_t>)");
  using BatchType = decltype(std::declval<Dataset&>().get_batch(std::declval<Indices>()));
  /// Makes a Batch of what get_batch() returned: `tensors`, each [number of samples, ...], and `extra`. The counts are set for it.
  using Collate = std::function<Batch(BatchType&&)>;
  /// Whether to_batch() knows the type, so that no collate function is needed.
  static constexpr bool kKnownBatchType = requires(BatchType batch) { to_batch(std::move(batch)); };

  /// @throws Error kInvalidArgument: size unknown or 0, batch_size < 1, a rank out of range, no collate function where one is needed.
  DatasetLoader(Dataset dataset, const LoaderRequest& request, const DatasetLoaderOptions& options = {}, Collate collate = {})
      : dataset_(std::move(dataset)),
        order_(detail::dataset_size(dataset_.size()), request, options.shuffle.value_or(request.stage == Stage::kTrain), options.drop_last),
        collate_(std::move(collate)) {
    if (!kKnownBatchType && !collate_) throw Error(Errc::kInvalidArgument, "batches of this type of data set need a collate function");
  }

  [[nodiscard]] Dataset& dataset() noexcept { return dataset_; }

  [[nodiscard]] std::optional<int64_t> num_samples() const override { return order_.num_samples(); }
  [[nodiscard]] int64_t batch_size() const override { return order_.batch_size(); }
  [[nodiscard]] bool drop_last() const override { return order_.drop_last(); }
  void begin_epoch(int64_t epoch) override { order_.begin_epoch(epoch); }
  [[nodiscard]] bool next(Batch& into) override {
    const std::optional<EpochOrder::Slice> slice = order_.next();
    if (!slice) return false;
    const std::vector<size_t> indices = detail::dataset_indices(order_, *slice);
    into = detail::dataset_batch(collate(dataset_.get_batch(indices)), *slice);
    return true;
  }
  [[nodiscard]] int64_t consumed_samples() const override { return order_.consumed_samples(); }
  [[nodiscard]] StateDict get_state() const override { return order_.get_state(); }
  void update_state(const StateDict& state) override { order_.update_state(state); }

 private:
  [[nodiscard]] Batch collate(BatchType&& batch) const {
    if (collate_) return collate_(std::move(batch));
    if constexpr (kKnownBatchType) return to_batch(std::move(batch));
    return {};  // the constructor has refused this
  }

  Dataset dataset_;
  EpochOrder order_;
  Collate collate_;
};

/// The type of the data set need not be written: make_dataset_loader(MNIST(path).map(Stack<>()), request).
template <class Dataset>
[[nodiscard]] std::unique_ptr<DatasetLoader<Dataset>> make_dataset_loader(Dataset dataset, const LoaderRequest& request,
                                                                          const DatasetLoaderOptions& options = {},
                                                                          typename DatasetLoader<Dataset>::Collate collate = {}) {
  return std::make_unique<DatasetLoader<Dataset>>(std::move(dataset), request, options, std::move(collate));
}

}  // namespace marlin
