// Reads batches ahead, in order: the engine of the loaders that can use threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "marlin/core/data/data_loader.h"
#include "marlin/core/data/epoch_order.h"
#include "marlin/core/data/sample_context.h"

namespace marlin::detail {

/// What to read: one global batch's slice.
struct BatchJob {
  std::vector<size_t> indices;  ///< Into the data set; what a loader of another kind leaves empty.
  EpochOrder::Slice slice;
  uint64_t seed = 0;
  int64_t epoch = 0;
};

struct ReadBatch {
  Batch batch;
  StateDict after;   ///< Where the data set stands after it, if it says so.
  bool end = false;  ///< There was no batch: the epoch has ended.
};

/// Delivers the batches of a list of jobs in order, whichever thread has read them. A reading thread uses no intra-op threads and
/// takes no signals. For one thread at a time, but that `read` is called from the threads.
class MARLIN_ABI BatchReader {
 public:
  struct Options {
    int64_t num_workers = 0;      ///< Threads; 0: next() reads. Range: >= 0.
    int64_t prefetch_factor = 2;  ///< Batches a thread that are in work, or read and not delivered, at most. Range: >= 1.
    bool pin_memory = false;
    std::function<bool()> stop_requested = {};
  };
  struct Calls {
    std::function<void()> start = {};                  ///< Once, before the first thread starts.
    std::function<std::optional<BatchJob>()> next_job;  ///< Called by next(). Unset: no more batches in this epoch.
    /// Called for one job at a time by each worker, 0 <= worker < max(1, num_workers).
    std::function<ReadBatch(BatchJob& job, size_t worker, SampleContext& context)> read;
  };
  enum class Outcome : uint8_t { kBatch, kEnd, kInterrupted };

  /// @throws Error kInvalidArgument for options out of range. No thread is started yet.
  BatchReader(Options options, Calls calls);
  /// Waits for the reads that run.
  ~BatchReader();
  BatchReader(const BatchReader&) = delete;
  BatchReader& operator=(const BatchReader&) = delete;

  /// The next batch. While it waits it asks stop_requested; a batch that is there is delivered without asking.
  /// @throws Error with the text and code of what `read` has thrown, at that batch's place in the order, and again on every
  /// further call until reset().
  [[nodiscard]] Outcome next(ReadBatch& into);
  /// Drops every batch that is read or in work; waits for nothing.
  void reset();
  /// reset(), and then no `read` runs.
  void reset_and_wait();

 private:
  class Engine;
  std::unique_ptr<Engine> engine_;
};

/// The exception that is being handled, in words.
[[nodiscard]] MARLIN_ABI std::string current_exception_text();
/// "data set: sample 17 of epoch 3: <what is being handled>". @throws Error kTraining
[[noreturn]] MARLIN_ABI void throw_sample_error(int64_t index, int64_t epoch);
/// The same for samples none of which fails alone; `doing` is put before the cause. @throws Error kTraining
[[noreturn]] MARLIN_ABI void throw_samples_error(const std::vector<size_t>& indices, int64_t epoch, const std::string& doing, const std::string& cause);

}  // namespace marlin::detail
