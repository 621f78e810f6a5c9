#include "distributed/rendezvous.h"

#include <gmock/gmock.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "distributed/process_settings.h"
#include "forked_ranks.h"

namespace marlin::distributed {
namespace {

using namespace std::chrono_literals;
using launch::Launcher;
using launch::Ranks;
using marlin::testing::ForkedRanks;
using marlin::testing::Gate;
using marlin::testing::HeldPort;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::StartsWith;

constexpr auto kLimit = 60000ms;

Ranks ranks_of(int rank, int size, int port) {
  Ranks ranks;
  ranks.rank = ranks.local_rank = rank;
  ranks.world_size = ranks.local_world_size = size;
  ranks.master_addr = "127.0.0.1";
  ranks.master_port = port;
  ranks.launcher = Launcher::kLocal;
  return ranks;
}

// Meets, and stays until all have met. What all of them have said.
std::string met(const Rendezvous& rendezvous, int rank) {
  rendezvous.store->set(concat("done/", rank), "");
  std::vector<std::string> keys;
  for (size_t other = 0; other < rendezvous.names.size(); ++other) keys.push_back(concat("done/", other));
  if (rendezvous.serves) rendezvous.store->wait(keys, kLimit);
  return join(rendezvous.names);
}

std::string meet_all(const Ranks& ranks, std::chrono::milliseconds limit = kLimit) {
  const ProcessSettings settings;
  return met(meet(ranks, limit), ranks.rank);
}

// Seconds from `begin` until a rank said something.
double seconds(const ForkedRanks::End& end, ForkedRanks::Clock::time_point begin) { return std::chrono::duration<double>(end.when - begin).count(); }

TEST(RendezvousTest, AllRanksLearnEachOthersProcesses) {
  for (int size = 1; size <= 4; ++size) {
    const HeldPort port;
    ForkedRanks ranks(size, [&](int rank) { return meet_all(ranks_of(rank, size, port.number())); });
    for (const auto& end : ranks.ends()) {
      EXPECT_EQ(end.code, 0) << end.said;
      EXPECT_THAT(end.said, AllOf(HasSubstr(concat("rank ", size - 1, " (")), MatchesRegex("rank 0 \\([^ ]+:[0-9]+\\).*")));
      EXPECT_EQ(end.said, ranks.end(0).said);
      EXPECT_EQ(end.printed, "");
    }
  }
}

TEST(RendezvousTest, RankZeroMayComeLast) {
  const HeldPort port;
  const Gate first_has_begun;
  ForkedRanks ranks(3, [&](int rank) {
    if (rank == 0) first_has_begun.pass(2);
    else first_has_begun.open();
    return meet_all(ranks_of(rank, 3, port.number()));
  });
  for (const auto& end : ranks.ends()) EXPECT_EQ(end.code, 0) << end.said;
}

TEST(RendezvousTest, NamesTheRanksThatHaveNotComeOnAllThatHave) {
  const HeldPort port;
  const auto begin = ForkedRanks::Clock::now();
  ForkedRanks ranks(5, [&](int rank) { return rank == 2 || rank == 4 ? "" : meet_all(ranks_of(rank, 5, port.number()), 2000ms); });
  for (const int rank : {0, 1, 3}) {
    const auto end = ranks.end(rank);
    EXPECT_THAT(end.said, AllOf(StartsWith("input/output: ranks 2, 4 of 5 have not joined within 2 s; see why"), HasSubstr(concat("127.0.0.1:", port.number()))));
    EXPECT_LT(seconds(end, begin), 3.0);
    EXPECT_EQ(end.printed, "");
  }
}

TEST(RendezvousTest, EndsTheWaitOfThoseThatCameLaterTogetherWithTheFirst) {
  const HeldPort port;
  const auto begin = ForkedRanks::Clock::now();
  ForkedRanks ranks(3, [&](int rank) {
    if (rank == 2) return std::string();
    return meet_all(ranks_of(rank, 3, port.number()), rank == 0 ? 1500ms : kLimit);
  });
  for (const int rank : {0, 1}) {
    EXPECT_THAT(ranks.end(rank).said, StartsWith("input/output: rank 2 of 3 has not joined within 1.5 s"));
    EXPECT_LT(seconds(ranks.end(rank), begin), 10.0);  // not 60
  }
}

TEST(RendezvousTest, SaysThatRankZeroHasNotCome) {
  const HeldPort port;
  const auto begin = ForkedRanks::Clock::now();
  ForkedRanks ranks(1, [&](int) { return meet_all(ranks_of(1, 4, port.number()), 1000ms); });
  EXPECT_THAT(ranks.end(0).said, AllOf(StartsWith("input/output: rank 0 of 4 has not joined within 1 s: nothing listens on 127.0.0.1:"), HasSubstr("onnection refused")));
  EXPECT_LT(seconds(ranks.end(0), begin), 2.0);
  EXPECT_EQ(ranks.end(0).printed, "");
}

TEST(RendezvousTest, RefusesAPortInUse) {
  HeldPort port;
  port.listen();
  const auto begin = ForkedRanks::Clock::now();
  for (const bool closed : {true, false}) {
    ForkedRanks ranks(1, [&](int) {
      Ranks of = ranks_of(0, 2, port.number());
      if (!closed) of.local_world_size = 1;
      return meet_all(of);
    });
    EXPECT_THAT(ranks.end(0).said, AllOf(StartsWith(concat("invalid argument: rank 0 cannot listen on port ", port.number(), ": Address already in use; set MASTER_PORT")), HasSubstr("end the run that uses this one")));
    EXPECT_LT(seconds(ranks.end(0), begin), 5.0);
  }
}

TEST(RendezvousTest, RefusesWhatListensThereButAnswersNothing) {
  HeldPort port;
  port.listen();
  const auto begin = ForkedRanks::Clock::now();
  ForkedRanks ranks(1, [&](int) { return meet_all(ranks_of(1, 2, port.number()), 1000ms); }, ForkedRanks::Leave::kByExit);
  EXPECT_THAT(ranks.end(0).said, AllOf(StartsWith("invalid argument: what listens on 127.0.0.1:"), HasSubstr("is not rank 0 of this run: it does not answer; set MASTER_PORT")));
  EXPECT_LT(seconds(ranks.end(0), begin), 2.0);
  EXPECT_EQ(ranks.end(0).printed, "");
  EXPECT_EQ(ranks.end(0).code, 1);
}

TEST(RendezvousTest, RefusesWhatListensThereButClosesConnections) {
  HeldPort port;
  port.listen();
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    if (rank == 1) return meet_all(ranks_of(1, 2, port.number()), 5000ms);
    while (true) {
      const int connection = accept(port.socket(), nullptr, nullptr);
      char bytes[64];
      if (connection < 0) return "";
      static_cast<void>(!read(connection, bytes, sizeof bytes));
      close(connection);
    }
  });
  EXPECT_THAT(ranks.end(1).said, AllOf(StartsWith("invalid argument: what listens on 127.0.0.1:"), HasSubstr("is not rank 0 of this run")));
}

