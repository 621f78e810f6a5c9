#include "trainer/save_service.h"

#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <utility>

namespace marlin {
namespace {

// From here on this thread, and those that it starts, get a processor only if nobody else wants it: hashing and writing by two
// threads would halve the speed of a training thread that shares two processors with them. There is no way back without privileges.
void stand_back() {
  constexpr int kLowestPriority = 19;
  static_cast<void>(::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kLowestPriority));  // Linux: of the thread
}

}  // namespace

SaveService::SaveService(Logger& logger) : logger_(logger) {}

SaveService::~SaveService() {
  if (!copier_.joinable()) return;
  drain();
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  copier_.join();
  if (writer_.joinable()) writer_.join();
}

void SaveService::submit(const Checkpoint& live, const Snapshot::Storages& may_wait, SavePoint point, std::vector<Target> targets) {
  const auto begin = std::chrono::steady_clock::now();
  drain();  // the buffers are those of the save in flight
  const double waited = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (waited >= 1.0) logger_.info("training waited ", std::llround(waited), " s for the save before this one; save less often, or give --checkpointer.when_busy skip");
  state_ = snapshot_.begin(live, may_wait);
  point_ = std::move(point);
  targets_ = std::move(targets);
  if (!copier_.joinable()) copier_ = std::thread([this] { copy_when_asked(); });
  if (!writer_.joinable()) writer_ = std::thread([this] { write_when_copied(); });
  {
    const std::lock_guard lock(mutex_);
    phase_.store(Phase::kCopying, std::memory_order_release);
    has_job_ = true;
  }
  changed_.notify_all();
}

void SaveService::wait_for_copy() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return phase_.load(std::memory_order_acquire) == Phase::kCopied; });
  snapshot_.block_device_streams();
  const int64_t moved = snapshot_.repair();
  if (moved > 0 && !std::exchange(warned_, true)) {
    logger_.warning(moved, " tensors were changed outside an optimizer's step while they were being saved; they were copied again, and are copied at once from now on");
  }
  phase_.store(Phase::kIdle, std::memory_order_release);
  lock.unlock();
  changed_.notify_all();
}

void SaveService::drain() {
  fence();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !has_job_; });
}

bool SaveService::busy() {
  const std::lock_guard lock(mutex_);
  return has_job_;
}

std::vector<SaveService::Outcome> SaveService::take_outcomes() {
  const std::lock_guard lock(mutex_);
  has_outcomes_.store(false, std::memory_order_release);
  return std::exchange(outcomes_, {});
}

// An optimizer's step may wait for this one, so it runs as fast as training does.
void SaveService::copy_when_asked() {
  std::unique_lock lock(mutex_);
  while (true) {
    const auto is_copying = [&] { return phase_.load(std::memory_order_acquire) == Phase::kCopying; };
    changed_.wait(lock, [&] { return is_copying() || ending_; });
    if (!is_copying()) return;
    lock.unlock();
    snapshot_.copy_rest();
    lock.lock();
    phase_.store(Phase::kCopied, std::memory_order_release);
    changed_.notify_all();
  }
}

void SaveService::write_when_copied() {
  stand_back();
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return (has_job_ && phase_.load(std::memory_order_acquire) == Phase::kIdle) || ending_; });
    if (!has_job_) return;
    lock.unlock();
    write(state_, point_, targets_);  // nobody else touches these until has_job_ is false
    state_ = {};                      // gives the buffers back
    lock.lock();
    has_job_ = false;
    changed_.notify_all();
  }
}

void SaveService::write(const Checkpoint& state, const SavePoint& point, const std::vector<Target>& targets) {
  for (const Target& target : targets) {
    Outcome outcome{target.place, point, {}, {}};
    const auto begin = std::chrono::steady_clock::now();
    try {
      snapshot_.wait_for_device();
      outcome.written = target.checkpointer->save(state, point);
    } catch (const Error& error) {
      outcome.error = error;
    } catch (const std::exception& error) {  // what a device reports; checkpointers throw Errors only
      outcome.error = Error(Errc::kIo, error.what());
    }
    outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const std::lock_guard lock(mutex_);
    outcomes_.push_back(std::move(outcome));
    has_outcomes_.store(true, std::memory_order_release);
  }
}

}  // namespace marlin
