// Promise: gradients of several ranks are summed, whatever arrives when, and what goes wrong on one rank is heard of by all.
#include "backends/gradient_buckets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "gradient_buckets_support.h"
#include "on_ranks.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StrEq;
using testing::kGo;
using testing::kOneEach;
using testing::on_ranks;
using testing::OnBackward;
using testing::parameter;
using testing::ThrowsError;

class GradientBucketsTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, GradientBucketsTest, ::testing::Values(1, 2, 3, 4));

TEST_P(GradientBucketsTest, SumsAllTypesEachInBuffersOfItsOwn) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const std::vector<at::ScalarType> types = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf, at::kComplexFloat, at::kFloat, at::kBFloat16};
    std::vector<at::Tensor> parameters;
    for (size_t i = 0; i < types.size(); ++i) parameters.push_back(parameter({static_cast<int64_t>(3 * i + 1), 2}, 1.0, types[i]));
    GradientBuckets buckets(parameters, ranks);
    EXPECT_THAT(buckets.bucket_sizes(), SizeIs(5));
    for (int step = 0; step < 3; ++step) {
      at::Tensor loss = at::zeros({}, at::kDouble);
      for (const at::Tensor& one : parameters) {
        if (one.scalar_type() != at::kHalf || ranks.rank() == 0) loss = loss + at::real(one.is_complex() ? one : one.to(at::kDouble)).sum().to(at::kDouble) * (ranks.rank() + 1.0);
        if (step > 0) one.mutable_grad() = at::Tensor();
      }
      buckets.arm();
      loss.backward();
      ASSERT_TRUE(buckets.finish());
      const int world = ranks.world_size();
      for (const at::Tensor& one : parameters) {
        ASSERT_TRUE(one.grad().defined());
        EXPECT_EQ(one.grad().scalar_type(), one.scalar_type());
        EXPECT_TRUE(at::equal(one.grad(), at::full_like(one, one.scalar_type() == at::kHalf ? 1 : world * (world + 1) / 2))) << one.grad();
      }
    }
  });
}

// Were buckets sent as they fill up, ranks would here add buckets of different sizes, at which Gloo ends the process.
TEST_P(GradientBucketsTest, OrderOfBucketsIsThatOfParametersWhateverOrderGradientsArriveIn) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    std::vector<at::Tensor> parameters;
    for (int64_t i = 0; i < 12; ++i) parameters.push_back(parameter({10 * i + 1}));
    GradientBuckets buckets(parameters, ranks, kOneEach);
    for (int step = 0; step < 10; ++step) {
      at::Tensor loss = at::zeros({});
      for (size_t i = 0; i < parameters.size(); ++i) {
        const size_t place = (i * static_cast<size_t>(ranks.rank() % 2 == 0 ? 1 : 5) + static_cast<size_t>(step)) % parameters.size();
        loss = loss + parameters[place].sum() * static_cast<double>(place);
      }
      for (const at::Tensor& one : parameters) one.mutable_grad() = at::Tensor();
      buckets.arm();
      loss.backward();
      ASSERT_TRUE(buckets.finish());
      for (size_t i = 0; i < parameters.size(); ++i) EXPECT_TRUE(at::equal(parameters[i].grad(), at::full_like(parameters[i], static_cast<double>(i) * ranks.world_size())));
    }
  });
}

TEST_P(GradientBucketsTest, GradientsThatArePutTogetherElsewhereKeepTheirParametersLayout) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const std::vector<at::Tensor> parameters = {at::ones({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_(), at::ones({3, 5}).t().detach().requires_grad_(),
                                                at::ones({4, 6}).slice(1, 0, 6, 2).detach().requires_grad_(), parameter({}), parameter({0, 3})};
    GradientBuckets buckets(parameters, ranks);
    at::Tensor loss = at::zeros({});
    std::vector<at::Tensor> factors;
    for (const at::Tensor& one : parameters) {
      factors.push_back(at::arange(one.numel(), at::kFloat).view(one.sizes()));
      loss = loss + (one * factors.back()).sum();
    }
    buckets.arm();
    loss.backward();
    ASSERT_TRUE(buckets.finish());
    for (size_t i = 0; i < parameters.size(); ++i) {
      EXPECT_TRUE(at::equal(parameters[i].grad(), factors[i] * ranks.world_size())) << i;
      EXPECT_TRUE(i == 2 || parameters[i].grad().strides() == parameters[i].strides()) << i;
    }
    parameters[0].mutable_grad() = factors[0].contiguous();  // laid out otherwise
    buckets.arm();
    ASSERT_TRUE(buckets.finish());
    EXPECT_TRUE(at::equal(parameters[0].grad(), factors[0] * ranks.world_size()));
    EXPECT_EQ(parameters[0].grad().strides(), parameters[0].strides());
  });
}

