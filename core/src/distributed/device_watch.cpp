#include "distributed/device_watch.h"

#include <algorithm>
#include <utility>

#include "distributed/process_settings.h"

namespace marlin::distributed {

using namespace std::chrono_literals;

DeviceWatch::DeviceWatch(std::chrono::milliseconds limit, std::function<void()> overdue) : limit_(limit), overdue_(std::move(overdue)), thread_([this] { watch(); }) {}

DeviceWatch::~DeviceWatch() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void DeviceWatch::enter() {
  const std::lock_guard lock(mutex_);
  calls_.push_back({nullptr, Clock::now()});
}

void DeviceWatch::leave(c10::intrusive_ptr<c10d::Work> work) {
  const std::lock_guard lock(mutex_);
  if (work) calls_.back().work = std::move(work);
  else calls_.pop_back();
}

// They end in the order in which they were made.
void DeviceWatch::drop_ended() {
  try {
    while (!calls_.empty() && calls_.front().work && calls_.front().work->isCompleted()) calls_.pop_front();
  } catch (const std::exception&) {  // the device itself has failed: the thread that waits for it is told
    calls_.clear();
  }
}

void DeviceWatch::watch() {
  block_signals();
  const auto pause = std::clamp<std::chrono::milliseconds>(limit_ / 20, 20ms, 1s);
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, pause, [this] { return ending_; })) {
    drop_ended();
    if (calls_.empty() || Clock::now() - calls_.front().begin < limit_) continue;
    lock.unlock();
    overdue_();
    return;
  }
}

}  // namespace marlin::distributed
