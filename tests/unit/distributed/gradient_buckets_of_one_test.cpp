// Promise: buckets go when they are full, hold gradients without copies, and survive what is thrown. This needs no second rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <thread>

#include "gradient_buckets_support.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StrEq;
using testing::kGo;
using testing::kHuge;
using testing::kOneEach;
using testing::OnBackward;
using testing::parameter;
using testing::ThrowsError;

// One rank that is all ranks: it logs what it is to do, and fails when told to.
class OneRank final : public Communicator {
 public:
  std::vector<int64_t> sent;                 // elements of each all-reduce
  int waited = 0;
  int fail_send = -1, fail_wait = -1;        // the one that fails, from 0

  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] int world_size() const noexcept override { return 1; }
  [[nodiscard]] std::unique_ptr<Work> all_reduce(at::Tensor tensor) override {
    if (static_cast<int>(sent.size()) == fail_send) throw PeerLost("rank 7 is gone");
    sent.push_back(tensor.numel());
    return std::make_unique<OneWork>(*this);
  }
  void broadcast(at::Tensor, int) override {}
  [[nodiscard]] std::string broadcast_bytes(const std::string& bytes, int) override { return bytes; }
  [[nodiscard]] std::vector<std::string> gather_bytes(const std::string& bytes) override { return {bytes}; }
  void barrier() override {}
  void follow(int) override {}
  void fail(const std::string&) noexcept override {}

 private:
  struct OneWork final : Work {
    explicit OneWork(OneRank& owner) : rank(owner) {}
    void wait() override {
      if (rank.waited++ == rank.fail_wait) throw PeerLost("rank 8 is gone");
    }
    OneRank& rank;
  };
};

TEST(GradientBucketsOfOneTest, ABucketIsSentWhileBackwardStillRuns) {
  OneRank rank;
  const at::Tensor first = parameter({3}), last = parameter({3});
  GradientBuckets buckets({first, last}, rank, kOneEach);
  size_t sent_by_then = 0;
  const std::function<void()> look = [&] { sent_by_then = rank.sent.size(); };
  buckets.arm();
  (OnBackward::apply(first * 2, &look) * last).sum().backward();
  EXPECT_EQ(sent_by_then, 1U);
  EXPECT_THAT(rank.sent, ElementsAre(4, 4)) << "three gradients and one count each";
  EXPECT_TRUE(buckets.finish());
  EXPECT_EQ(rank.waited, 2);
}

// As on a GPU, where hooks run on a thread of autograd's.
TEST(GradientBucketsOfOneTest, BackwardMayRunOnAnotherThread) {
  OneRank rank;
  const at::Tensor one = parameter({3}), two = parameter({3});
  GradientBuckets buckets({one, two}, rank, kOneEach);
  for (int step = 0; step < 3; ++step) {
    one.mutable_grad() = two.mutable_grad() = at::Tensor();
    buckets.arm();
    std::thread([&] { (one.sum() + two.sum()).backward(); }).join();
    EXPECT_THAT(rank.sent, SizeIs(2 * (step + 1)));
    EXPECT_TRUE(buckets.finish());
    EXPECT_EQ(two.grad().sum().item<int>(), 3);
  }
}

TEST(GradientBucketsOfOneTest, LeavesNoHookBehindInAGraphThatOutlivesIt) {
  OneRank rank;
  const at::Tensor one = parameter({3});
  const at::Tensor loss = one.sum();
  const auto node = torch::autograd::impl::grad_accumulator(one);
  for (int i = 0; i < 2; ++i) {
    const GradientBuckets here({one}, rank), there({one}, rank);
    EXPECT_THAT(node->post_hooks(), SizeIs(2));
  }
  EXPECT_THAT(node->post_hooks(), SizeIs(0));
  loss.backward();
}

TEST(GradientBucketsOfOneTest, WithoutOverlapAllIsSentInTheEnd) {
  OneRank rank;
  const at::Tensor one = parameter({3});
  GradientBuckets buckets({one}, rank, {.overlap = false});
  buckets.arm();
  one.sum().backward();
  one.sum().backward();  // and backward may run as often as one likes
  EXPECT_THAT(rank.sent, SizeIs(0));
  EXPECT_TRUE(buckets.finish());
  EXPECT_THAT(rank.sent, SizeIs(1));
  EXPECT_EQ(one.grad().sum().item<int>(), 6);
}

TEST(GradientBucketsOfOneTest, MicroBatchesThatDoNotCloseAStepSendNothing) {
  OneRank rank;
  const at::Tensor one = parameter({3}), two = parameter({3});
  GradientBuckets buckets({one, two}, rank, kOneEach);
  (one.sum() + two.sum()).backward();
  EXPECT_THAT(rank.sent, SizeIs(0));
  buckets.arm();
  two.sum().backward();  // the closing one does not use `one`
  EXPECT_TRUE(buckets.finish());
  EXPECT_EQ(one.grad().sum().item<int>(), 3);
  EXPECT_EQ(two.grad().sum().item<int>(), 6);
}