TEST_P(GradientBucketsTest, ARankWithoutSamplesAddsNothingNotEvenNaN) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const at::Tensor used = parameter({4}), unused = parameter({3});
    for (const bool set_to_none : {true, false}) {
      GradientBuckets buckets({used, unused}, ranks, kOneEach);
      const bool contributes = ranks.rank() == ranks.world_size() - 1;
      for (const at::Tensor& one : {used, unused}) one.mutable_grad() = set_to_none ? at::Tensor() : at::zeros_like(one);
      buckets.arm(contributes);
      (contributes ? (used * 3).sum() : at::empty({0}).mean() * (used.sum() + unused.sum()) * 0).backward();
      ASSERT_TRUE(buckets.finish());
      EXPECT_TRUE(at::equal(used.grad(), at::full({4}, 3.0F))) << used.grad();
      EXPECT_EQ(unused.grad().defined(), !set_to_none) << "the last rank has zeros for it, if any";
    }
  });
}

TEST_P(GradientBucketsTest, RanksThatAbandonAStepTogetherSendNothingAndGoOn) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const at::Tensor one = parameter({4}), two = parameter({3});
    GradientBuckets buckets({one, two}, ranks, kOneEach);
    for (int step = 0; step < 6; ++step) {
      one.mutable_grad() = two.mutable_grad() = at::Tensor();
      at::Tensor status = at::full({1}, step % 2 == 1 && ranks.rank() == 0 ? 1.0 : 0.0, at::kDouble);
      const auto sum = ranks.all_reduce(status);
      int asked = 0;
      buckets.arm(true, [&] {
        sum->wait();
        ++asked;
        return status.item<double>() == 0.0;
      });
      if (step < 4 || ranks.rank() > 0) ((one.sum() + two.sum()) * (ranks.rank() + 1.0)).backward();  // else a rank without any backward
      const double world = ranks.world_size(), total = world * (world + 1) / 2 - (step < 4 ? 0 : 1);
      EXPECT_EQ(buckets.finish(), step % 2 == 0);
      EXPECT_EQ(asked, 1);
      const bool abandoned = step % 2 == 1;
      const double expected = !abandoned ? total : step < 4 || ranks.rank() > 0 ? ranks.rank() + 1.0 : 0.0;  // or its own
      EXPECT_EQ(one.grad().defined(), expected > 0);
      EXPECT_TRUE(!one.grad().defined() || at::equal(one.grad(), at::full({4}, expected, at::kFloat))) << one.grad();
    }
  });
}

TEST_P(GradientBucketsTest, AfterAnExceptionInBackwardOnAllRanksWhereverTheyWereTheNextStepIsRight) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    std::vector<at::Tensor> chain;
    for (int i = 0; i < 6; ++i) chain.push_back(parameter({i + 1}, 2.0));
    GradientBuckets buckets(chain, ranks, kOneEach);
    const std::function<void()> bomb = [] { throw std::runtime_error("bomb"); };
    for (const bool asks : {false, true}) {
      for (int step = 0; step < 7; ++step) {
        for (const at::Tensor& one : chain) one.mutable_grad() = at::Tensor();
        const int at = step % 2 == 1 ? (ranks.rank() * 2 + step) % 6 : -1;  // a different place on each rank
        at::Tensor loss = at::ones({});
        for (int i = 0; i < 6; ++i) {
          loss = loss * chain[static_cast<size_t>(i)].sum();
          if (i == at) loss = OnBackward::apply(loss, &bomb);
        }
        buckets.arm(true, asks ? GradientBuckets::BeforeFirst([] { return true; }) : kGo);
        if (at >= 0) {
          EXPECT_THROW(loss.backward(), std::runtime_error);
          continue;
        }
        loss.backward();
        ASSERT_TRUE(buckets.finish());
        for (const at::Tensor& one : chain) {
          const double product = 2.0 * 4 * 6 * 8 * 10 * 12 / (2.0 * static_cast<double>(one.numel()));
          EXPECT_TRUE(at::allclose(one.grad(), at::full_like(one, product * ranks.world_size()))) << one.grad();
        }
      }
    }
  });
}

