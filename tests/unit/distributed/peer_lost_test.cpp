// What ranks hear when one of them is lost.
#include <gmock/gmock.h>

#include <cstdlib>
#include <thread>

#include "communicator_ranks.h"
#include "recording_logger.h"

namespace marlin::distributed {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::StartsWith;

constexpr double kSoon = 2000;  // milliseconds
const std::string kProcess = "\\([^ ]+:[0-9]+\\)";

// A number of the environment, for longer runs.
int number_of(const char* variable, int otherwise) {
  const char* value = std::getenv(variable);
  return value == nullptr ? otherwise : std::atoi(value);
}

// No word of Gloo's or c10d's, and one line.
void expect_clean(const ForkedRanks::End& end) {
  for (const char* word : {"GLHF", ".cc", ".cpp", "gloo", "c10", "\n"}) EXPECT_THAT(end.said, Not(HasSubstr(word)));
  EXPECT_EQ(end.printed, "");
}

TEST(PeerLostTest, ARankThatIsKilledAtAnyMomentIsNamedByAllOthers) {
  const int rounds = number_of("MARLIN_KILL_ROUNDS", 20), first_seed = number_of("MARLIN_KILL_SEED", 1);
  int named = 0, survivors = 0;
  std::vector<double> times;
  for (int seed = first_seed; seed < first_seed + rounds; ++seed) {
    std::mt19937 random(static_cast<unsigned>(seed));
    const int size = 2 + static_cast<int>(random() % 3), victim = static_cast<int>(random() % static_cast<unsigned>(size));
    const std::chrono::microseconds delay(random() % 100'000);
    const HeldPort port;
    const Gate started;
    ForkedRanks ranks(size, [&](int rank) -> std::string {
      const auto communicator = connect(options_of(rank, size, port, 10s));
      communicator->barrier();
      started.open();
      work(*communicator);
      return "";
    });
    started.pass(size);
    std::this_thread::sleep_for(delay);  // the moment
    const auto begin = ForkedRanks::Clock::now();
    ranks.kill(victim, SIGKILL);
    for (int rank = 0; rank < size; ++rank) {
      if (rank == victim) continue;
      const auto end = ranks.end(rank);
      SCOPED_TRACE(concat("seed ", seed, ", ", size, " ranks, killed ", victim, ", rank ", rank, ": ", end.said));
      ++survivors;
      named += end.said.starts_with(concat("training: rank ", victim, " (")) ? 1 : 0;
      times.push_back(milliseconds(end, begin));
      EXPECT_THAT(end.said, MatchesRegex(concat("training: rank ", victim, " ", kProcess, " is gone: connection closed; see what it wrote last, and whether it was killed")));
      EXPECT_EQ(end.code, 1);
      EXPECT_LT(times.back(), kSoon);
      expect_clean(end);
    }
  }
  std::sort(times.begin(), times.end());
  std::printf("%d rounds from seed %d: %d of %d survivors named the rank that was killed, after %.0f ms [%.0f .. %.0f]\n", rounds, first_seed, named, survivors, times[times.size() / 2], times.front(), times.back());
}

TEST(PeerLostTest, ARanksOwnMessageReachesAllOthers) {
  for (const int failing : {0, 2}) {
    const HeldPort port;
    const Gate started, now;
    ForkedRanks ranks(3, [&](int rank) -> std::string {
      const auto communicator = connect(options_of(rank, 3, port));
      started.open();
      if (rank != failing) work(*communicator);
      now.pass();
      communicator->fail("boom\nat step 7");
      return "";  // its process ends at once
    });
    started.pass(3);
    const auto begin = ForkedRanks::Clock::now();
    now.open();
    for (int rank = 0; rank < 3; ++rank) {
      const auto end = ranks.end(rank);
      if (rank != failing) {
        EXPECT_EQ(end.said, concat("training: rank ", failing, " failed: boom\\nat step 7"));
      }
      EXPECT_LT(milliseconds(end, begin), kSoon);
      expect_clean(end);
    }
  }
}

TEST(PeerLostTest, TheFirstMessageStaysAndEveryCallAfterItThrows) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) {
    const auto communicator = connect(options_of(rank, 2, port));
    communicator->barrier();
    if (rank == 1) communicator->fail("boom"), communicator->fail("bang");
    std::string texts;
    const auto hear = [&](const std::function<void()>& call) {
      try {
        call();
        texts += "nothing; ";
      } catch (const PeerLost& lost) {
        if (lost.code() == Errc::kTraining) texts += concat(lost.what(), "; ");
      }
    };
    if (rank == 0) hear([&] { communicator->barrier(); });
    communicator->fail("too late");
    hear([&] { communicator->barrier(); });
    hear([&] { all_reduce(*communicator, at::ones({1})); });
    hear([&] { all_reduce(*communicator, at::ones({0})); });
    hear([&] { communicator->broadcast(at::ones({1}), 0); });
    hear([&] { static_cast<void>(communicator->broadcast_bytes("", 1)); });
    hear([&] { static_cast<void>(communicator->gather_bytes("")); });
    return texts;
  });
  const std::string once = "rank 1 failed: boom; ", six = once + once + once + once + once + once;
  EXPECT_EQ(ranks.end(0).said, once + six);
  EXPECT_EQ(ranks.end(1).said, six);
}

