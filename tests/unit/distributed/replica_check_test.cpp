#include "backends/replica_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "on_ranks.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using ::testing::Optional;
using ::testing::StrEq;
using testing::on_ranks;
using testing::ThrowsError;

class ReplicaCheckTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, ReplicaCheckTest, ::testing::Values(1, 2, 3, 4));

// Of many types and layouts; the same on all ranks for the same seed.
NamedTensors some_tensors(int seed) {
  auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(seed));
  const auto random = [&](at::IntArrayRef sizes) { return at::rand(sizes, generator); };
  NamedTensors result;
  result.emplace_back("weight", random({7, 5}).requires_grad_());
  result.emplace_back("double", random({3}).to(at::kDouble));
  result.emplace_back("bfloat16", random({9}).to(at::kBFloat16));
  result.emplace_back("half", random({1}).to(at::kHalf));
  result.emplace_back("count", (random({}) * 1000).to(at::kLong));
  result.emplace_back("mask", random({11}) > 0.5);
  result.emplace_back("int8", (random({3}) * 100).to(at::kChar));
  result.emplace_back("complex", at::complex(random({2}), random({2})));
  result.emplace_back("transposed", random({4, 6}).t());
  result.emplace_back("channels_last", random({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast));
  result.emplace_back("empty", random({0, 3}));
  result.emplace_back("undefined", at::Tensor());
  return result;
}

TEST_P(ReplicaCheckTest, EqualTensorsHaveNoDifference) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    EXPECT_EQ(difference_between_ranks(ranks, some_tensors(1)), std::nullopt);
    EXPECT_EQ(difference_between_ranks(ranks, {}), std::nullopt);
  });
}

TEST_P(ReplicaCheckTest, BroadcastMakesBitsOfAllTypesEqual) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    NamedTensors tensors = some_tensors(100 + ranks.rank());
    const NamedTensors first = some_tensors(100);
    const int64_t version = tensors[0].second._version();
    const bool differs = difference_between_ranks(ranks, tensors).has_value();
    EXPECT_EQ(differs, ranks.world_size() > 1);
    broadcast_from_rank_0(ranks, tensors);
    EXPECT_EQ(difference_between_ranks(ranks, tensors), std::nullopt);
    for (size_t i = 0; i < tensors.size(); ++i) {
      EXPECT_TRUE(!first[i].second.defined() || at::equal(tensors[i].second, first[i].second)) << first[i].first;
    }
    EXPECT_EQ(tensors[0].second._version() > version, ranks.rank() > 0) << "autograd has to know";
    EXPECT_TRUE(tensors[0].second.requires_grad() && tensors[0].second.is_leaf());
  });
}

TEST_P(ReplicaCheckTest, BroadcastsAModuleOfSeveralPiecesWithItsBuffers) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    torch::nn::Sequential module(torch::nn::Linear(3, 4), torch::nn::BatchNorm1d(4));
    module->register_buffer("large", at::full({26 << 20}, ranks.rank(), at::kByte));
    module->register_buffer("larger", at::full({7 << 20}, ranks.rank() + 0.5, at::kFloat));
    module->register_buffer("last", at::full({5}, ranks.rank(), at::kInt));
    {
      const torch::NoGradGuard no_grad;
      for (at::Tensor& parameter : module->parameters()) parameter.fill_(ranks.rank());
    }
    const NamedTensors tensors = named_tensors(*module);
    ASSERT_EQ(tensors.size(), 4U + 3U + 3U);
    broadcast_from_rank_0(ranks, tensors);
    EXPECT_EQ(difference_between_ranks(ranks, tensors), std::nullopt);
    EXPECT_EQ(module->named_buffers()["large"].max().item<int>(), 0);
    EXPECT_EQ(module->named_buffers()["larger"].max().item<float>(), 0.5F);
    EXPECT_EQ(module->named_parameters()["0.weight"].max().item<float>(), 0.0F);
  });
}

TEST(ReplicaCheckTest, NamesTheFirstTensorAndTheRankThatDiffer) {
  on_ranks(3, [](Communicator& ranks) {
    NamedTensors tensors = some_tensors(1);
    const torch::NoGradGuard no_grad;
    if (ranks.rank() == 2) tensors[1].second[1] += 1e-15;
    EXPECT_THAT(difference_between_ranks(ranks, tensors), Optional(StrEq("rank 2 has other values than rank 0 in 'double'")));
    if (ranks.rank() == 1) tensors[0].second[6][4] += 1;
    if (ranks.rank() == 2) tensors[0].second[0][0] += 1;
    EXPECT_THAT(difference_between_ranks(ranks, tensors), Optional(StrEq("ranks 1, 2 have other values than rank 0 in 'weight', the first of 2 tensors that differ")));
  });
}