TEST_P(GradientBucketsTest, DestroyedInTheMiddleOfAStepItNeitherHangsNorLeavesHooks) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const at::Tensor one = parameter({4}), two = parameter({300});
    for (int i = 0; i < 20; ++i) {
      GradientBuckets buckets({one, two}, ranks, kOneEach);
      buckets.arm();
      two.sum().backward();  // its bucket is sent
    }
    (one.sum() + two.sum()).backward();
    GradientBuckets buckets({one, two}, ranks, kOneEach);
    one.mutable_grad() = two.mutable_grad() = at::Tensor();
    buckets.arm();
    (one.sum() + two.sum()).backward();
    ASSERT_TRUE(buckets.finish());
    EXPECT_TRUE(at::equal(two.grad(), at::full({300}, static_cast<float>(ranks.world_size()))));
  });
}

TEST(GradientBucketsRanksTest, ARankThatFailsInBackwardIsHeardOfByTheOthersInFinish) {
  on_ranks(3, [](Communicator& ranks) {
    const at::Tensor one = parameter({4}), two = parameter({3});
    const std::function<void()> bomb = [] { throw std::runtime_error("bomb"); };
    GradientBuckets buckets({one, two}, ranks, kOneEach);
    buckets.arm();
    at::Tensor loss = one.sum();
    if (ranks.rank() == 1) loss = OnBackward::apply(loss, &bomb);
    loss = loss * two.sum();
    if (ranks.rank() == 1) {
      EXPECT_THROW(loss.backward(), std::runtime_error);
      ranks.fail("bomb");
    } else {
      loss.backward();
      EXPECT_THAT([&] { static_cast<void>(buckets.finish()); }, ThrowsError(Errc::kTraining, HasSubstr("rank 1 failed: bomb")));
      EXPECT_THAT([&] { buckets.arm(); static_cast<void>(buckets.finish()); }, ThrowsError(Errc::kTraining, HasSubstr("rank 1 failed: bomb")));
    }
  });
}

TEST(GradientBucketsRanksTest, RanksThatTrainDifferentParametersAreToldSo) {
  on_ranks(3, [](Communicator& ranks) {
    const std::vector<at::Tensor> parameters = {parameter({2}), parameter({ranks.rank() == 2 ? 4 : 3})};
    EXPECT_THAT([&] { GradientBuckets(parameters, ranks); },
                ThrowsError(Errc::kMismatch, StrEq("ddp: ranks train different parameters; make model and optimizers alike on all of them, in the same order: rank 2 has "
                                                   "'parameter 1: Float [4]' where rank 0 has 'parameter 1: Float [3]'")));
  });
}

TEST_P(GradientBucketsTest, ParametersThatAreFrozenOrTakenInLaterMakeNewBuckets) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const at::Tensor one = parameter({4}), two = at::ones({300});
    GradientBuckets buckets({one, two}, ranks);
    const auto step = [&](bool whole) {
      one.mutable_grad() = two.mutable_grad() = at::Tensor();
      buckets.arm();
      (one.sum() + two.sum()).backward();
      ASSERT_TRUE(buckets.finish());
      EXPECT_EQ(one.grad().sum().item<int>(), 4 * ranks.world_size());
      EXPECT_EQ(two.grad().defined(), whole);
      EXPECT_TRUE(!whole || two.grad().sum().item<int>() == 300 * ranks.world_size());
    };
    step(false);
    const int64_t small = buckets.bucket_sizes().front();
    two.requires_grad_(true);
    step(true);
    EXPECT_GT(buckets.bucket_sizes().front(), small);
    two.requires_grad_(false);
    step(false);
    EXPECT_THAT(buckets.bucket_sizes(), ElementsAre(small));
  });
}

}  // namespace
}  // namespace marlin