TEST(GradientBucketsOfOneTest, BucketsFillUpFromTheLastParameterByType) {
  OneRank rank;
  std::vector<at::Tensor> parameters;
  for (int i = 0; i < 4; ++i) {
    parameters.push_back(parameter({16}));                     // 64 bytes
    parameters.push_back(parameter({16}, 1.0, at::kDouble));   // 128 bytes
  }
  const GradientBuckets buckets(parameters, rank, {.bucket_bytes = 256, .first_bucket_bytes = 128});
  // Double 7; double 5 and 3; float 6, 4, 2, 0; double 1.
  EXPECT_THAT(buckets.bucket_sizes(), ElementsAre(128 + 8, 256 + 16, 128 + 8, 256 + 16)) << "the second last parameter is complete before the last";
  const GradientBuckets all(parameters, rank, kHuge);
  EXPECT_THAT(all.bucket_sizes(), SizeIs(2));
  EXPECT_THAT(GradientBuckets({}, rank).bucket_sizes(), SizeIs(0));
}

TEST(GradientBucketsOfOneTest, GradientsAreViewsOfTheSameBuffersStepAfterStepAndCopiedAtMostOnce) {
  OneRank rank;
  const at::Tensor one = parameter({3, 2});
  torch::optim::SGD optimizer({one}, 0.0);
  GradientBuckets buckets({one}, rank);
  const void* place = nullptr;
  for (const bool set_to_none : {true, true, false, false, true, false}) {
    if (place != nullptr) optimizer.zero_grad(set_to_none);
    buckets.arm();
    one.sum().backward();
    EXPECT_TRUE(place == nullptr || set_to_none || one.grad().const_data_ptr() == place) << "it is added to where it lies";
    ASSERT_TRUE(buckets.finish());
    EXPECT_TRUE(place == nullptr || one.grad().const_data_ptr() == place);
    place = one.grad().const_data_ptr();
    EXPECT_EQ(one.grad().sum().item<int>(), 6);
    EXPECT_FALSE(one.grad().is_view()) << "autograd would not let zero_grad() detach it";
  }
}

TEST(GradientBucketsOfOneTest, GradientsThatWereMovedWithinABufferAreTakenAsTheyAre) {
  OneRank rank;
  const at::Tensor one = parameter({2, 2}), two = parameter({2, 2});
  GradientBuckets buckets({one, two}, rank);
  const at::Tensor factors = at::arange(4, at::kFloat).view({2, 2});
  buckets.arm();
  ((one + two) * factors).sum().backward();
  EXPECT_TRUE(buckets.finish());
  std::swap(one.mutable_grad(), two.mutable_grad());
  one.mutable_grad() = one.grad().t();
  buckets.arm();
  (two * 10).sum().backward();
  EXPECT_TRUE(buckets.finish());
  EXPECT_TRUE(at::equal(one.grad(), factors.t())) << one.grad();
  EXPECT_TRUE(at::equal(two.grad(), factors + 10)) << two.grad();
}

TEST(GradientBucketsOfOneTest, AParameterThatIsGivenTwiceCountsOnce) {
  OneRank rank;
  const at::Tensor shared = parameter({4}), other = parameter({4});
  GradientBuckets buckets({shared, other, shared}, rank, kOneEach);
  EXPECT_THAT(buckets.bucket_sizes(), ElementsAre(20, 20)) << "four gradients and a count each";
  size_t sent_by_then = 0;
  const std::function<void()> look = [&] { sent_by_then = rank.sent.size(); };
  buckets.arm();
  (OnBackward::apply(shared * 2, &look) * other).sum().backward();
  EXPECT_EQ(sent_by_then, 1U) << "it stands where it was first given: its gradient is complete late";
  EXPECT_TRUE(buckets.finish());
}

TEST(GradientBucketsOfOneTest, IsAskedOnceBeforeTheFirstBucketAndAlsoIfThereIsNone) {
  OneRank rank;
  const at::Tensor one = parameter({3}), two = parameter({3});
  GradientBuckets buckets({one, two}, rank, kOneEach), none({}, rank);
  for (GradientBuckets* each : {&buckets, &none}) {
    std::vector<size_t> sent;
    rank.sent.clear();
    each->arm(true, [&] {
      sent.push_back(rank.sent.size());
      return true;
    });
    if (each == &buckets) (one.sum() + two.sum()).backward();
    EXPECT_TRUE(each->finish());
    EXPECT_THAT(sent, ElementsAre(0));
  }
  none.arm(true, [] { return false; });
  EXPECT_FALSE(none.finish());
}

