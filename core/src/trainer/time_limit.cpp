#include "trainer/time_limit.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace marlin {
namespace {

double seconds(std::chrono::steady_clock::duration time) { return std::chrono::duration<double>(time).count(); }

// What is kept for a machine that is slower than it just was.
constexpr double kSpareShare = 0.05, kMostSpare = 1.0;  // of max_seconds; seconds

}  // namespace

TimeLimit::TimeLimit(std::optional<double> max_seconds, Time began, Clock clock, size_t num_checkpointers)
    : max_seconds_(max_seconds), began_(began), clock_(std::move(clock)), costs_(num_checkpointers, 0.0), last_look_(began), stop_at_(std::numeric_limits<int64_t>::max()) {}

void TimeLimit::expect_saves(double seconds) {
  std::fill(costs_.begin(), costs_.end(), seconds / static_cast<double>(costs_.size()));
  resume();
}

// The newest counts, unless one not long ago took much longer.
void TimeLimit::note_save(size_t place, double seconds) {
  double& cost = costs_[place];
  cost = std::max(seconds, 0.7 * cost);
}

double TimeLimit::save_seconds() const { return std::accumulate(costs_.begin(), costs_.end(), 0.0); }

double TimeLimit::seconds_left() const { return *max_seconds_ - seconds(clock_() - began_); }

void TimeLimit::resume() {
  if (!enabled()) return;
  last_look_ = clock_();
  reckon(false);
}

void TimeLimit::note(Work work, bool save_in_flight) {
  const Time now = clock_();
  double& longest = longest_[static_cast<size_t>(work)];
  longest = std::max(seconds(now - last_look_), 0.98 * longest);
  last_look_ = now;
  reckon(save_in_flight);
}

// What comes next may take twice what the longest took; a save in flight has to end before the last one begins.
void TimeLimit::reckon(bool save_in_flight) {
  const double spare = std::min(kSpareShare * *max_seconds_, kMostSpare);
  const double needed = 2.0 * *std::max_element(longest_.begin(), longest_.end()) + save_seconds() * (save_in_flight ? 2.0 : 1.0) + spare;
  constexpr double kForever = 1e9;  // seconds; more does not fit into nanoseconds
  if (*max_seconds_ - needed > kForever) return stop_at_.store(std::numeric_limits<int64_t>::max(), std::memory_order_relaxed);
  const auto at = began_.time_since_epoch() + std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(*max_seconds_ - needed));
  stop_at_.store(std::chrono::duration_cast<std::chrono::nanoseconds>(at).count(), std::memory_order_relaxed);
}

bool TimeLimit::is_up() const {
  if (!enabled()) return false;
  if (up_.load(std::memory_order_relaxed)) return true;
  const bool up = std::chrono::duration_cast<std::chrono::nanoseconds>(clock_().time_since_epoch()).count() >= stop_at_.load(std::memory_order_relaxed);
  if (up) up_.store(true, std::memory_order_relaxed);
  return up;
}

}  // namespace marlin
