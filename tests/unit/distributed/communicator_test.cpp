#include "marlin/core/communicator.h"

#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <set>
#include <thread>

#include "communicator_ranks.h"
#include "marlin/core/connect_ranks.h"
#include "recording_logger.h"

namespace marlin::distributed {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr auto kShort = 4s;  // a time limit

// What each of `size` connected ranks says. Nothing else may be printed.
std::vector<std::string> said_by(int size, const std::function<std::string(Communicator&)>& body, std::chrono::milliseconds limit = 60s) {
  const HeldPort port;
  ForkedRanks ranks(size, [&](int rank) {
    const auto communicator = connect(options_of(rank, size, port, limit));
    if (communicator->rank() != rank || communicator->world_size() != size) throw std::logic_error("not the rank it is");
    return body(*communicator);
  });
  std::vector<std::string> said;
  for (const auto& end : ranks.ends()) {
    EXPECT_EQ(end.code, 0) << end.said;
    EXPECT_EQ(end.printed, "");
    said.push_back(end.said);
  }
  return said;
}

class CommunicatorTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, CommunicatorTest, ::testing::Values(1, 2, 3, 4));

TEST_P(CommunicatorTest, SumsTensorsOfEveryTypeAndSize) {
  const auto said = said_by(GetParam(), [](Communicator& communicator) {
    std::string wrong;
    for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kChar, at::kByte}) {
      for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{0}, {}, {1}, {7}, {32}, {3, 5, 7}, {100003}}) {
        const at::Tensor pattern = at::arange(at::empty(sizes).numel()).remainder(5).view(sizes);  // small whole numbers: exact in all types
        const at::Tensor tensor = (pattern + communicator.rank()).to(type);
        all_reduce(communicator, tensor);
        const int n = communicator.world_size();
        if (!at::equal(tensor, (pattern * n + n * (n - 1) / 2).to(type))) wrong += concat(type, " ", sizes, "; ");
      }
    }
    return wrong;
  });
  EXPECT_THAT(said, Each(IsEmpty()));
}

TEST_P(CommunicatorTest, GivesAllRanksTheSameBits) {
  const auto said = said_by(GetParam(), [](Communicator& communicator) {
    std::string bits;
    at::manual_seed(static_cast<uint64_t>(communicator.rank()));
    for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
      for (const int64_t size : {1, 2, 33, 65537}) {
        const at::Tensor tensor = at::randn({size}).to(type);
        all_reduce(communicator, tensor);
        bits += concat(std::hash<std::string_view>()({static_cast<const char*>(tensor.data_ptr()), tensor.nbytes()}), " ");
      }
    }
    return bits;
  });
  EXPECT_THAT(said, Each(said.front()));
}

TEST_P(CommunicatorTest, DoesSeveralSumsAtATime) {
  const auto said = said_by(GetParam(), [](Communicator& communicator) {
    std::vector<at::Tensor> tensors;
    std::vector<std::unique_ptr<Communicator::Work>> works;
    for (int i = 0; i < 20; ++i) tensors.push_back(at::full({i * 100}, static_cast<double>(i), at::kDouble));
    for (const at::Tensor& tensor : tensors) works.push_back(communicator.all_reduce(tensor));
    for (size_t i = works.size(); i-- > 0;) works[i]->wait(), works[i]->wait();
    bool right = true;
    for (int i = 0; i < 20; ++i) right &= at::equal(tensors[static_cast<size_t>(i)], at::full({i * 100}, static_cast<double>(i * communicator.world_size()), at::kDouble));
    static_cast<void>(communicator.all_reduce(at::ones({10})));  // nobody waits
    communicator.barrier();
    return std::string(right ? "right" : "wrong");
  });
  EXPECT_THAT(said, Each("right"));
}

