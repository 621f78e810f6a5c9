// What the ranks of a run tell each other when something goes wrong.
#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>

#include "distributed/rendezvous.h"
#include "distributed/verdict.h"

namespace marlin::distributed {

/// A thread of each rank that listens at the run's store, whatever the main thread does. Who loses a connection, or waits too long, asks the
/// threads of all ranks: those that do not answer are gone; else those whose main thread has made fewer calls are late. (Gloo itself names
/// nobody.) The first verdict stays, and all ranks are told; no rank waits for it longer than some 2 s. A store that is gone, or does not answer, is a
/// verdict, too: on who serves it.
class Monitor {
 public:
  struct Options {
    int rank = 0;
    std::string server;                        ///< Who serves the store, in messages: "rank 0 (node1:4711)".
    std::chrono::milliseconds limit;           ///< Of a call, for messages.
    std::chrono::milliseconds grace;           ///< From the verdict until on_stuck is called.
    std::function<void(const std::string&)> on_stuck;  ///< Called once, in the monitor's thread, unless the main thread has heard of the verdict by then.
  };
  /// Connects to the store again, twice. @throws c10::Error
  Monitor(const Rendezvous& rendezvous, Options options);
  /// A run that has ended well: rank 0, if it serves the store, waits until the others have ended, too, at most for the limit, and until those that have
  /// not know that they are not lost. Else: at once.
  ~Monitor();
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  /// Every call of the main thread begins with it. @throws PeerLost: there is a verdict.
  void begin_call();
  /// @throws PeerLost: there is a verdict.
  void check();
  [[nodiscard]] bool has_verdict() const;
  /// What tells whether that rank has made all its calls. May be called when the monitor is gone, and from a thread of its own, as it may hang. @throws
  /// c10::Error
  [[nodiscard]] std::function<bool()> has_left(int rank) const;
  /// For when the peers do not do their part. @throws PeerLost, within 2 s.
  [[noreturn]] void find_out(Saw saw);
  /// The same from another thread than the main one, which is stuck: ends with a verdict, and on_stuck.
  void suspect() noexcept;
  /// Tells all that this rank ends. Returns when they know, or after a second. From any thread.
  void fail(const std::string& message) noexcept;
  /// From here on others do not wait for this rank in vain: it is the one that has left.
  void say_goodbye() noexcept;

 private:
  struct State;
  void conclude(Saw saw);

  std::shared_ptr<State> state_;  // also of the threads, which may hang at a store that does not answer
  std::future<void> ended_;       // the thread that listens
};

}  // namespace marlin::distributed
