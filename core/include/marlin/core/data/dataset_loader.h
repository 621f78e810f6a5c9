// A loader over data sets that give one sample at a time, LibTorch's own among them.
#pragma once

#include <c10/util/ArrayRef.h>
#include <torch/data/datasets/base.h>
#include <torch/data/example.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "marlin/core/data/batch_reader.h"
#include "marlin/core/data/data_loader.h"
#include "marlin/core/data/epoch_order.h"
#include "marlin/core/data/sample_context.h"
#include "marlin/core/data/sampler.h"
#include "marlin/core/data/tensor_stacker.h"
#include "marlin/sdk/error.h"

namespace marlin {

struct DatasetLoaderOptions {
  std::optional<bool> shuffle = {};             ///< Unset: for training yes, for validation no.
  bool drop_last = false;                       ///< Leave a short last batch out.
  std::shared_ptr<const Sampler> sampler = {};  ///< Which samples an epoch has, in which order. Null: as `shuffle` says. Not both.
  int64_t num_workers = 0;                      ///< Threads that read; 0: the thread that asks for batches reads. Range: >= 0.
  int64_t prefetch_factor = 2;                  ///< Batches a thread that are read ahead at most. Range: >= 1.
  bool pin_memory = false;                      ///< Puts batches into pinned memory, from which a GPU copies faster. Without CUDA: nothing.
  std::string fingerprint = {};                 ///< Tells data sets of one length apart when a run is resumed. Empty: not compared.
};

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
/// @throws Error kInvalidArgument for several threads on a data set that cannot be copied.
MARLIN_ABI void check_workers(int64_t num_workers, bool copyable);

/// Stacks examples as they come: data and target along a new first dimension.
template <class Example>
class ExampleStacker;

template <>
class ExampleStacker<torch::data::Example<>> {
 public:
  explicit ExampleStacker(size_t count) : data_(static_cast<int64_t>(count)), target_(static_cast<int64_t>(count)) {}
  void add(const torch::data::Example<>& example) {
    data_.add(example.data);
    target_.add(example.target);
  }
  [[nodiscard]] Batch batch() { return to_batch(torch::data::Example<>(data_.stacked(), target_.stacked())); }

 private:
  TensorStacker data_, target_;
};

template <>
class ExampleStacker<torch::data::TensorExample> {
 public:
  explicit ExampleStacker(size_t count) : data_(static_cast<int64_t>(count)) {}
  void add(const torch::data::TensorExample& example) { data_.add(example.data); }
  [[nodiscard]] Batch batch() { return to_batch(torch::data::TensorExample(data_.stacked())); }

 private:
  TensorStacker data_;
};

using Indices = c10::ArrayRef<size_t>;
template <class Dataset> concept ReadsWithContext = requires(Dataset& set, SampleContext& context) { set.get(context); };
template <class Dataset> concept ReadsBatches = requires(Dataset& set, Indices indices) { set.get_batch(indices); };
template <class Dataset> constexpr bool kGivesBatches = ReadsBatches<Dataset> && !ReadsWithContext<Dataset>;
template <class Dataset> concept ReadsByIndex = requires(Dataset& set, size_t index) { set.get(index); };

/// One sample of a data set of any sort.
template <class Dataset>
[[nodiscard]] auto read_sample(Dataset& dataset, SampleContext& context) {
  if constexpr (ReadsWithContext<Dataset>) return dataset.get(context);
  else return dataset.get(static_cast<size_t>(context.index()));
}

template <class Dataset> using SampleOf = std::decay_t<decltype(read_sample(std::declval<Dataset&>(), std::declval<SampleContext&>()))>;

/// Gives the samples of a job to `take(SampleOf<Dataset>&&)`, in order. @throws Error kTraining that names the sample and the cause.
template <class Dataset, class Take>
void for_each_sample(Dataset& dataset, const BatchJob& job, SampleContext& context, const Take& take) {
  for (const size_t index : job.indices) {
    context.move_to(job.seed, job.epoch, static_cast<int64_t>(index));
    std::optional<SampleOf<Dataset>> sample;
    try {
      sample.emplace(read_sample(dataset, context));
    } catch (...) {
      throw_sample_error(context.index(), job.epoch);
    }
    take(std::move(*sample));
  }
}

/// The samples of a job, as a data set of that sort gives them. @throws Error kTraining that names the sample and the cause.
template <class Dataset>
[[nodiscard]] auto read_samples(Dataset& dataset, const BatchJob& job, SampleContext& context) {
  if constexpr (kGivesBatches<Dataset>) {
    std::string cause;
    try {
      return dataset.get_batch(job.indices);
    } catch (...) {
      cause = current_exception_text();
    }
    for (const size_t index : job.indices) {  // which one is it?
      try {
        (void)dataset.get_batch(Indices(&index, 1));
      } catch (...) {
        throw_sample_error(static_cast<int64_t>(index), job.epoch);
      }
    }
    throw_samples_error(job.indices, job.epoch, "", cause);
  } else {
    std::vector<SampleOf<Dataset>> samples;
    samples.reserve(job.indices.size());
    for_each_sample(dataset, job, context, [&samples](SampleOf<Dataset>&& sample) { samples.push_back(std::move(sample)); });
    return samples;
  }
}
}  // namespace detail

