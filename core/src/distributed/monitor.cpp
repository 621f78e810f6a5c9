#include "distributed/monitor.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "distributed/process_settings.h"
#include "distributed/verdict.h"
#include "distributed/within.h"
#include "marlin/core/communicator.h"
#include "marlin/sdk/text.h"

namespace marlin::distributed {
namespace {

using namespace std::chrono_literals;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

constexpr auto kForever = std::chrono::milliseconds(std::chrono::hours(24 * 365));
constexpr auto kAnswer = 1000ms;    // for a monitor to say that it is there, on a busy machine, too
constexpr auto kHear = 700ms;       // for the others to hear the verdict before their store goes
constexpr auto kVerdict = 2000ms;   // for a verdict, if the store answers
static_assert(kAnswer + kHear + 200ms <= kVerdict, "rank 0 hears its own verdict after the others");
constexpr auto kTold = 1000ms;      // for all to be told that this rank has failed
constexpr auto kLook = 100ms;       // between two looks at a verdict while waiting at the store

// Keys of rank r. ask/r: its monitor is to answer; alive/r: its answer, the number of calls its main thread has begun; verdict/r: what it is to
// throw; heard/r: it knows; bye/r: it has ended. And "verdict", for all: the first one.
std::string key(const char* what, int rank) { return concat(what, "/", rank); }

// Whether all keys came in time.
bool wait_for(c10d::Store& store, const std::vector<std::string>& keys, std::chrono::milliseconds time) {
  if (keys.empty()) return true;
  try {
    store.wait(keys, time);
    return true;
  } catch (const c10::DistStoreError&) {
    return false;
  }
}

}  // namespace

struct Monitor::State {
  State(const Rendezvous& rendezvous, Options given)
      : options(std::move(given)), names(rendezvous.names), serves(rendezvous.serves), listening(rendezvous.store->clone()), talking(rendezvous.store->clone()) {}

  void listen();
  std::string hear_verdict();
  void inquire(c10d::Store& store, Saw saw);
  void announce(c10d::Store& store, const std::string& text);
  enum class By : bool { kStore, kThisRank };  // the other ranks hear of it, or the store does not answer
  void publish(const std::string& text, By by = By::kStore);
  void call_if_stuck();
  void wait_for_goodbyes();
  [[noreturn]] void throw_verdict();
  bool wait_for_verdict(std::chrono::milliseconds time);

  [[nodiscard]] int size() const { return static_cast<int>(names.size()); }
  [[nodiscard]] std::vector<std::string> keys_of_others(const char* what) const {
    std::vector<std::string> keys;
    for (int rank = 0; rank < size(); ++rank) {
      if (rank != options.rank) keys.push_back(key(what, rank));
    }
    return keys;
  }

  const ProcessSettings settings;
  const Options options;
  const std::vector<std::string> names;
  const bool serves;
  const StorePtr listening, talking;  // one is busy for as long as the run lasts
  std::atomic<int64_t> calls = 0;
  std::atomic<bool> has_verdict = false;

  std::mutex mutex;
  std::condition_variable changed;
  std::string verdict;          // written once, before has_verdict
  bool told = false;            // the main thread knows
  bool ending = false;          // the destructor has been called
  bool called = false, calling = false;  // on_stuck
  bool store_hangs = false;     // and the thread with it
};

void Monitor::State::listen() {
  block_signals();
  std::string text;
  try {
    listening->wait({key("ask", options.rank)}, kForever);
    listening->set(key("alive", options.rank), std::to_string(calls));
    text = hear_verdict();
    if (text.empty()) return;  // this rank has ended, or the store does
  } catch (const std::exception&) {
    text = verdict_of_gone(options.server);
  }
  publish(text);
  call_if_stuck();
}

std::string Monitor::State::hear_verdict() {
  const std::string mine = key("verdict", options.rank);
  while (!wait_for(*listening, {mine}, kVerdict)) inquire(*listening, Saw::kClosed);  // whoever asked has gone since
  const std::string text = listening->get_to_str(mine);
  listening->set(key("heard", options.rank), "");
  if (serves && !text.empty()) wait_for(*listening, keys_of_others("heard"), kHear);  // this process may end as soon as it knows
  return text;
}

// Who it is, as far as the monitors' answers tell.
void Monitor::State::inquire(c10d::Store& store, Saw saw) {
  for (const std::string& ask : keys_of_others("ask")) store.set(ask, "");
  wait_for(store, keys_of_others("alive"), kAnswer);
  Answers answers;
  std::vector<int64_t> begun(names.size(), calls);
  for (int rank = 0; rank < size(); ++rank) {
    if (rank == options.rank) continue;
    const bool is_alive = store.check({key("alive", rank)});
    if (is_alive) begun[static_cast<size_t>(rank)] = std::stoll(store.get_to_str(key("alive", rank)));
    else store.set(key("heard", rank), "");  // nobody waits for it
    if (store.check({key("bye", rank)})) answers.left.push_back(rank);
    else if (!is_alive) answers.silent.push_back(rank);
  }
  const auto [least, most] = std::minmax_element(begun.begin(), begun.end());
  for (int rank = 0; rank < size() && *least < *most; ++rank) {
    if (begun[static_cast<size_t>(rank)] == *least) answers.late.push_back(rank);
  }
  announce(store, verdict_on(answers, names, saw, options.limit));
}

void Monitor::State::announce(c10d::Store& store, const std::string& text) {
  const std::string first = store.compareSet("verdict", "", text);
  std::vector<int> order;
  for (int rank = 0; rank < size(); ++rank) {
    if (rank != options.rank) order.push_back(rank);
  }
  order.push_back(options.rank);  // last: this process may end as soon as it knows
  for (const int rank : order) {
    store.set(key("verdict", rank), first);
    store.set(key("ask", rank), "");
  }
}

void Monitor::State::publish(const std::string& text, By by) {
  const std::lock_guard lock(mutex);
  if (ending || has_verdict) return;
  verdict = text;
  store_hangs = by == By::kThisRank;
  has_verdict = true;
  changed.notify_all();
}

void Monitor::State::call_if_stuck() {
  std::unique_lock lock(mutex);
  const bool knows = changed.wait_for(lock, options.grace, [&] { return told || ending; });
  if (knows || !options.on_stuck || std::exchange(called, true)) return;
  calling = true;
  lock.unlock();
  options.on_stuck(verdict);
  lock.lock();
  calling = false;
  changed.notify_all();
}

bool Monitor::State::wait_for_verdict(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex);
  return changed.wait_for(lock, time, [&] { return has_verdict.load(); });
}