TEST_P(CommunicatorTest, BroadcastsTensorsOfAnyTypeFromAnyRank) {
  const auto said = said_by(GetParam(), [](Communicator& communicator) {
    std::string wrong;
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kLong, at::kBool, at::kComplexFloat, at::kShort}) {
      for (int root = 0; root < communicator.world_size(); ++root) {
        for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{0, 3}, {}, {4, 5}}) {
          const at::Tensor tensor = at::full(sizes, communicator.rank() % 2 + 3).to(type);
          const auto version = tensor._version();
          communicator.broadcast(tensor, root);
          if (!at::equal(tensor, at::full(sizes, root % 2 + 3).to(type))) wrong += concat(type, " ", sizes, " from ", root, "; ");
          if (tensor.numel() > 0 && communicator.rank() != root && tensor._version() == version) wrong += "the same version; ";
        }
      }
    }
    return wrong;
  });
  EXPECT_THAT(said, Each(IsEmpty()));
}

TEST_P(CommunicatorTest, BroadcastsBytesOfAnyLengthFromAnyRank) {
  const auto said = said_by(GetParam(), [](Communicator& communicator) {
    std::string wrong;
    for (int root = 0; root < communicator.world_size(); ++root) {
      for (const size_t size : {size_t{0}, size_t{1}, size_t{5056}, size_t{100} << 20}) {
        if (size > 1 << 20 && root != communicator.world_size() - 1) continue;
        const std::string bytes(size, static_cast<char>('a' + root));
        const bool mine = communicator.rank() == root;
        if (communicator.broadcast_bytes(mine ? bytes : "not looked at", root) != bytes) wrong += concat(size, " from ", root, "; ");
      }
    }
    return wrong;
  });
  EXPECT_THAT(said, Each(IsEmpty()));
}

TEST_P(CommunicatorTest, GathersBytesOfUnequalLengthsOnRankZero) {
  const auto said = said_by(GetParam(), [](Communicator& communicator) {
    std::string wrong;
    for (const size_t longest : {0, 1, 5056, 1 << 20}) {
      const auto bytes_by = [&](int rank) { return bytes_of(rank % 2 == 0 ? longest : longest / 3, static_cast<unsigned>(rank)); };
      const std::vector<std::string> all = communicator.gather_bytes(bytes_by(communicator.rank()));
      if (all.size() != (communicator.rank() == 0 ? static_cast<size_t>(communicator.world_size()) : 0)) wrong += "number; ";
      for (size_t rank = 0; rank < all.size(); ++rank) {
        if (all[rank] != bytes_by(static_cast<int>(rank))) wrong += concat(longest, " of ", rank, "; ");
      }
    }
    return wrong;
  });
  EXPECT_THAT(said, Each(IsEmpty()));
}