/// Batches of a map-style data set: anything with `size()` and one of
///   - `get(SampleContext&)`: one sample; what is random in it comes from the context's generator;
///   - `get_batch(c10::ArrayRef<size_t>)`: torch::data's, such as torch::data::datasets::MNIST(...).map(Normalize<>(...)).map(Stack<>());
///   - `get(size_t)`: one sample.
///
/// Batches have the same bits whichever number of threads reads them, as long as a sample depends on nothing but its context.
/// Each thread reads whole batches from a copy of the data set, made on the first next(); of one that cannot be copied there may be one
/// thread, and its get() is never called from two. (Delete the copy constructor of a data set whose members cannot be copied.) While
/// a sample is read and collated, LibTorch's operations use no further threads. The threads start with the first next().
///
/// What a data set or a collate function throws comes out of next() in the batch's place as Error kTraining that names sample, epoch and
/// cause, again on every call until begin_epoch() or update_state().
///
/// A rank that has no sample of a short last batch reads one for its shapes, and delivers tensors of [0, ...].
/// @par Source torch.utils.data.DataLoader, torch::data::StatelessDataLoader. Differs: its order can be saved, resumed and shared by ranks.
template <class Dataset>
class DatasetLoader final : public DataLoader {
 public:
  using Indices = detail::Indices;
  static_assert(detail::ReadsWithContext<Dataset> || detail::ReadsBatches<Dataset> || detail::ReadsByIndex<Dataset>,
                "DatasetLoader needs a map-style data set: get(SampleContext&), get_batch(c10::ArrayRef<size_t>) or get(size_t)");
  using BatchType = decltype(detail::read_samples(std::declval<Dataset&>(), std::declval<const detail::BatchJob&>(), std::declval<SampleContext&>()));
  /// Makes a Batch of the samples read, what get_batch() returned or a vector of samples: `tensors`, each [number of samples, ...], and
  /// `extra`. The counts are set for it. Called from the reading threads, from several at once.
  using Collate = std::function<Batch(BatchType&&)>;
  /// Whether to_batch() knows the type, so that no collate function is needed.
  static constexpr bool kKnownBatchType = requires(BatchType batch) { to_batch(std::move(batch)); };
  /// Whether samples are stacked as they are read.
  static constexpr bool kStacked = !detail::kGivesBatches<Dataset> && (std::is_same_v<BatchType, std::vector<torch::data::Example<>>> ||
                                                                       std::is_same_v<BatchType, std::vector<torch::data::TensorExample>>);
  static constexpr bool kCopyable = std::is_copy_constructible_v<Dataset>;

  /// @throws Error kInvalidArgument: size unknown or 0, batch_size < 1, a rank out of range, no collate function where one is needed,
  /// several workers for a data set that cannot be copied, options out of range, both shuffle and sampler.
  DatasetLoader(Dataset dataset, const LoaderRequest& request, const DatasetLoaderOptions& options = {}, Collate collate = {})
      : dataset_(std::move(dataset)),
        delivered_(make_order(detail::dataset_size(dataset_.size()), request, options)),
        ahead_(delivered_),
        collate_(std::move(collate)),
        reader_({options.num_workers, options.prefetch_factor, options.pin_memory, request.stop_requested},
                {[this, workers = options.num_workers] { make_copies(workers); }, [this] { return next_job(); },
                 [this](detail::BatchJob& job, size_t worker, SampleContext& context) { return read(job, worker, context); }}) {
    if (!kKnownBatchType && !collate_) throw Error(Errc::kInvalidArgument, "batches of this type of data set need a collate function");
    detail::check_workers(options.num_workers, kCopyable);
  }

  /// The one that copies are made of: once threads read, changes do not reach them.
  [[nodiscard]] Dataset& dataset() noexcept { return dataset_; }