TEST(RendezvousTest, RefusesAnUnknownHost) {
  const auto begin = ForkedRanks::Clock::now();
  for (const char* host : {"no such host", "no-such-host.invalid"}) {
    ForkedRanks ranks(1, [&](int) {
      Ranks of = ranks_of(1, 2, 29500);
      of.master_addr = host;
      return meet_all(of, 2000ms);
    });
    EXPECT_THAT(ranks.end(0).said, AllOf(HasSubstr(concat("cannot find rank 0: MASTER_ADDR='", host, "': ")), HasSubstr("; set MASTER_ADDR to")));
    EXPECT_LT(seconds(ranks.end(0), begin), 6.0);
  }
}

TEST(RendezvousTest, RefusesRanksThatMakeNoSense) {
  const auto said = [](const std::function<void(Ranks&)>& change, std::chrono::milliseconds limit = kLimit) {
    ForkedRanks ranks(1, [&](int) {
      Ranks of = ranks_of(1, 2, 29500);
      change(of);
      return meet_all(of, limit);
    });
    return ranks.end(0).said;
  };
  EXPECT_THAT(said([](Ranks& of) { of.master_port = 0; }), StartsWith("invalid argument: MASTER_PORT=0: set it to a free port"));
  EXPECT_THAT(said([](Ranks& of) { of.master_port = 65536; }), StartsWith("invalid argument: MASTER_PORT=65536"));
  EXPECT_THAT(said([](Ranks& of) { of.master_addr = ""; }), StartsWith("invalid argument: MASTER_ADDR is empty"));
  EXPECT_THAT(said([](Ranks& of) { of.rank = 2; }), StartsWith("invalid argument: rank 2 of 2"));
  EXPECT_THAT(said([](Ranks&) {}, 0ms), StartsWith("invalid argument: a time limit of 0 s"));
}

