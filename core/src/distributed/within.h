// Calls that may never return.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "distributed/process_settings.h"
#include "marlin/sdk/text.h"

namespace marlin::distributed {

using Clock = std::chrono::steady_clock;

/// A limit as messages name it: "60 s", "2.5 s".
inline std::string in_words(std::chrono::milliseconds time) { return concat(static_cast<double>(time.count()) / 1000.0, " s"); }

inline constexpr auto kGiveUpLook = std::chrono::milliseconds(20);  ///< Between two calls of within()'s `give_up`.

/// What `work` returns or throws. Nothing: it has not ended at `until`, or `give_up` has become true; then it goes on in the thread that it was given, as
/// no call of c10d can be called off. So it must own all that it touches.
template <class T>
std::optional<T> within(Clock::time_point until, std::function<T()> work, const std::function<bool()>& give_up = {}) {
  struct Outcome {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    std::optional<T> value;
    std::exception_ptr error;
  };
  const auto outcome = std::make_shared<Outcome>();
  std::thread([outcome, work = std::move(work), settings = ProcessSettings()]() mutable {
    block_signals();
    std::optional<T> value;
    std::exception_ptr error;
    try {
      value = work();
    } catch (...) {
      error = std::current_exception();
    }
    work = nullptr;  // what it owns goes before the caller goes on
    const std::lock_guard lock(outcome->mutex);
    outcome->value = std::move(value);
    outcome->error = std::exchange(error, nullptr);
    outcome->done = true;
    outcome->changed.notify_all();
  }).detach();
  std::unique_lock lock(outcome->mutex);
  while (!outcome->done) {
    if (Clock::now() >= until || (give_up && give_up())) return std::nullopt;
    outcome->changed.wait_until(lock, give_up ? std::min(until, Clock::now() + kGiveUpLook) : until);
  }
  if (outcome->error) std::rethrow_exception(std::exchange(outcome->error, nullptr));
  return std::move(outcome->value);
}

}  // namespace marlin::distributed
