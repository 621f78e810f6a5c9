// Where batches come from.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "marlin/core/data/batch.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

enum class Stage : uint8_t { kTrain, kVal };

/// What the Trainer asks a module's loader functions for.
struct LoaderRequest {
  Stage stage = Stage::kTrain;
  int64_t batch_size = 1;  ///< Samples of one global batch, over all ranks. Range: >= 1.
  int rank = 0;
  int world_size = 1;
  uint64_t seed = 0;       ///< Orders are a function of (seed, epoch) and nothing else.
  /// Whether the run is to stop: asked by a loader that waits, so that no stop waits for data. From any thread. Empty: never.
  std::function<bool()> stop_requested = {};
};

/// Delivers the global batches of an epoch in order; of each, this rank's contiguous slice.
///
/// Global batch k holds the same samples for any number of ranks. Nothing is padded or repeated: the last batch may be short
/// (a rank may then have no sample of it), unless drop_last() drops it. One thread at a time.
class MARLIN_ABI DataLoader {
 public:
  virtual ~DataLoader();

  /// Samples of one epoch over all ranks; unset: not known in advance.
  [[nodiscard]] virtual std::optional<int64_t> num_samples() const = 0;
  /// Samples of one global batch.
  [[nodiscard]] virtual int64_t batch_size() const = 0;
  /// Whether a short last batch is left out. Default: no.
  [[nodiscard]] virtual bool drop_last() const;
  /// Global batches of one epoch, exact; unset: not known in advance.
  [[nodiscard]] std::optional<int64_t> num_batches() const;

  /// Starts an epoch at its first batch. Its order is a function of (seed, epoch).
  virtual void begin_epoch(int64_t epoch) = 0;
  /// The next global batch's slice of this rank. @return false at the end of the epoch, or if it was interrupted(); `into` is then
  /// as it was.
  [[nodiscard]] virtual bool next(Batch& into) = 0;
  /// Whether the last next() returned false because the run is to stop (LoaderRequest::stop_requested) and not because the epoch has
  /// ended: the batch that it waited for comes with the next call. Default: false.
  [[nodiscard]] virtual bool interrupted() const;
  /// Samples over all ranks that next() has delivered since the epoch began.
  [[nodiscard]] virtual int64_t consumed_samples() const = 0;

  /// Whether nothing is left of the epoch; unset: not known in advance.
  [[nodiscard]] std::optional<bool> at_end() const;

  /// Position: "epoch", "consumed_samples", "num_samples", and what else decides which samples follow.
  [[nodiscard]] virtual StateDict get_state() const = 0;
  /// How the data set of such a state differs from this one, one sentence each. Looked at on every resume, between epochs, too; what
  /// it does not find there is not compared. Default: another "num_samples".
  [[nodiscard]] virtual std::vector<std::string> differences(const StateDict& state) const;
  /// Goes to a position; no sample before it is read. What follows is what would have followed there.
  /// @throws Error kMismatch with the differences(), or if there is no such position. The loader is then as it was.
  virtual void update_state(const StateDict& state) = 0;
};

/// Loaders by name, in order; a single one needs none and is called "default".
class NamedLoaders {
 public:
  using Entry = std::pair<std::string, std::unique_ptr<DataLoader>>;

  NamedLoaders() = default;
  template <class Loader> NamedLoaders(std::unique_ptr<Loader> loader) { add("default", std::move(loader)); }
  NamedLoaders& add(std::string name, std::unique_ptr<DataLoader> loader) {
    if (loader) entries_.emplace_back(std::move(name), std::move(loader));
    return *this;
  }
  [[nodiscard]] size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }
  [[nodiscard]] auto begin() const noexcept { return entries_.begin(); }
  [[nodiscard]] auto end() const noexcept { return entries_.end(); }

 private:
  std::vector<Entry> entries_;
};

}  // namespace marlin