TEST(RendezvousTest, RefusesASecondProcessOfTheSameRank) {
  const HeldPort port;
  const Gate in, over;
  ForkedRanks ranks(3, [&](int number) -> std::string {
    const ProcessSettings settings;
    if (number == 2) in.pass(2);
    const Rendezvous rendezvous = meet(ranks_of(std::min(number, 1), 2, port.number()), kLimit);
    in.open();
    over.pass();
    return "";
  });
  EXPECT_THAT(ranks.end(2).said, AllOf(StartsWith("invalid argument: two processes are rank 1 of the run at 127.0.0.1:"), HasSubstr("a RANK of its own")));
  over.open(2);
}

TEST(RendezvousTest, RanksThatDifferInTheSizeOfTheRunAreTold) {
  const HeldPort port;
  const Gate over;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    const ProcessSettings settings;
    const Rendezvous rendezvous = meet(ranks_of(rank, rank == 2 ? 3 : 2, port.number()), kLimit);
    over.pass();
    return "";
  });
  EXPECT_THAT(ranks.end(2).said, MatchesRegex("invalid argument: rank 2 has WORLD_SIZE=3, but rank 0 .* has 2; give all ranks of a run the same WORLD_SIZE, and each run on a machine .*"));
  over.open(2);
  static_cast<void>(ranks.ends());
  ForkedRanks all(3, [&](int rank) { return meet_all(ranks_of(rank, rank == 1 ? 2 : 3, port.number())); });
  EXPECT_THAT(all.end(0).said, MatchesRegex("invalid argument: rank 0 has WORLD_SIZE=3, but rank 1 .* has 2; give all ranks .*"));
  EXPECT_THAT(all.end(1).said, MatchesRegex("invalid argument: rank 1 has WORLD_SIZE=2, but rank 0 .* has 3; give all ranks .*"));
  EXPECT_THAT(all.end(2).said, MatchesRegex("invalid argument: rank 2 has WORLD_SIZE=3, but rank 1 .* has 2; give all ranks .*"));
}

TEST(RendezvousTest, TellsThoseThatWaitThatRankZeroWasKilled) {
  const HeldPort port;
  const Gate joined;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    const ProcessSettings settings;
    if (rank == 2) {  // sees the others come, and never comes itself
      c10d::TCPStoreOptions options;
      options.port = static_cast<uint16_t>(port.number());
      const auto store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
      store->wait({"/marlin/here/0", "/marlin/here/1"}, kLimit);
      joined.open();
      return "";
    }
    return meet_all(ranks_of(rank, 3, port.number()));
  });
  joined.pass();
  const auto begin = ForkedRanks::Clock::now();
  ranks.kill(0, SIGKILL);
  EXPECT_THAT(ranks.end(1).said, StartsWith("input/output: rank 0 has gone while ranks were joining: it closed the connection at 127.0.0.1:"));
  EXPECT_LT(seconds(ranks.end(1), begin), 1.0);
  EXPECT_EQ(ranks.end(1).printed, "");
}

