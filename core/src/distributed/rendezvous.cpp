#include "distributed/rendezvous.h"

#include <c10/util/Exception.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "distributed/address.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::distributed {
namespace {

using namespace std::chrono_literals;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

constexpr auto kLinger = 1000ms;    // of rank 0, once it has called the run off
constexpr auto kLook = 20ms;        // between two looks for a store
constexpr char kCalledOff = '!';    // begins the value of a rank that came too late

std::string here(int rank) { return concat("here/", rank); }
std::string sees(int rank) { return concat("sees/", rank); }
std::string size(int rank) { return concat("size/", rank); }
std::string left(int rank) { return concat("left/", rank); }

void check(const launch::Ranks& ranks, std::chrono::milliseconds limit) {
  const auto refuse = [](const auto&... parts) { throw Error(Errc::kInvalidArgument, concat(parts...)); };
  if (ranks.rank < 0 || ranks.rank >= ranks.world_size) refuse("rank ", ranks.rank, " of ", ranks.world_size, ": ranks go from 0 to one below their number");
  if (ranks.master_addr.empty()) refuse("MASTER_ADDR is empty: set it to the address of rank 0's machine");
  if (ranks.master_port < 1 || ranks.master_port > 65535) refuse("MASTER_PORT=", ranks.master_port, ": set it to a free port of rank 0's machine, from 1 to 65535, the same for every rank");
  if (limit <= 0ms) refuse("a time limit of ", in_words(limit), " for ranks that wait for each other: it must be longer");
}

std::string this_process() {
  char host[HOST_NAME_MAX + 1] = "";
  gethostname(host, sizeof host - 1);
  return concat(host, ":", getpid());
}

// "rank 2 of 4 has", "ranks 1, 3 of 4 have".
std::string subject(const std::vector<int>& ranks, int of) {
  std::vector<std::string> numbers;
  for (const int rank : ranks) numbers.push_back(std::to_string(rank));
  return concat(ranks.size() == 1 ? "rank " : "ranks ", join(numbers), " of ", of, ranks.size() == 1 ? " has" : " have");
}

class Meeting {
 public:
  Meeting(const launch::Ranks& ranks, std::chrono::milliseconds limit) : ranks_(ranks), limit_(limit), until_(Clock::now() + limit), serves_(ranks.rank == 0 && !ranks.agent_store) {}

  Rendezvous hold() {
    const std::vector<Address> addresses = find_host();
    // What only this machine reaches need not be open to others: the store asks nobody who he is.
    const bool closed = ranks_.local_world_size == ranks_.world_size && is_loopback(addresses.front().text());
    const int listener = serves_ ? listen_on(ranks_.master_port, closed ? &addresses.front() : nullptr) : -1;
    // The agent's store outlives a run, and an attempt of torchrun's.
    static std::atomic<int> runs = 0;
    const std::string prefix = ranks_.agent_store ? concat("/worker/attempt_", ranks_.restart_count, "/marlin/", runs++) : "/marlin";
    const auto [route, store] = find_store(closed ? std::vector<Address>{addresses.front()} : addresses, listener, prefix);
    Rendezvous result{store, serves_, {}, route.here};
    call_roll(route, result);
    return result;
  }

 private:
  [[nodiscard]] std::string where() const { return concat(ranks_.master_addr, ":", ranks_.master_port); }
  [[nodiscard]] std::chrono::milliseconds time_left() const { return std::max(1ms, std::chrono::ceil<std::chrono::milliseconds>(until_ - Clock::now())); }

  [[nodiscard]] std::vector<Address> find_host() const {
    const auto found = within<std::vector<Address>>(until_, [host = ranks_.master_addr, port = ranks_.master_port, until = until_] { return resolve(host, port, until); });
    if (!found) throw Error(Errc::kIo, concat("cannot find rank 0: MASTER_ADDR='", one_line(ranks_.master_addr), "': the name service did not answer within ", in_words(limit_), "; set MASTER_ADDR to an address"));
    return *found;
  }