TEST(PeerLostTest, AnotherThreadMayFailWhileTheMainThreadWaits) {
  const HeldPort port;
  const Gate never;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    const auto communicator = connect(options_of(rank, 3, port));
    communicator->barrier();
    if (rank == 2) work(*communicator);
    if (rank == 0) never.pass();
    std::thread other([&] { communicator->fail("the loader's thread"); });
    try {
      work(*communicator);
    } catch (...) {
      other.join();
      throw;
    }
    return "";
  });
  for (const int rank : {1, 2}) EXPECT_EQ(ranks.end(rank).said, "training: rank 1 failed: the loader's thread");
}

TEST(PeerLostTest, ARankThatStandsStillIsNamedAfterTheTimeLimit) {
  for (const int stopped : {1, 0}) {  // 0 serves the store
    const HeldPort port;
    const Gate started;
    ForkedRanks ranks(3, [&](int rank) -> std::string {
      const auto communicator = connect(options_of(rank, 3, port, 3s));
      all_reduce(*communicator, at::ones({1}));
      started.open();
      work(*communicator);
      return "";
    });
    started.pass(3);
    const auto begin = ForkedRanks::Clock::now();
    ranks.kill(stopped, SIGSTOP);
    for (const int rank : {0, 1, 2}) {
      if (rank == stopped) continue;
      const auto end = ranks.end(rank);
      EXPECT_THAT(end.said, MatchesRegex(concat("training: rank ", stopped, " ", kProcess, " did not answer within 3 s: stopped, or cut off from the network")));
      EXPECT_GT(milliseconds(end, begin), 2900);
      EXPECT_LT(milliseconds(end, begin), 3000 + 3000);
      expect_clean(end);
    }
  }
}

// As while rank 0 saves: however long that takes is fine, but its store must go on answering.
TEST(PeerLostTest, ARankThatIsFollowedAndStandsStillIsNamedAfterTheTimeLimit) {
  const HeldPort port;
  const Gate started, never;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    const auto communicator = connect(options_of(rank, 3, port, 3s));
    communicator->follow(0);
    started.open();
    if (rank == 0) never.pass();
    communicator->follow(0);
    return "";
  });
  started.pass(3);
  const auto begin = ForkedRanks::Clock::now();
  ranks.kill(0, SIGSTOP);
  for (const int rank : {1, 2}) {
    const auto end = ranks.end(rank);
    EXPECT_THAT(end.said, MatchesRegex(concat("training: rank 0 ", kProcess, " did not answer within 3 s: stopped, or cut off from the network")));
    EXPECT_GT(milliseconds(end, begin), 2900);
    EXPECT_LT(milliseconds(end, begin), 3000 + 3000);
    expect_clean(end);
  }
}

