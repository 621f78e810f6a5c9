// Calls on a device, for which no thread of this process waits.
#pragma once

#include <torch/csrc/distributed/c10d/Work.hpp>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace marlin::distributed {

/// Notices when such a call takes too long. On a device a call returns at once, and the thread that made it waits for the device, somewhere else: nothing
/// of c10d would end that.
class DeviceWatch {
 public:
  /// @param overdue called once, on a thread of its own, when a call has not ended within `limit`.
  DeviceWatch(std::chrono::milliseconds limit, std::function<void()> overdue);
  ~DeviceWatch();
  DeviceWatch(const DeviceWatch&) = delete;
  DeviceWatch& operator=(const DeviceWatch&) = delete;

  /// Before a call is made: the first one connects the devices, and blocks.
  void enter();
  /// What that call has begun; null: it threw.
  void leave(c10::intrusive_ptr<c10d::Work> work);

 private:
  using Clock = std::chrono::steady_clock;
  struct Call {
    c10::intrusive_ptr<c10d::Work> work;  // null: not made yet
    Clock::time_point begin;
  };

  void watch();
  void drop_ended();

  const std::chrono::milliseconds limit_;
  const std::function<void()> overdue_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Call> calls_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace marlin::distributed
