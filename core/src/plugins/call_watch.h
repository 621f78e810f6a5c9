// Says so while a call of a plugin takes long.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "marlin/sdk/logger.h"
#include "marlin/sdk/seam.h"

namespace marlin {

/// Looks at the calls of its parties from a thread of its own, and warns once a call has taken longer than the limit; of that party
/// again when one takes twice as long as was warned of last. Any thread.
class CallWatch {
 public:
  CallWatch(Logger& logger, double limit_seconds);
  ~CallWatch();
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;

  /// Watched until nobody else has it.
  void add(std::weak_ptr<const Seam> seam);

 private:
  struct Watched {
    std::weak_ptr<const Seam> seam;
    std::chrono::nanoseconds limit;
  };
  void watch();
  void look();

  Logger& logger_;
  const std::chrono::nanoseconds limit_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Watched> watched_;
  bool ending_ = false;
  std::thread thread_;  // started with the first party
};

}  // namespace marlin