TEST(PeerLostTest, ARankThatIsBusyElsewhereIsNamedAfterTheTimeLimitAndCalled) {
  const HeldPort port;
  const Gate called;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    ConnectOptions options = options_of(rank, 3, port, 3s);
    std::string stuck;
    options.on_stuck = [&](const std::string& message) { stuck = message, called.open(); };
    const auto communicator = connect(options);
    communicator->barrier();
    if (rank == 2) return called.pass(), stuck;
    work(*communicator);
    return "";
  });
  const std::string text = concat("rank 2 ", kProcess, " did not answer within 3 s: still busy with something else; if that is right, allow more time \\(--backend.timeout_seconds\\)");
  EXPECT_THAT(ranks.end(0).said, MatchesRegex("training: " + text));
  EXPECT_THAT(ranks.end(1).said, MatchesRegex("training: " + text));
  EXPECT_THAT(ranks.end(2).said, MatchesRegex(text));
}

TEST(PeerLostTest, ARankInUserCodeIsCalledOnceWhenAnotherFails) {
  const HeldPort port;
  const Gate called, started, now;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    ConnectOptions options = options_of(rank, 3, port);
    options.grace = 500ms;
    std::string calls;
    options.on_stuck = [&](const std::string& message) { calls += message + "; ", called.open(); };
    const auto communicator = connect(options);
    started.open();
    if (rank == 0) now.pass(), communicator->fail("boom");
    if (rank == 1) work(*communicator);
    if (rank == 2) {
      called.pass();
      try {
        communicator->barrier();
      } catch (const PeerLost& lost) {
        calls += lost.what();
      }
    }
    return calls;
  });
  started.pass(3);
  const auto begin = ForkedRanks::Clock::now();
  now.open();
  EXPECT_EQ(ranks.end(0).said, "");
  EXPECT_EQ(ranks.end(1).said, "training: rank 0 failed: boom");
  EXPECT_EQ(ranks.end(2).said, "rank 0 failed: boom; rank 0 failed: boom");
  EXPECT_LT(milliseconds(ranks.end(2), begin), kSoon);
}

TEST(PeerLostTest, ARankThatEndsWhileOthersGoOnIsNamed) {
  const HeldPort port;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    const auto communicator = connect(options_of(rank, 3, port));
    communicator->barrier();
    if (rank == 1) return "ended";
    work(*communicator);
    return "";
  });
  EXPECT_EQ(ranks.end(1).said, "ended");
  for (const int rank : {0, 2}) EXPECT_THAT(ranks.end(rank).said, MatchesRegex(concat("training: rank 1 ", kProcess, " has ended while others went on: all ranks must make the same calls")));
}

TEST(PeerLostTest, ARankThatEndsDuringACallEndsAtOnceAndIsNamed) {
  const HeldPort port;
  const Gate ended, started, now;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    const auto communicator = connect(options_of(rank, 3, port));
    started.open();
    if (rank == 1) {
      now.pass();
      static_cast<void>(communicator->all_reduce(at::ones({100})));
      return "ended";
    }
    ended.pass();
    communicator->barrier();
    return "";
  });
  started.pass(3);
  const auto begin = ForkedRanks::Clock::now();
  now.open();
  EXPECT_EQ(ranks.end(1).said, "ended");
  ended.open(2);
  for (const int rank : {0, 2}) EXPECT_EQ(ranks.end(rank).said, "training: rank 1 failed: it ended during a call that all ranks must make");
  EXPECT_LT(milliseconds(ranks.end(2), begin), kSoon);
}

TEST(PeerLostTest, AGroupLeftInTheMiddleOfACallDoesNotHoldUpTheEnd) {
  const HeldPort port;
  const Gate over, started, now;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    const auto communicator = connect(options_of(rank, 3, port, 30s));
    started.open();
    if (rank == 0) {
      now.pass();
      communicator->fail("boom");  // its connections stay open
      over.pass();
    }
    try {
      work(*communicator);
    } catch (const PeerLost&) {
    }
    return "";
  }, ForkedRanks::Leave::kByExit);
  started.pass(3);
  const auto begin = ForkedRanks::Clock::now();
  now.open();
  for (const int rank : {1, 2}) {
    const auto end = ranks.end(rank);
    EXPECT_EQ(end.code, 0);
    EXPECT_LT(milliseconds(end, begin), kSoon);
    expect_clean(end);
  }
  over.open();
}