  [[nodiscard]] Route find_route(const std::vector<Address>& addresses, int listener) const try {
    return reach(addresses, until_);
  } catch (const std::system_error& error) {
    if (listener >= 0) {
      close(listener);
      throw Error(Errc::kInvalidArgument, concat("rank 0 listens on port ", ranks_.master_port, ", but is not reached at MASTER_ADDR=", ranks_.master_addr, ": ", error.code().message(),
                                                 "; set MASTER_ADDR to the address of rank 0's machine"));
    }
    const std::string who = ranks_.agent_store ? "torchrun's agent does not answer" : concat(subject({0}, ranks_.world_size), " not joined");
    throw Error(Errc::kIo, concat(who, " within ", in_words(limit_), ": nothing listens on ", where(), ": ", error.code().message(),
                                  "; see why it does not run, or whether MASTER_ADDR and MASTER_PORT are those of rank 0's machine"));
  }

  [[nodiscard]] StorePtr open_store(const Route& route, int listener) const {
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(ranks_.master_port);
    options.isServer = serves_;
    options.waitWorkers = false;  // it could not say who is missing
    options.timeout = limit_;
    if (serves_) options.masterListenFd = listener;
    const char* reason = "it does not answer";
    try {
      // The constructor waits for an answer of whatever listens there, for ever.
      const auto store = within<StorePtr>(until_, [host = route.there, options]() -> StorePtr {
        ask_no_name_service();
        return c10::make_intrusive<c10d::TCPStore>(host, options);
      });
      if (store) return *store;
    } catch (const std::exception&) {
      reason = "it closed the connection";
    }
    if (!is_reached(route.there)) throw_gone();
    throw Error(Errc::kInvalidArgument, concat("what listens on ", where(), " is not rank 0 of this run: ", reason, "; set MASTER_PORT to a free port of that machine, the same for every rank"));
  }

  // Rank 0 may still be ending the run before this one, at the same port. To take part in that would be to wait for nobody.
  [[nodiscard]] std::pair<Route, StorePtr> find_store(const std::vector<Address>& addresses, int listener, const std::string& prefix) const {
    std::optional<Clock::time_point> patience;  // from when a store was gone
    while (true) {
      const Route route = find_route(addresses, listener);
      try {
        const StorePtr store = c10::make_intrusive<c10d::PrefixStore>(prefix, open_store(route, listener));
        if (serves_ || ranks_.agent_store || !is_over(store)) return {route, store};
      } catch (const Error& error) {
        if (!patience) patience = std::min(until_, Clock::now() + kLinger);
        if (error.code() != Errc::kIo || serves_ || Clock::now() >= *patience) throw;
      }
      if (Clock::now() >= until_) throw Error(Errc::kIo, concat("what listens on ", where(), " serves a run that is over; end that process, or give this run another MASTER_PORT"));
      std::this_thread::sleep_for(kLook);
    }
  }

  [[nodiscard]] bool is_over(const StorePtr& store) const try {
    const auto over = within<bool>(until_, [store, bye = concat("bye/", ranks_.rank)] { return store->check({bye}) || store->check({"verdict"}); });
    return over.value_or(true);
  } catch (const std::exception&) {  // it has just ended
    return true;
  }

  [[nodiscard]] bool is_reached(const std::string& address) const try {
    static_cast<void>(reach(resolve(address, ranks_.master_port, Clock::now()), Clock::now() + kLinger / 4));
    return true;
  } catch (const std::system_error&) {
    return false;
  }

  [[noreturn]] void throw_gone() const {
    throw Error(Errc::kIo, concat(server(), " has gone while ranks were joining: it closed the connection at ", where(), "; see what it wrote last"));
  }

  void call_roll(const Route& route, Rendezvous& result) const try {
    // A second more, in which those who have waited in vain tell each other.
    const auto names = within<Rendezvous>(until_ + kLinger, [self = *this, route, result]() mutable {
      self.join_in(*result.store, route);
      self.wait_for_all(*result.store);
      self.learn(*result.store, result);
      return result;
    });
    if (!names) throw Error(Errc::kIo, concat(server(), " has stopped answering at ", where(), " while ranks were joining; see what it does"));
    result = *names;
  } catch (const c10::Error&) {  // of the store
    throw_gone();
  }