TEST(RendezvousTest, TellsThoseThatWaitThatRankZeroStandsStill) {
  const HeldPort port;
  const Gate joined;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    const ProcessSettings settings;
    if (rank == 2) {
      c10d::TCPStoreOptions options;
      options.port = static_cast<uint16_t>(port.number());
      const auto store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
      store->wait({"/marlin/here/0", "/marlin/here/1"}, kLimit);
      joined.open();
      return "";
    }
    return meet_all(ranks_of(rank, 3, port.number()), rank == 0 ? kLimit : 5000ms);
  });
  joined.pass();
  const auto begin = ForkedRanks::Clock::now();
  ranks.kill(0, SIGSTOP);
  EXPECT_THAT(ranks.end(1).said, StartsWith("input/output: rank 0 has stopped answering at 127.0.0.1:"));
  EXPECT_LT(seconds(ranks.end(1), begin), 7.5);
}

// torchrun's agent: its store is there before the ranks, and keeps what an attempt has left.
TEST(RendezvousTest, MeetsInTheStoreOfTorchrunsAgentAttemptAfterAttempt) {
  const HeldPort port;
  const Gate served, over;
  ForkedRanks agent(1, [&](int) -> std::string {
    const ProcessSettings settings;
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(port.number());
    options.isServer = true;
    options.waitWorkers = false;
    const auto store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
    served.open();
    over.pass();
    return join(store->listKeys());
  });
  served.pass();
  std::string before;
  for (int attempt = 0; attempt < 2; ++attempt) {
    ForkedRanks ranks(2, [&](int rank) {
      Ranks of = ranks_of(rank, 2, port.number());
      of.launcher = Launcher::kTorchrun;
      of.agent_store = true;
      of.restart_count = attempt;
      const std::string first = meet_all(of), second = meet_all(of);
      return first == second ? first : "the second run of a process was not like the first";
    });
    for (const auto& end : ranks.ends()) {
      EXPECT_EQ(end.code, 0) << end.said;
      EXPECT_THAT(end.said, AllOf(StartsWith("rank 0 ("), Not(before)));
    }
    before = ranks.end(0).said;
  }
  over.open();
  EXPECT_THAT(agent.end(0).said, AllOf(HasSubstr("/worker/attempt_0/marlin/0/here/0"), HasSubstr("/worker/attempt_1/marlin/1/here/1")));
}

// An address of this machine that other machines could reach.
std::string outer_address() {
  ifaddrs* first = nullptr;
  std::string found;
  if (getifaddrs(&first) != 0) return "";
  for (const ifaddrs* at = first; at != nullptr && found.empty(); at = at->ifa_next) {
    char host[NI_MAXHOST];
    if (at->ifa_addr == nullptr || at->ifa_addr->sa_family != AF_INET) continue;
    if (getnameinfo(at->ifa_addr, sizeof(sockaddr_in), host, sizeof host, nullptr, 0, NI_NUMERICHOST) == 0 && !std::string(host).starts_with("127.")) found = host;
  }
  freeifaddrs(first);
  return found;
}

TEST(RendezvousTest, RankZeroTakesTheAddressThatOthersReachItAtOverItsLoopback) {
  const std::string outer = outer_address();
  if (outer.empty()) GTEST_SKIP() << "this machine has no address but 127.0.0.1";
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) {
    const ProcessSettings settings;
    Ranks of = ranks_of(rank, 2, port.number());
    of.local_rank = 0;
    of.local_world_size = 1;  // two machines, as far as they know
    if (rank == 1) of.master_addr = outer;
    const Rendezvous rendezvous = meet(of, kLimit);
    met(rendezvous, rank);
    return rendezvous.address;
  });
  EXPECT_EQ(ranks.end(0).said, outer);
  EXPECT_EQ(ranks.end(1).said, outer);
}

TEST(RendezvousTest, OtherMachinesCannotReachARunOfThisMachineOnly) {
  const std::string outer = outer_address();
  if (outer.empty()) GTEST_SKIP() << "this machine has no address but 127.0.0.1";
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) {
    const ProcessSettings settings;
    Ranks of = ranks_of(rank, 2, port.number());
    if (rank == 1) of.master_addr = outer;
    return meet_all(of, 1000ms);
  });
  EXPECT_THAT(ranks.end(1).said, HasSubstr("nothing listens on"));
}

}  // namespace
}  // namespace marlin::distributed