TEST(PeerLostTest, ARankThatIsKilledWhileAllConnectEndsTheOthersWithinTheTimeLimit) {
  const int rounds = number_of("MARLIN_KILL_ROUNDS", 20), first_seed = number_of("MARLIN_KILL_SEED", 1);
  for (int seed = first_seed; seed < first_seed + rounds; ++seed) {
    std::mt19937 random(static_cast<unsigned>(seed));
    const int victim = static_cast<int>(random() % 3);
    const std::chrono::microseconds delay(random() % 40'000);
    const HeldPort port;
    ForkedRanks ranks(3, [&](int rank) -> std::string {
      const auto communicator = connect(options_of(rank, 3, port, 3s));
      work(*communicator);
      return "";
    });
    std::this_thread::sleep_for(delay);  // the moment
    const auto begin = ForkedRanks::Clock::now();
    ranks.kill(victim, SIGKILL);
    for (int rank = 0; rank < 3; ++rank) {
      if (rank == victim) continue;
      const auto end = ranks.end(rank);
      SCOPED_TRACE(concat("seed ", seed, ", killed ", victim, " after ", delay.count(), " us, rank ", rank, ": ", end.said));
      EXPECT_EQ(end.code, 1);
      EXPECT_THAT(end.said, AllOf(Not(StartsWith("invalid argument")), HasSubstr(concat("rank ", victim, " "))));
      EXPECT_LT(milliseconds(end, begin), 3000 + 3000 + 1000 + kSoon);  // to meet, to connect, some slack, and to find out
      EXPECT_THAT(end.said, Not(HasSubstr(".cc")));  // Gloo itself may have printed that it cannot connect
    }
  }
}

TEST(PeerLostTest, ARankThatTakesItsTimeAfterItsLastCallIsLeftInPeace) {
  const HeldPort port;
  const Gate first_has_ended;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    ConnectOptions options = options_of(rank, 2, port, 3s);
    options.grace = 0ms;
    std::string stuck = "in peace";
    options.on_stuck = [&](const std::string& message) { stuck = message; };
    {
      const auto communicator = connect(options);
      communicator->barrier();
      if (rank == 1) first_has_ended.pass();
    }
    first_has_ended.open();
    return stuck;
  });
  EXPECT_EQ(ranks.end(0).said, "in peace");
  EXPECT_EQ(ranks.end(1).said, "in peace");
}

// Its connections are closed while others still wait for each other, longer than they take to look for who is lost.
TEST(PeerLostTest, ARankThatIsThroughWithTheLastCallFirstIsNotTakenForLost) {
  const HeldPort port;
  const Gate go;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    const auto communicator = connect(options_of(rank, 3, port));
    if (rank == 2) go.pass();
    communicator->broadcast(at::ones({1 << 22}), 0);
    return "ended";
  });
  EXPECT_EQ(ranks.end(1).said, "ended");
  std::this_thread::sleep_for(2s);  // rank 0 waits for rank 2
  go.open();
  for (const int rank : {0, 2}) EXPECT_EQ(ranks.end(rank).said, "ended");
}

TEST(PeerLostTest, WhatGlooSaysIsKeptForTheLogger) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    marlin::testing::RecordingLogger logger;
    ConnectOptions options = options_of(rank, 2, port);
    options.logger = &logger;
    const auto communicator = connect(options);
    communicator->barrier();
    if (rank == 1) raise(SIGKILL);
    try {
      work(*communicator);
    } catch (const PeerLost&) {
    }
    return join(logger.lines(LogLevel::kDebug), "\n");
  });
  EXPECT_THAT(ranks.end(0).said, AllOf(StartsWith("c10d: "), HasSubstr("peer")));
}

}  // namespace
}  // namespace marlin::distributed