  [[nodiscard]] std::string server() const { return ranks_.agent_store ? "torchrun's agent" : "rank 0"; }

  void join_in(c10d::Store& store, const Route& route) const {
    store.set(size(ranks_.rank), std::to_string(ranks_.world_size));
    store.set(sees(ranks_.rank), route.there);
    const std::string mine = this_process(), is = store.compareSet(here(ranks_.rank), "", mine);
    if (is == mine) return;
    if (is.starts_with(kCalledOff)) give_up(store, is.substr(1));
    throw Error(Errc::kInvalidArgument, concat("two processes are rank ", ranks_.rank, " of the run at ", where(), ": ", one_line(is), " and this one (", mine,
                                               "); give each process of a run a RANK of its own, and each run on a machine a MASTER_PORT of its own"));
  }

  void wait_for_all(c10d::Store& store) const {
    std::vector<std::string> all;
    for (int rank = 0; rank < ranks_.world_size; ++rank) all.push_back(here(rank));
    try {
      store.wait(all, time_left());
      return;
    } catch (const c10::DistStoreError&) {  // the time is over
    }
    std::vector<int> missing;
    for (int rank = 0; rank < ranks_.world_size; ++rank) {
      if (!store.check({here(rank)})) missing.push_back(rank);
    }
    if (missing.empty()) return;  // at the last moment
    const std::string seen = concat(subject(missing, ranks_.world_size), " not joined within ", in_words(limit_), "; see why ", missing.size() == 1 ? "it does" : "they do",
                                    " not run, and whether all have the same MASTER_ADDR and MASTER_PORT (", where(), ")");
    const std::string text = store.compareSet("called_off", "", seen);  // that of the first who looked: by now others may have marked who is missing
    for (const int rank : missing) store.compareSet(here(rank), "", kCalledOff + text);  // ends the others' wait with the same text
    give_up(store, text);
  }

  void learn(c10d::Store& store, Rendezvous& result) const {
    for (int rank = 0; rank < ranks_.world_size; ++rank) {
      const std::string process = store.get_to_str(here(rank));
      if (process.starts_with(kCalledOff)) give_up(store, process.substr(1));
      result.names.push_back(concat("rank ", rank, " (", one_line(process), ")"));
      const std::string count = store.get_to_str(size(rank));
      if (count == std::to_string(ranks_.world_size)) continue;
      give_up(store, concat("rank ", ranks_.rank, " has WORLD_SIZE=", ranks_.world_size, ", but ", result.names.back(), " has ", one_line(count),
                            "; give all ranks of a run the same WORLD_SIZE, and each run on a machine a MASTER_PORT of its own"), Errc::kInvalidArgument);
    }
    // On rank 0's machine its name may be one for 127.0.0.1. Then it has the address that the others know it by.
    for (int rank = 0; rank < ranks_.world_size && is_loopback(result.address); ++rank) {
      if (const std::string address = store.get_to_str(sees(rank)); !is_loopback(address)) result.address = address;
    }
  }

  // Rank 0 takes the store with it when it goes: the others read the reason first.
  [[noreturn]] void give_up(c10d::Store& store, const std::string& text, Errc code = Errc::kIo) const {
    store.set(left(ranks_.rank), "");
    std::vector<std::string> others;
    for (int rank = 0; serves_ && rank < ranks_.world_size; ++rank) {
      if (store.check({here(rank)}) && !store.get_to_str(here(rank)).starts_with(kCalledOff)) others.push_back(left(rank));
    }
    try {
      if (serves_) store.wait(others, kLinger / 2);
    } catch (const c10::DistStoreError&) {  // they have gone without a word
    }
    throw Error(code, text);
  }

  launch::Ranks ranks_;
  std::chrono::milliseconds limit_;
  Clock::time_point until_;
  bool serves_;
};

}  // namespace

Rendezvous meet(const launch::Ranks& ranks, std::chrono::milliseconds limit) {
  check(ranks, limit);
  return Meeting(ranks, limit).hold();
}

}  // namespace marlin::distributed