TEST(ReplicaCheckTest, SeesWhatComparingValuesOrSumsWouldNot) {
  on_ranks(2, [](Communicator& ranks) {
    const bool other = ranks.rank() == 1;
    const auto differ = [&](const at::Tensor& here, const at::Tensor& there) { return difference_between_ranks(ranks, {{"x", other ? there : here}}).has_value(); };
    const float nan = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(differ(at::tensor({0.0F}), at::tensor({-0.0F})));
    EXPECT_TRUE(differ(at::tensor({1.0F, 2.0F}), at::tensor({2.0F, 1.0F}))) << "order";
    EXPECT_TRUE(differ(at::tensor({nan}), at::tensor({-nan})));
    EXPECT_FALSE(differ(at::tensor({nan}), at::tensor({nan})));
    EXPECT_TRUE(differ(at::tensor({1.0F}), at::Tensor()));
    EXPECT_FALSE(differ(at::arange(6).view({2, 3}), at::arange(6).view({2, 3}).t().contiguous().t())) << "the same elements, elsewhere in memory";
  });
}

// All ranks get the same error, nothing is changed, and they can go on.
void expect_refused(const std::function<NamedTensors(int)>& make, const std::string& text, int world_size = 3) {
  on_ranks(world_size, [&](Communicator& ranks) {
    const NamedTensors tensors = make(ranks.rank());
    EXPECT_THAT([&] { broadcast_from_rank_0(ranks, tensors); }, ThrowsError(Errc::kMismatch, StrEq("ddp: ranks have different models; make them alike on all, with the same options: " + text)));
    for (const auto& [name, tensor] : tensors) EXPECT_EQ(tensor.detach().view(-1)[0].item<float>(), static_cast<float>(ranks.rank())) << name;
    EXPECT_EQ(difference_between_ranks(ranks, {{"x", at::ones({3})}}), std::nullopt);
  });
}
at::Tensor of_rank(int rank, at::IntArrayRef sizes) { return at::full(sizes, static_cast<float>(rank)); }

TEST(ReplicaCheckTest, RefusesOtherShapes) {
  expect_refused([](int rank) { return NamedTensors{{"a", of_rank(rank, {2})}, {"fc.weight", of_rank(rank, {10, rank == 1 ? 30 : 20})}}; },
                 "rank 1 has 'fc.weight: Float [10, 30]' where rank 0 has 'fc.weight: Float [10, 20]'");
}
TEST(ReplicaCheckTest, RefusesOtherTypes) {
  expect_refused([](int rank) { return NamedTensors{{"a", rank > 0 ? of_rank(rank, {2}).to(at::kDouble) : of_rank(rank, {2})}}; },
                 "ranks 1, 2 have 'a: Double [2]' where rank 0 has 'a: Float [2]'");
}
TEST(ReplicaCheckTest, RefusesOtherNames) {
  expect_refused([](int rank) { return NamedTensors{{"a", of_rank(rank, {2})}, {rank == 2 ? "c" : "b", of_rank(rank, {2})}}; }, "rank 2 has 'c: Float [2]' where rank 0 has 'b: Float [2]'");
}
TEST(ReplicaCheckTest, RefusesMoreOrFewerTensors) {
  const auto more = [](int rank) {
    NamedTensors tensors{{"a", of_rank(rank, {2})}};
    if (rank == 1) tensors.emplace_back("b", of_rank(rank, {2}));
    return tensors;
  };
  expect_refused(more, "rank 1 has 'b: Float [2]' where rank 0 has nothing more");
  expect_refused([](int rank) { return rank == 1 ? NamedTensors{} : NamedTensors{{"a", of_rank(rank, {2})}}; }, "rank 1 has nothing more where rank 0 has 'a: Float [2]'", 2);
}
TEST(ReplicaCheckTest, RefusesWeightsThatOneRankSharesAndAnotherFreezes) {
  const auto tied = [](int rank) {
    const at::Tensor one = of_rank(rank, {2}), two = rank == 1 ? one : of_rank(rank, {2});
    return NamedTensors{{"a", one}, {"b", two}};
  };
  expect_refused(tied, "rank 1 has 'b: Float [2], the same as a' where rank 0 has 'b: Float [2]'");
  expect_refused([](int rank) { return NamedTensors{{"a", of_rank(rank, {2}).requires_grad_(rank != 2)}}; }, "rank 2 has 'a: Float [2]' where rank 0 has 'a: Float [2], trained'");
}
TEST(ReplicaCheckTest, NamesWithControlCharactersStayInTheirLine) {
  expect_refused([](int rank) { return NamedTensors{{rank == 1 ? "a\nb" : "a", of_rank(rank, {2})}}; }, "rank 1 has 'a\\nb: Float [2]' where rank 0 has 'a: Float [2]'");
}

TEST_P(ReplicaCheckTest, RefusesSparseTensors) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const NamedTensors tensors{{"s", at::eye(3).to_sparse()}};
    const auto refusal = ThrowsError(Errc::kUnsupported, HasSubstr("'s' is a sparse tensor"));
    EXPECT_THAT([&] { broadcast_from_rank_0(ranks, tensors); }, refusal);
    EXPECT_THAT([&] { static_cast<void>(difference_between_ranks(ranks, tensors)); }, refusal);
  });
}

}  // namespace
}  // namespace marlin
