// A loader over samples that come one after the other: streams, shards, sockets.
#pragma once

#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "marlin/core/data/batch_reader.h"
#include "marlin/core/data/data_loader.h"
#include "marlin/core/data/dataset_loader.h"
#include "marlin/sdk/error.h"

namespace marlin {

/// Samples in an order of its own. One thread at a time, but not always the same one.
template <class T>
class IterableDataset {
 public:
  virtual ~IterableDataset() = default;
  /// At the first sample of an epoch, whatever came before. What is random must be a function of (seed, epoch).
  virtual void begin_epoch(uint64_t seed, int64_t epoch) = 0;
  /// Unset: the epoch has ended.
  [[nodiscard]] virtual std::optional<T> next() = 0;
  /// Of one epoch; unset: not known in advance.
  [[nodiscard]] virtual std::optional<int64_t> num_samples() const { return std::nullopt; }
  /// The position: what update_state() needs to go on behind the sample that next() gave last. Asked for after every batch: small.
  [[nodiscard]] virtual StateDict get_state() const = 0;
  /// Goes to a position of the epoch that begin_epoch() was just called for. Throws for a state that it cannot take.
  virtual void update_state(const StateDict& state) = 0;
};

struct IterableLoaderOptions {
  bool drop_last = false;       ///< Leave a short last batch out.
  int64_t num_workers = 0;      ///< 1: a thread reads ahead; 0: the thread that asks for batches reads. Range: 0 or 1.
  int64_t prefetch_factor = 2;  ///< Batches that are read ahead at most. Range: >= 1.
  bool pin_memory = false;      ///< Puts batches into pinned memory, from which a GPU copies faster. Without CUDA: nothing.
};

namespace detail {
/// An IterableDataset and the samples of the batch that is being read, whatever their type.
class MARLIN_ABI SampleStream {
 public:
  virtual ~SampleStream();
  virtual void begin_epoch(uint64_t seed, int64_t epoch) = 0;
  /// Reads and keeps one more sample. @return false at the end.
  [[nodiscard]] virtual bool read() = 0;
  /// Makes a batch of samples [own.begin, own.end) of those that are kept.
  [[nodiscard]] virtual Batch collate(Range own) = 0;
  /// Keeps none of them any longer.
  virtual void clear() = 0;
  [[nodiscard]] virtual std::optional<int64_t> num_samples() const = 0;
  [[nodiscard]] virtual StateDict get_state() const = 0;
  virtual void update_state(const StateDict& state) = 0;
};

template <class T>
class TypedStream final : public SampleStream {
 public:
  using Collate = std::function<Batch(std::vector<T>&&)>;
  static constexpr bool kKnownType = requires(std::vector<T> samples) { to_batch(std::move(samples)); };

  TypedStream(std::unique_ptr<IterableDataset<T>> dataset, Collate collate) : dataset_(std::move(dataset)), collate_(std::move(collate)) {
    if (!dataset_) throw Error(Errc::kInvalidArgument, "an iterable loader needs a data set, this one is null");
    if (!kKnownType && !collate_) throw Error(Errc::kInvalidArgument, "samples of this type of data set need a collate function");
  }
  void begin_epoch(uint64_t seed, int64_t epoch) override { dataset_->begin_epoch(seed, epoch); }
  [[nodiscard]] bool read() override {
    std::optional<T> sample = dataset_->next();
    if (sample) samples_.push_back(std::move(*sample));
    return sample.has_value();
  }
  [[nodiscard]] Batch collate(Range own) override {
    std::vector<T> samples(std::make_move_iterator(samples_.begin() + own.begin), std::make_move_iterator(samples_.begin() + own.end));
    if (collate_) return collate_(std::move(samples));
    if constexpr (kKnownType) return to_batch(std::move(samples));
    return {};  // the constructor has refused this
  }
  void clear() override { samples_.clear(); }
  [[nodiscard]] std::optional<int64_t> num_samples() const override { return dataset_->num_samples(); }
  [[nodiscard]] StateDict get_state() const override { return dataset_->get_state(); }
  void update_state(const StateDict& state) override { dataset_->update_state(state); }

 private:
  std::unique_ptr<IterableDataset<T>> dataset_;
  Collate collate_;
  std::vector<T> samples_;
};
}  // namespace detail

/// What IterableLoader is, but for the type of the samples.
class MARLIN_ABI IterableLoaderBase : public DataLoader {
 public:
  ~IterableLoaderBase() override;
  [[nodiscard]] std::optional<int64_t> num_samples() const override;
  [[nodiscard]] int64_t batch_size() const override;
  [[nodiscard]] bool drop_last() const override;
  /// Waits for a sample that is being read.
  void begin_epoch(int64_t epoch) override;
  [[nodiscard]] bool next(Batch& into) override;
  [[nodiscard]] bool interrupted() const override;
  [[nodiscard]] int64_t consumed_samples() const override;
  /// "epoch", "consumed_samples", "num_samples" if it is known, "seed" of this epoch, "dataset": the data set's own, as it was after the
  /// last batch that next() has delivered.
  [[nodiscard]] StateDict get_state() const override;
  /// The rest of that epoch has the seed of the state. Waits for a sample that is being read.
  /// @throws Error kMismatch: the differences(), an entry missing, or a state that the data set does not take; the loader stays as it was.
  void update_state(const StateDict& state) override;

 protected:
  IterableLoaderBase(std::unique_ptr<detail::SampleStream> stream, const LoaderRequest& request, const IterableLoaderOptions& options);

 private:
  void go_to(uint64_t seed, int64_t epoch, int64_t consumed, const StateDict* dataset);
  [[nodiscard]] detail::ReadBatch read();

  LoaderRequest request_;
  bool drop_last_;
  std::optional<int64_t> num_samples_;
  uint64_t seed_ = 0;
  int64_t epoch_ = 0, consumed_ = 0;
  StateDict position_;  // the data set's, after the last delivered batch
  bool ended_ = false, interrupted_ = false;

  // Of whoever reads: changed only when nobody does.
  std::unique_ptr<detail::SampleStream> stream_;
  int64_t num_read_ = 0;
  bool stream_ended_ = false;
  detail::BatchReader reader_;  // the last member: its thread ends before anything else does
};

/// Batches of samples that come one after the other. A position is the data set's own, kept with each batch: nothing is read again
/// after a resume, unless the data set does. With several ranks each reads all samples and keeps its slice of each global batch.
/// What the data set or the collate function throws comes out of next() as Error kTraining that names sample, epoch and cause.
/// @par Source torch.utils.data.IterableDataset, torchdata's StatefulDataLoader.
template <class T>
class IterableLoader final : public IterableLoaderBase {
 public:
  /// Makes a Batch of samples: `tensors`, each [number of samples, ...], and `extra`. The counts are set for it.
  using Collate = std::function<Batch(std::vector<T>&&)>;

  /// @throws Error kInvalidArgument: a null data set, batch_size < 1, a rank out of range, options out of range, no collate function where
  /// to_batch() does not know the type.
  IterableLoader(std::unique_ptr<IterableDataset<T>> dataset, const LoaderRequest& request, const IterableLoaderOptions& options = {}, Collate collate = {})
      : IterableLoaderBase(std::make_unique<detail::TypedStream<T>>(std::move(dataset), std::move(collate)), request, options) {}
};

}  // namespace marlin
