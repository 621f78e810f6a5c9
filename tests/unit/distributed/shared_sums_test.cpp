// Sums in memory that ranks of one machine share: the same as over Gloo, and what goes wrong is told as there.
#include <gmock/gmock.h>
#include <sched.h>
#include <sys/mount.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <set>
#include <string>
#include <thread>

#include "communicator_ranks.h"
#include "recording_logger.h"

namespace marlin::distributed {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

ConnectOptions sharing(int rank, int size, const HeldPort& port, std::chrono::milliseconds timeout = 60s) { return options_of(rank, size, port, timeout, /*shared_memory=*/true); }

at::Tensor tensor_of(int rank, int64_t number, int64_t count, at::ScalarType type) {
  return (at::arange(count, at::kLong) * (rank + 1) + number).remainder(7).to(type);  // sums are exact in all types
}

at::Tensor sum_of(int size, int64_t number, int64_t count, at::ScalarType type) {
  at::Tensor sum = at::zeros({count}, type);
  for (int rank = 0; rank < size; ++rank) sum += tensor_of(rank, number, count, type);
  return sum;
}

class SharedSumsTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, SharedSumsTest, ::testing::Values(2, 3, 4));

TEST_P(SharedSumsTest, OfAllTypesAndOfSizesFromOneToMoreThanIsShared) {
  const int size = GetParam();
  const HeldPort port;
  ForkedRanks ranks(size, [&](int rank) -> std::string {
    const auto communicator = connect(sharing(rank, size, port));
    for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kChar, at::kByte}) {
      for (const int64_t count : {1, 2, 3, 5, 1000, 4096, 4097, 100'003, 9'000'001}) {
        if (count > 200'000 && type != at::kFloat && type != at::kByte) continue;
        const at::Tensor tensor = tensor_of(rank, count, count, type);
        all_reduce(*communicator, tensor);
        if (!tensor.equal(sum_of(size, count, count, type))) return concat("wrong: ", count, " of ", type);
      }
    }
    return "right";
  });
  for (const auto& end : ranks.ends()) EXPECT_EQ(end.said, "right");
}

TEST_P(SharedSumsTest, ManyAtOnceOfAnySizesWaitedForInAnyOrder) {
  const int size = GetParam();
  const HeldPort port;
  ForkedRanks ranks(size, [&](int rank) -> std::string {
    const auto communicator = connect(sharing(rank, size, port));
    std::mt19937 sizes(7), own(static_cast<unsigned>(rank));
    for (int round = 0; round < 5; ++round) {
      std::vector<at::Tensor> tensors;
      std::vector<std::unique_ptr<Communicator::Work>> works;
      std::vector<size_t> order;
      for (size_t i = 0; i < 400; ++i) {
        const int64_t count = 1 + static_cast<int64_t>(sizes() % (i % 50 == 0 ? 3'000'000 : 5'000));
        tensors.push_back(tensor_of(rank, static_cast<int64_t>(i), count, at::kFloat));
        works.push_back(communicator->all_reduce(tensors.back()));
        order.push_back(i);
        if (own() % 50 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 3000));  // ranks are at other places
      }
      std::shuffle(order.begin(), order.end(), sizes);
      for (const size_t i : order) works[i]->wait();
      for (size_t i = 0; i < tensors.size(); ++i) {
        if (!tensors[i].equal(sum_of(size, static_cast<int64_t>(i), tensors[i].numel(), at::kFloat))) return concat("wrong: ", i, " of round ", round);
      }
    }
    return "right";
  });
  for (const auto& end : ranks.ends()) EXPECT_EQ(end.said, "right");
}

TEST_P(SharedSumsTest, AllRanksHaveTheSameBitsWhateverIsLostInRounding) {
  const int size = GetParam();
  const HeldPort port;
  ForkedRanks ranks(size, [&](int rank) -> std::string {
    const auto communicator = connect(sharing(rank, size, port));
    at::manual_seed(static_cast<uint64_t>(rank));
    const at::Tensor tensor = at::randn({1'000'003}) * 1e3;
    all_reduce(*communicator, tensor);
    const std::vector<std::string> all = communicator->gather_bytes({static_cast<const char*>(tensor.data_ptr()), tensor.nbytes()});
    return std::all_of(all.begin(), all.end(), [&](const std::string& bytes) { return bytes == all.front(); }) ? "the same" : "other bits";
  });
  for (const auto& end : ranks.ends()) EXPECT_EQ(end.said, "the same");
}

TEST(SharedSumsTest, OneThatIsDroppedHoldsNobodyUp) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    const auto communicator = connect(sharing(rank, 2, port));
    const at::Tensor tensor = at::ones({100'000});
    auto work = communicator->all_reduce(tensor);
    if (rank == 0) work->wait();
    work.reset();
    communicator->barrier();
    return std::to_string(tensor[99'999].item<float>());
  });
  EXPECT_THAT(ranks.end(0).said, StartsWith("2.0"));
  EXPECT_THAT(ranks.end(1).said, StartsWith("2.0"));
}

TEST(SharedSumsTest, TensorsThatAreNotAlikeAreToldOfAndEndNoProcess) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    const auto communicator = connect(sharing(rank, 2, port));
    all_reduce(*communicator, at::ones({rank + 3}));
    return "";
  });
  EXPECT_THAT(ranks.end(0).said, HasSubstr("ranks sum tensors that are not alike: rank 0 one of 12 bytes of type Float, rank 1 one of 16 bytes of type Float"));
  EXPECT_THAT(ranks.end(1).said, HasSubstr("ranks sum tensors that are not alike"));
}