  [[nodiscard]] std::optional<int64_t> num_samples() const override { return delivered_.num_samples(); }
  [[nodiscard]] int64_t batch_size() const override { return delivered_.batch_size(); }
  [[nodiscard]] bool drop_last() const override { return delivered_.drop_last(); }
  void begin_epoch(int64_t epoch) override {
    reader_.reset();
    delivered_.begin_epoch(epoch);
    ahead_.begin_epoch(epoch);
    interrupted_ = false;
  }
  [[nodiscard]] bool next(Batch& into) override {
    detail::ReadBatch read;
    const auto outcome = reader_.next(read);
    interrupted_ = outcome == detail::BatchReader::Outcome::kInterrupted;
    if (outcome != detail::BatchReader::Outcome::kBatch) return false;
    (void)delivered_.next();
    into = std::move(read.batch);
    return true;
  }
  [[nodiscard]] bool interrupted() const override { return interrupted_; }
  /// What next() has delivered; what is read ahead does not count.
  [[nodiscard]] int64_t consumed_samples() const override { return delivered_.consumed_samples(); }
  [[nodiscard]] StateDict get_state() const override { return delivered_.get_state(); }
  [[nodiscard]] std::vector<std::string> differences(const StateDict& state) const override { return delivered_.differences(state); }
  void update_state(const StateDict& state) override {
    delivered_.update_state(state);
    reader_.reset();
    ahead_.update_state(state);
    interrupted_ = false;
  }

 private:
  static EpochOrder make_order(int64_t size, const LoaderRequest& request, const DatasetLoaderOptions& options) {
    return EpochOrder(size, request, detail::chosen_sampler(size, request, options.shuffle, options.sampler), options.drop_last,
                      [fingerprint = options.fingerprint] { return fingerprint; });
  }

  void make_copies(int64_t num_workers) {
    if constexpr (kCopyable) {
      for (int64_t i = 0; i < num_workers; ++i) copies_.push_back(std::make_unique<Dataset>(std::as_const(dataset_)));
    }
  }

  [[nodiscard]] std::optional<detail::BatchJob> next_job() {
    const std::optional<EpochOrder::Slice> slice = ahead_.next();
    if (!slice) return std::nullopt;
    return detail::BatchJob{detail::dataset_indices(ahead_, *slice), *slice, ahead_.seed(), ahead_.epoch()};
  }

  // Called from the reading threads.
  [[nodiscard]] detail::ReadBatch read(detail::BatchJob& job, size_t worker, SampleContext& context) const {
    Dataset& dataset = worker < copies_.size() ? *copies_[worker] : dataset_;
    return {detail::dataset_batch(read_batch(dataset, job, context), job.slice), {}, false};
  }

  [[nodiscard]] Batch read_batch(Dataset& dataset, const detail::BatchJob& job, SampleContext& context) const {
    if constexpr (kStacked) {
      if (!collate_) {
        detail::ExampleStacker<typename BatchType::value_type> stacker(job.indices.size());
        detail::for_each_sample(dataset, job, context, [&stacker](const auto& sample) { stacker.add(sample); });
        return made_of(job, [&stacker] { return stacker.batch(); });
      }
    }
    BatchType samples = detail::read_samples(dataset, job, context);
    return made_of(job, [&] {
      if (collate_) return collate_(std::move(samples));
      if constexpr (kKnownBatchType) return to_batch(std::move(samples));
      else return Batch();  // the constructor has refused this
    });
  }

  template <class Make>
  static Batch made_of(const detail::BatchJob& job, const Make& make) {
    try {
      return make();
    } catch (...) {
      detail::throw_samples_error(job.indices, job.epoch, "they cannot be made a batch: ", detail::current_exception_text());
    }
  }

  mutable Dataset dataset_;
  std::vector<std::unique_ptr<Dataset>> copies_;  // one a thread
  EpochOrder delivered_;                          // how far next() has come
  EpochOrder ahead_;                              // how far jobs were given out
  Collate collate_;
  bool interrupted_ = false;
  detail::BatchReader reader_;  // the last member: its threads end before anything else does
};

/// The type of the data set need not be written: make_dataset_loader(MNIST(path).map(Stack<>()), request).
template <class Dataset>
[[nodiscard]] std::unique_ptr<DatasetLoader<Dataset>> make_dataset_loader(Dataset dataset, const LoaderRequest& request,
                                                                          const DatasetLoaderOptions& options = {},
                                                                          typename DatasetLoader<Dataset>::Collate collate = {}) {
  return std::make_unique<DatasetLoader<Dataset>>(std::move(dataset), request, options, std::move(collate));
}

/// A data set whose samples are passed through a function: see transformed().
template <class Dataset, class Function>
class TransformedDataset {
 public:
  TransformedDataset(Dataset dataset, Function function) : dataset_(std::move(dataset)), function_(std::move(function)) {}
  [[nodiscard]] auto get(SampleContext& context) { return function_(detail::read_sample(dataset_, context), context); }
  [[nodiscard]] auto size() const { return dataset_.size(); }

 private:
  Dataset dataset_;
  Function function_;
};

/// `function(T sample, SampleContext&) -> U`, applied to each sample of a data set with get(SampleContext&) or get(size_t). What is random
/// in it must come from the context's generator.
template <class Dataset, class Function>
[[nodiscard]] TransformedDataset<Dataset, Function> transformed(Dataset dataset, Function function) {
  return TransformedDataset<Dataset, Function>(std::move(dataset), std::move(function));
}

}  // namespace marlin
