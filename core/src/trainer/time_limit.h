// When a run with `max_seconds` has to stop, so that what it learned is on disk in time.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace marlin {

/// Called from the training thread, is_up() from any.
class TimeLimit {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Clock = std::function<Time()>;

  /// @param max_seconds unset: never up. @param began what it counts from.
  TimeLimit(std::optional<double> max_seconds, Time began, Clock clock, size_t num_checkpointers);

  [[nodiscard]] bool enabled() const noexcept { return max_seconds_.has_value(); }
  enum class Work : uint8_t { kStep, kValBatch, kEpochEnd };

  /// What a save of all checkpointers costs until one has been measured. Unit: seconds.
  void expect_saves(double seconds);
  /// A save of that checkpointer has taken so long. Unit: seconds.
  void note_save(size_t place, double seconds);
  /// What one save point of all checkpointers is expected to take. Unit: seconds.
  [[nodiscard]] double save_seconds() const;
  [[nodiscard]] double seconds_left() const;

  /// Work goes on, after something that is no step: a save, say.
  void resume();
  /// Such work is done again. @param save_in_flight a save that must end before the last one can begin.
  void note(Work work, bool save_in_flight);
  /// Whether another step might be one too many; once it is, it stays so.
  [[nodiscard]] bool is_up() const;

 private:
  void reckon(bool save_in_flight);

  std::optional<double> max_seconds_;
  Time began_;
  Clock clock_;
  std::vector<double> costs_;            // by checkpointer; seconds
  std::array<double, 3> longest_ = {};   // by work; seconds; forgotten slowly
  Time last_look_;
  std::atomic<int64_t> stop_at_;         // nanoseconds of the clock
  mutable std::atomic<bool> up_ = false;
};

}  // namespace marlin
