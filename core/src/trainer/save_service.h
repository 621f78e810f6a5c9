// Saving while training goes on.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/logger.h"
#include "trainer/snapshot.h"

namespace marlin {

/// Takes states from the training thread, copies them on a thread of its own and has checkpointers write them on another, which the
/// system runs only where nobody else wants to. One save is in flight at a time; the next one waits for it. All calls come from the
/// training thread.
class SaveService {
 public:
  /// What a checkpointer's save came to.
  struct Outcome {
    size_t checkpointer = 0;            // its place in submit()'s list
    SavePoint point;
    std::vector<std::string> written;
    std::optional<Error> error;         // unset: it succeeded
    double seconds = 0.0;               // that it took
  };
  struct Target {
    size_t place = 0;                   // reported back in Outcome
    AbstractCheckpointer* checkpointer = nullptr;
  };

  explicit SaveService(Logger& logger);
  ~SaveService();  // waits for what is in flight
  SaveService(const SaveService&) = delete;
  SaveService& operator=(const SaveService&) = delete;

  /// Starts a save of `live`. Tensors over `may_wait` are read until the next fence() returns; the rest is copied before this returns.
  /// @throws std::exception: there is no memory for the copies. Nothing has been started then.
  void submit(const Checkpoint& live, const Snapshot::Storages& may_wait, SavePoint point, std::vector<Target> targets);
  /// Before an optimizer's step: returns when nothing that the step changes is read any more. Nothing to wait for: one atomic load.
  void fence() {
    if (phase_.load(std::memory_order_acquire) != Phase::kIdle) wait_for_copy();
  }
  /// Waits until the save in flight is on disk.
  void drain();
  /// Whether a save is in flight.
  [[nodiscard]] bool busy();
  [[nodiscard]] bool has_outcomes() const { return has_outcomes_.load(std::memory_order_acquire); }
  /// What has ended since the last call.
  [[nodiscard]] std::vector<Outcome> take_outcomes();

 private:
  enum class Phase : uint8_t { kIdle, kCopying, kCopied };  // of the copy; it is written once a fence has looked at it

  void copy_when_asked();
  void write_when_copied();
  void wait_for_copy();
  void write(const Checkpoint& state, const SavePoint& point, const std::vector<Target>& targets);

  Logger& logger_;
  Snapshot snapshot_;
  std::atomic<Phase> phase_ = Phase::kIdle;
  std::atomic<bool> has_outcomes_ = false;
  bool warned_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool has_job_ = false, ending_ = false;   // a job: from submit() until its outcomes are there
  Checkpoint state_;
  SavePoint point_;
  std::vector<Target> targets_;
  std::vector<Outcome> outcomes_;
  std::thread copier_, writer_;             // started with the first job
};

}  // namespace marlin