TEST_P(CommunicatorTest, ABarrierEndsWhenAllHaveCalledIt) {
  auto* called = static_cast<std::atomic<int>*>(mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const auto said = said_by(GetParam(), [called](Communicator& communicator) {
    bool right = true;
    for (int i = 1; i <= 100; ++i) {
      ++*called;
      communicator.barrier();
      right &= *called >= i * communicator.world_size();
    }
    return std::string(right ? "right" : "wrong");
  });
  EXPECT_THAT(said, Each("right"));
}

TEST_P(CommunicatorTest, RefusesWhatItCannotSendAndGoesOn) {
  const auto said = said_by(GetParam(), [](Communicator& communicator) {
    const auto text_of = [](const std::function<void()>& call) -> std::string {
      try {
        call();
        return "nothing; ";
      } catch (const Error& error) {
        return concat(to_string(error.code()), ": ", error.what(), "\n");
      }
    };
    std::string texts = text_of([&] { all_reduce(communicator, at::ones({3, 4}).t()); });
    texts += text_of([&] { all_reduce(communicator, at::ones({3}, at::kBool)); });
    texts += text_of([&] { all_reduce(communicator, at::Tensor()); });
    texts += text_of([&] { communicator.broadcast(at::ones({3, 4}).t(), 0); });
    texts += text_of([&] { communicator.broadcast(at::ones({3}), communicator.world_size()); });
    texts += text_of([&] { static_cast<void>(communicator.broadcast_bytes("", -1)); });
    const at::Tensor tensor = at::ones({3});
    all_reduce(communicator, tensor);
    return texts + concat("sum ", tensor.sum().item<double>());
  });
  const int n = GetParam();
  EXPECT_THAT(said, Each(AllOf(StartsWith("invalid argument: a tensor for all ranks of sizes [4, 3] and strides [1, 4] is not contiguous"), HasSubstr("\ninvalid argument: a tensor of type Bool cannot be summed"),
                               HasSubstr("\ninvalid argument: a tensor for all ranks is undefined"), HasSubstr(concat("\ninvalid argument: a broadcast from rank ", n, " of ", n, ": ranks go from 0")),
                               HasSubstr("\ninvalid argument: a broadcast from rank -1 of"), HasSubstr(concat("\nsum ", 3 * n)))));
}

TEST_P(CommunicatorTest, EndsWellWithoutAWordWhoeverIsLast) {
  for (const int last : {0, GetParam() - 1}) {
    const HeldPort port;
    const Gate gone;
    const int size = GetParam();
    ForkedRanks ranks(size, [&](int rank) -> std::string {
      {
        const auto communicator = connect(options_of(rank, size, port));
        all_reduce(*communicator, at::ones({10}));
        if (rank == last && rank == 0) gone.pass(size - 1);  // rank 0 alone would wait for the others
      }
      struct sigaction action {};
      sigaction(SIGPIPE, nullptr, &action);
      gone.open();
      return action.sa_handler == SIG_DFL ? "SIGPIPE as it was" : "SIGPIPE changed";
    }, ForkedRanks::Leave::kByExit);
    for (const auto& end : ranks.ends()) {
      EXPECT_EQ(end.code, 0);
      EXPECT_EQ(end.said, "SIGPIPE as it was");
      EXPECT_EQ(end.printed, "");
    }
  }
}

TEST(CommunicatorConnectTest, WhoIsFollowedMayTakeLongerThanACallMay) {
  const auto said = said_by(3, [](Communicator& communicator) {
    for (int i = 0; i < 250; ++i) communicator.follow(i % 3);  // each call has a key of its own
    communicator.barrier();
    const auto begin = std::chrono::steady_clock::now();
    if (communicator.rank() == 0) std::this_thread::sleep_for(kShort * 3 / 2);  // a save, say
    communicator.follow(0);
    return std::string(std::chrono::steady_clock::now() - begin >= kShort ? "waited" : "did not wait");
  }, kShort);
  EXPECT_THAT(said, Each("waited"));
}

TEST(CommunicatorConnectTest, OneRunAfterTheOtherInTheSameProcesses) {
  const HeldPort port;
  ForkedRanks ranks(3, [&](int rank) {
    double sum = 0;
    for (int run = 0; run < 5; ++run) {
      const auto communicator = connect(options_of(rank, 3, port));
      const at::Tensor tensor = at::ones({1});
      all_reduce(*communicator, tensor);
      sum += tensor.item<double>();
    }
    return concat(sum);
  });
  for (const auto& end : ranks.ends()) EXPECT_EQ(end.said, "15");
}

TEST(CommunicatorConnectTest, ARankMayEndAsSoonAsItIsConnected) {
  for (int round = 0; round < 10; ++round) {
    const HeldPort port;
    ForkedRanks ranks(4, [&](int rank) { return concat(connect(options_of(rank, 4, port))->rank()); });
    for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(ranks.end(rank).said, concat(rank));
  }
}

TEST(CommunicatorConnectTest, LeavesAHandlerOfSigpipeAlone) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) {
    signal(SIGPIPE, [](int) {});
    const auto communicator = connect(options_of(rank, 2, port));
    struct sigaction action {};
    sigaction(SIGPIPE, nullptr, &action);
    return std::string(action.sa_handler == SIG_IGN || action.sa_handler == SIG_DFL ? "changed" : "as it was");
  });
  for (const auto& end : ranks.ends()) EXPECT_EQ(end.said, "as it was");
}

TEST(CommunicatorConnectTest, ANetworkInterfaceThatIsNotThereIsToldToAll) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    if (rank == 1) setenv("GLOO_SOCKET_IFNAME", "lo,nosuch0", 1);
    const auto communicator = connect(options_of(rank, 2, port));
    return "connected";
  });
  const std::string text = "GLOO_SOCKET_IFNAME='lo,nosuch0': there is no network interface 'nosuch0' with an address; correct it, or unset it";
  EXPECT_EQ(ranks.end(1).said, "invalid argument: " + text);
  EXPECT_EQ(ranks.end(0).said, "training: rank 1 failed: " + text);
  EXPECT_EQ(ranks.end(0).printed + ranks.end(1).printed, "");
}