TEST(SharedSumsTest, ARankThatIsKilledAtAnyMomentIsNamedByAllOthersSoon) {
  std::mt19937 random(3);
  for (int round = 0; round < 10; ++round) {
    const int size = 2 + round % 3, victim = static_cast<int>(random() % static_cast<unsigned>(size));
    const HeldPort port;
    const Gate started;
    ForkedRanks ranks(size, [&](int rank) -> std::string {
      const auto communicator = connect(sharing(rank, size, port));
      started.open();
      const at::Tensor tensor = at::ones({300'000});
      while (true) all_reduce(*communicator, tensor);
    });
    started.pass(size);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 50'000));  // the moment
    const auto begin = ForkedRanks::Clock::now();
    ranks.kill(victim, SIGKILL);
    for (int rank = 0; rank < size; ++rank) {
      if (rank == victim) continue;
      const auto end = ranks.end(rank);
      EXPECT_THAT(end.said, HasSubstr(concat("rank ", victim, " ("))) << "round " << round;
      EXPECT_LT(milliseconds(end, begin), 5000);
    }
  }
}

TEST(SharedSumsTest, ARankThatStandsStillIsNamedAfterTheTimeLimit) {
  const HeldPort port;
  const Gate started;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    const auto communicator = connect(sharing(rank, 2, port, 1s));
    started.open();
    const at::Tensor tensor = at::ones({300'000});
    while (true) all_reduce(*communicator, tensor);
  });
  started.pass(2);
  ranks.kill(1, SIGSTOP);
  const auto end = ranks.end(0);
  ranks.kill(1, SIGKILL);
  EXPECT_THAT(end.said, AllOf(HasSubstr("rank 1 ("), HasSubstr("did not answer within 1 s")));
}

TEST(SharedSumsTest, WhereARankDoesNotSeeTheMemoryAllSumOverGloo) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    // As in containers of their own.
    if (rank == 1 && (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 || mount("none", "/dev/shm", "tmpfs", 0, nullptr) != 0)) return "may not";
    marlin::testing::RecordingLogger logger;
    ConnectOptions options = sharing(rank, 2, port, 10s);
    options.logger = &logger;
    const auto communicator = connect(options);
    const at::Tensor tensor = at::ones({1000});
    all_reduce(*communicator, tensor);
    const std::vector<std::string> told = logger.lines(LogLevel::kDebug);
    const bool without = std::any_of(told.begin(), told.end(), [](const std::string& line) { return line.starts_with("no memory is shared"); });
    return concat(tensor.sum().item<float>(), without ? ", no memory" : ", memory");
  });
  const auto second = ranks.end(1);
  if (second.said == "may not") GTEST_SKIP() << "needs the right to mount";
  EXPECT_EQ(second.said, "2000, no memory");
  EXPECT_EQ(ranks.end(0).said, "2000, no memory");
}

TEST(SharedSumsTest, LeavesNothingBehind) {
  const auto files = [] {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
      if (const std::string name = entry.path().filename().string(); name.starts_with("marlin-")) names.insert(name);
    }
    return names;
  };
  const std::set<std::string> before = files();
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) -> std::string { return connect(sharing(rank, 2, port))->broadcast_bytes("yes", 0); });
  for (const auto& end : ranks.ends()) EXPECT_EQ(end.said, "yes");
  // Another run on this machine may just have made one, which soon goes.
  for (const std::string& name : files()) {
    const auto until = ForkedRanks::Clock::now() + std::chrono::seconds(marlin::testing::kPatience);
    while (!before.contains(name) && files().contains(name) && ForkedRanks::Clock::now() < until) std::this_thread::yield();
    EXPECT_TRUE(before.contains(name) || !files().contains(name)) << name;
  }
}

}  // namespace
}  // namespace marlin::distributed