void Monitor::State::throw_verdict() {
  const std::lock_guard lock(mutex);
  told = true;
  changed.notify_all();
  throw PeerLost(verdict);
}

void Monitor::State::wait_for_goodbyes() {
  const auto until = Clock::now() + options.limit;
  const std::vector<std::string> goodbyes = keys_of_others("bye");
  while (!has_verdict && Clock::now() < until && !wait_for(*talking, goodbyes, kLook)) {}
}

Monitor::Monitor(const Rendezvous& rendezvous, Options options) : state_(std::make_shared<State>(rendezvous, std::move(options))) {
  std::promise<void> ended;
  ended_ = ended.get_future();
  std::thread([state = state_, ended = std::move(ended)]() mutable {
    state->listen();
    state.reset();  // before the destructor goes on
    ended.set_value();
  }).detach();
}

Monitor::~Monitor() {
  State& state = *state_;
  {
    const std::lock_guard lock(state.mutex);
    state.told = true;
    state.changed.notify_all();
  }
  if (!has_verdict()) {
    say_goodbye();
    try {
      if (state.serves) state.wait_for_goodbyes();
      if (!has_verdict()) {  // else the connection may be in use, and at a store that does not answer
        const std::lock_guard lock(state.mutex);
        state.ending = true;
      }
      // Ends the thread; and, where the store ends with this process, those of ranks that have no more calls to make, but take their time.
      for (int rank = 0; state.ending && rank < state.size(); ++rank) {
        if (rank != state.options.rank && !state.serves) continue;
        state.talking->set(key("verdict", rank), "");
        state.talking->set(key("ask", rank), "");
      }
      if (state.ending && state.serves) wait_for(*state.talking, state.keys_of_others("heard"), kHear);
    } catch (const std::exception&) {  // the store has gone first, and the thread with it
    }
  }
  std::unique_lock lock(state.mutex);
  state.ending = true;
  state.changed.notify_all();
  state.changed.wait(lock, [&] { return !state.calling; });
  if (state.store_hangs) return;
  lock.unlock();
  ended_.wait_for(kTold);
}

bool Monitor::has_verdict() const { return state_->has_verdict; }

std::function<bool()> Monitor::has_left(int rank) const {
  return [state = state_, rank] { return state->talking->check({key("bye", rank)}); };
}

void Monitor::check() {
  if (has_verdict()) state_->throw_verdict();
}

void Monitor::begin_call() {
  check();
  ++state_->calls;
}

void Monitor::find_out(Saw saw) {
  conclude(saw);
  state_->throw_verdict();
}

void Monitor::suspect() noexcept {
  try {
    conclude(Saw::kNothing);
    state_->call_if_stuck();
  } catch (const std::exception&) {  // no thread: it stays as it is
  }
}

void Monitor::conclude(Saw saw) {
  std::thread([state = state_, saw] {
    block_signals();
    try {
      state->inquire(*state->talking, saw);
    } catch (const std::exception&) {  // the store has gone; listen() says so
    }
  }).detach();
  if (!state_->wait_for_verdict(kVerdict)) {
    state_->publish(verdict_of_silent(state_->options.server, state_->options.limit), State::By::kThisRank);
  }
}

void Monitor::fail(const std::string& message) noexcept {
  try {
    {
      const std::lock_guard lock(state_->mutex);
      state_->told = true;  // this thread knows, and is about to end the run: nobody has to end it from outside
      state_->changed.notify_all();
    }
    if (has_verdict()) return;
    const std::string text = concat("rank ", state_->options.rank, " failed: ", one_line(message));
    std::thread([state = state_, text] {
      block_signals();
      try {
        state->announce(*state->talking, text);
      } catch (const std::exception&) {  // the store has gone; listen() says so
      }
    }).detach();
    if (!state_->wait_for_verdict(kTold)) state_->publish(text, State::By::kThisRank);
  } catch (const std::exception&) {  // no thread: the others find this rank gone
  }
}

void Monitor::say_goodbye() noexcept {
  try {
    if (has_verdict()) return;
    // Others must find it before they find this rank's connections closed, so it is waited for.
    static_cast<void>(within<bool>(Clock::now() + kTold, [state = state_, bye = key("bye", state_->options.rank)] { return state->talking->set(bye, ""), state->talking->check({bye}); }));
  } catch (const std::exception&) {
  }
}

}  // namespace marlin::distributed
