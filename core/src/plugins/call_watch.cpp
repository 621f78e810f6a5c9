#include "call_watch.h"

#include <signal.h>

#include <algorithm>
#include <utility>

#include "marlin/sdk/text.h"

namespace marlin {

using namespace std::chrono_literals;

CallWatch::CallWatch(Logger& logger, double limit_seconds)
    : logger_(logger), limit_(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(std::clamp(limit_seconds, 1e-3, 1e8)))) {}

CallWatch::~CallWatch() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void CallWatch::add(std::weak_ptr<const Seam> seam) {
  const std::lock_guard lock(mutex_);
  watched_.push_back({std::move(seam), limit_});
  if (thread_.joinable()) return;
  sigset_t all, before;  // signals are for the threads of the program
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { watch(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// A call that begins should cost nothing, so nobody is told of it: a few looks in the time of the limit find those that last.
void CallWatch::watch() {
  const auto pause = std::clamp<std::chrono::nanoseconds>(limit_ / 5, 5ms, 1s);
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, pause, [this] { return ending_; })) look();
}

void CallWatch::look() {
  std::erase_if(watched_, [](const Watched& watched) { return watched.seam.expired(); });
  for (Watched& watched : watched_) {
    const std::shared_ptr<const Seam> seam = watched.seam.lock();
    if (!seam) continue;
    const std::optional<Seam::Running> running = seam->running();
    if (!running || running->elapsed < watched.limit) continue;
    const double seconds = std::chrono::duration<double>(watched.limit).count();
    logger_.warning(seam->title(), ": ", running->call, " has taken ", seconds, " s and goes on");
    watched.limit = std::min<std::chrono::nanoseconds>(watched.limit * 2, std::chrono::hours(24 * 365));
  }
}

}  // namespace marlin