TEST(CommunicatorConnectTest, UsesTheNetworkInterfaceThatIsNamed) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) {
    setenv("GLOO_SOCKET_IFNAME", "lo", 1);
    const auto communicator = connect(options_of(rank, 2, port));
    return communicator->broadcast_bytes("yes", 0);
  });
  for (const auto& end : ranks.ends()) EXPECT_EQ(end.said, "yes");
}

TEST(CommunicatorConnectTest, AProgramOfItsOwnConnectsByTheVariablesOfItsLauncher) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) {
    for (const char* name : {"WORLD_SIZE", "LOCAL_WORLD_SIZE"}) setenv(name, "2", 1);
    for (const char* name : {"RANK", "LOCAL_RANK"}) setenv(name, std::to_string(rank).c_str(), 1);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    setenv("MASTER_PORT", std::to_string(port.number()).c_str(), 1);
    const std::shared_ptr<Communicator> communicator = connect_ranks();
    return communicator->broadcast_bytes(concat("rank ", communicator->rank(), " of ", communicator->world_size()), 1);
  });
  for (const auto& end : ranks.ends()) EXPECT_EQ(end.said, "rank 1 of 2");
}

TEST(CommunicatorConnectTest, AProgramThatNoLauncherHasStartedIsAlone) {
  for (const char* name : {"RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"}) unsetenv(name);
  EXPECT_EQ(connect_ranks(), nullptr);
  EXPECT_THAT([] { static_cast<void>(connect_ranks({.timeout_seconds = 0.5})); }, ::testing::ThrowsMessage<Error>(HasSubstr("timeout_seconds: must be 1 to 1000000, got 0.5")));
}

TEST(CommunicatorConnectTest, RefusesATensorOfADeviceThatNoGroupIsFor) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    const auto communicator = connect(options_of(rank, 2, port));
    all_reduce(*communicator, at::empty({3}, at::device(at::kMeta)));
    return "";
  });
  for (const auto& end : ranks.ends()) EXPECT_THAT(end.said, StartsWith("invalid argument: a tensor on meta cannot be sent to other ranks: this run has a process group for the CPU only"));
}

TEST(CommunicatorConnectTest, ADeviceGroupOfAnApplicationIsMadeWithAStoreOfItsOwn) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) {
    ConnectOptions options = options_of(rank, 2, port, 7s);
    std::string made;
    options.make_device_group = [&](const c10::intrusive_ptr<c10d::Store>& store, int of, int size, std::chrono::milliseconds limit) -> c10::intrusive_ptr<c10d::Backend> {
      store->set(concat("k", of), "v");
      store->wait({"k0", "k1"}, limit);
      made = concat(of, " of ", size, " ", limit.count());
      return {};
    };
    const auto communicator = connect(options);
    return made;
  });
  EXPECT_EQ(ranks.end(0).said, "0 of 2 7000");
  EXPECT_EQ(ranks.end(1).said, "1 of 2 7000");
}

TEST(CommunicatorConnectTest, ADeviceGroupThatCannotBeMadeIsToldToAll) {
  const HeldPort port;
  ForkedRanks ranks(3, [&](int rank) -> std::string {
    ConnectOptions options = options_of(rank, 3, port);
    if (rank == 1) options.make_device_group = [](const auto&...) -> c10::intrusive_ptr<c10d::Backend> { throw std::runtime_error("no device"); };
    const auto communicator = connect(options);
    return "connected";
  });
  EXPECT_EQ(ranks.end(1).said, "unsupported: the ranks' devices cannot be connected: no device");
  for (const int rank : {0, 2}) EXPECT_EQ(ranks.end(rank).said, "training: rank 1 failed: the ranks' devices cannot be connected: no device");
}

}  // namespace
}  // namespace marlin::distributed
