// Tensors on a device, which go over a group that a plugin makes. The device is one without memory (meta), and the group one that does as it is told.
#include <gmock/gmock.h>

#include <atomic>
#include <stdexcept>

#include "communicator_ranks.h"

namespace marlin::distributed {
namespace {

using ::testing::MatchesRegex;

const std::string kProcess = "\\([^ ]+:[0-9]+\\)";

class Call final : public c10d::Work {
 public:
  explicit Call(bool ends) : ends_(ends) {}
  bool isCompleted() override { return ends_; }
  bool wait(std::chrono::milliseconds) override { return true; }  // puts what follows after it, and returns

 private:
  const bool ends_;
};

struct Told {
  bool ends = true;
  bool throws = false;
  std::atomic<int> shut_down = 0;
};

class FakeGroup final : public c10d::Backend {
 public:
  FakeGroup(int rank, int size, Told& told) : Backend(rank, size), told_(told) {}
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>&, const c10d::AllreduceOptions&) override {
    if (told_.throws) throw std::runtime_error("NCCL error in: x.cpp:1, Duplicate GPU detected");
    return c10::make_intrusive<Call>(told_.ends);
  }
  void shutdown() override { ++told_.shut_down; }

 private:
  Told& told_;
};

ConnectOptions with_device(ConnectOptions options, Told& told) {
  options.make_device_group = [&told](const auto&, int rank, int size, std::chrono::milliseconds) -> c10::intrusive_ptr<c10d::Backend> { return c10::make_intrusive<FakeGroup>(rank, size, told); };
  return options;
}

at::Tensor on_device() { return at::empty({4}, at::kMeta); }

TEST(DeviceGroupTest, TensorsOfTheDeviceGoOverItsGroupWhichIsShutDownAtTheEnd) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    Told told;
    {
      const auto communicator = connect(with_device(options_of(rank, 2, port), told));
      for (int i = 0; i < 1000; ++i) all_reduce(*communicator, on_device());
    }
    return std::to_string(told.shut_down);
  });
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(ranks.end(rank).said, "1");
}

TEST(DeviceGroupTest, ACallThatNeverEndsIsNoticedWhileTheMainThreadWaitsForTheDevice) {
  const HeldPort port;
  const Gate called;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    Told told{.ends = false};
    ConnectOptions options = with_device(options_of(rank, 2, port, 1s), told);
    std::string stuck;
    options.on_stuck = [&](const std::string& message) { stuck += message, called.open(); };
    const auto communicator = connect(options);
    if (rank == 0) communicator->all_reduce(on_device())->wait();  // returns
    called.pass();  // rank 0 waits for the device, rank 1 is elsewhere
    return stuck;
  });
  for (int rank = 0; rank < 2; ++rank) EXPECT_THAT(ranks.end(rank).said, MatchesRegex("rank 1 " + kProcess + " did not answer within 1 s: still busy with something else.*"));
}

TEST(DeviceGroupTest, WhatTheDeviceCannotDoIsSaidOnAllRanks) {
  const HeldPort port;
  ForkedRanks ranks(2, [&](int rank) -> std::string {
    Told told{.throws = rank == 0};
    const auto communicator = connect(with_device(options_of(rank, 2, port), told));
    if (rank == 0) all_reduce(*communicator, on_device());
    work(*communicator);
    return "";
  });
  EXPECT_EQ(ranks.end(0).said, "training: tensors on the device cannot be exchanged with the other ranks: NCCL error in: x.cpp:1, Duplicate GPU detected");
  EXPECT_EQ(ranks.end(1).said, "training: rank 0 failed: tensors on the device cannot be exchanged with the other ranks: NCCL error in: x.cpp:1, Duplicate GPU detected");
}

}  // namespace
}  // namespace marlin::distributed