TEST(GradientBucketsOfOneTest, WhatIsThrownWhileBackwardRunsLeavesItWholeAndComesOutOfFinish) {
  const at::Tensor one = parameter({3}), two = parameter({3}), three = parameter({3});
  for (int failing = 0; failing < 7; ++failing) {
    OneRank rank;
    GradientBuckets buckets({one, two, three}, rank, kOneEach);
    if (failing < 3) rank.fail_send = failing;
    if (failing >= 3 && failing < 6) rank.fail_wait = failing - 3;
    one.mutable_grad() = two.mutable_grad() = three.mutable_grad() = at::Tensor();
    buckets.arm(true, failing < 6 ? kGo : GradientBuckets::BeforeFirst([]() -> bool { throw PeerLost("rank 9 is gone"); }));
    EXPECT_NO_THROW((one.sum() + two.sum() + three.sum()).backward());
    EXPECT_THROW(static_cast<void>(buckets.finish()), PeerLost);
    EXPECT_EQ(rank.waited, static_cast<int>(rank.sent.size())) << "nothing is under way";
    EXPECT_THAT([&] { static_cast<void>(buckets.finish()); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("finish() without arm()")));

    rank.fail_send = rank.fail_wait = -1;
    for (const at::Tensor& each : {one, two, three}) each.mutable_grad() = at::Tensor();
    buckets.arm();
    (one.sum() + two.sum() + three.sum()).backward();
    EXPECT_TRUE(buckets.finish());
    EXPECT_EQ(one.grad().sum().item<int>() + two.grad().sum().item<int>() + three.grad().sum().item<int>(), 9);
  }
}

TEST(GradientBucketsOfOneTest, SparseGradientsAreRefusedByTheirParameter) {
  OneRank rank;
  const at::Tensor dense = parameter({3}), table = parameter({5, 2});
  GradientBuckets buckets({dense, table}, rank);
  buckets.arm();
  EXPECT_NO_THROW((at::embedding(table, at::arange(2), -1, false, /*sparse=*/true).sum() + dense.sum()).backward());
  EXPECT_THAT([&] { static_cast<void>(buckets.finish()); },
              ThrowsError(Errc::kUnsupported, StrEq("ddp: the gradient of parameter 1 (Float [5, 2]) is sparse, which cannot be summed over ranks: make its layer with sparse=false")));
  EXPECT_THAT(rank.sent, SizeIs(0));
}

TEST(GradientBucketsOfOneTest, ASecondBackwardAfterABucketWasSentIsAnError) {
  OneRank rank;
  const at::Tensor one = parameter({3}), two = parameter({3});
  GradientBuckets buckets({one, two}, rank, kOneEach);
  buckets.arm();
  two.sum().backward();
  EXPECT_NO_THROW(two.sum().backward());
  EXPECT_THAT([&] { static_cast<void>(buckets.finish()); }, ThrowsError(Errc::kUnsupported, HasSubstr("the gradient of parameter 1 (Float [3]) was changed after it had been sent")));
}

TEST(GradientBucketsOfOneTest, SumsHaveNoGraph) {
  OneRank rank;
  const at::Tensor one = parameter({3}, 2.0);
  GradientBuckets buckets({one}, rank);
  buckets.arm();
  (one * one * one).sum().backward({}, /*retain_graph=*/true, /*create_graph=*/true);
  EXPECT_TRUE(buckets.finish());
  EXPECT_TRUE(at::equal(one.grad(), at::full({3}, 12.0F)));
  EXPECT_FALSE(one.grad().requires_grad());
}

// Backward comes by a parameter without a gradient for it: nothing has to wait for it.
TEST(GradientBucketsOfOneTest, GradientsThatBackwardLeavesUndefinedHaveArrived) {
  struct NoGradient : torch::autograd::Function<NoGradient> {
    static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& input, const at::Tensor&) { return input.clone(); }
    static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*, torch::autograd::tensor_list gradients) { return {gradients[0], at::Tensor()}; }
  };
  OneRank rank;
  const at::Tensor one = parameter({3}), touched = parameter({3});
  GradientBuckets buckets({one, touched}, rank, kOneEach);
  buckets.arm();
  NoGradient::apply(one, touched).sum().backward();
  EXPECT_THAT(rank.sent, SizeIs(2)) << "before finish()";
  EXPECT_TRUE(buckets.finish());
  EXPECT_TRUE(one.grad().defined());
  EXPECT_FALSE(touched.grad().defined());
}

TEST(GradientBucketsOfOneTest, WhatIsNoParameterIsRefusedByItsPlace) {
  OneRank rank;
  const at::Tensor one = parameter({3});
  EXPECT_THAT([&] { GradientBuckets({one, at::Tensor()}, rank); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("parameter 1 is undefined")));
  EXPECT_THAT([&] { GradientBuckets({one * 2}, rank); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("parameter 0 is computed from other tensors")));
}

}  // namespace
}  // namespace marlin
