#include "marlin/core/data/sampler.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "marlin/sdk/text.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;

std::vector<int64_t> numbers(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<int64_t>(), tensor.const_data_ptr<int64_t>() + tensor.numel()};
}

std::vector<int64_t> sorted(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  return values;
}

std::vector<int64_t> first_numbers(int64_t count) {
  std::vector<int64_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

TEST(SamplerTest, OrdersAreFunctionsOfSeedAndEpochAndLeaveTheDefaultGeneratorAlone) {
  const at::Tensor weights = torch::arange(1, 101, torch::kDouble);
  const std::vector<std::shared_ptr<Sampler>> samplers = {std::make_shared<RandomSampler>(100), std::make_shared<WeightedSampler>(weights, 100),
                                                          std::make_shared<WeightedSampler>(weights, 60, false),
                                                          std::make_shared<BucketSampler>(torch::arange(100) % 17, 2)};
  torch::manual_seed(1);
  const at::Tensor expected = torch::rand({4});
  torch::manual_seed(1);
  for (const auto& sampler : samplers) {
    const auto order = numbers(sampler->order({3, 5, 4}));
    EXPECT_EQ(order.size(), static_cast<size_t>(sampler->num_samples()));
    EXPECT_EQ(numbers(sampler->order({3, 5, 4})), order);
    EXPECT_NE(numbers(sampler->order({3, 6, 4})), order) << sampler->kind();
    EXPECT_NE(numbers(sampler->order({4, 5, 4})), order) << sampler->kind();
    EXPECT_NE(numbers(sampler->order({5, 3, 4})), order) << "seed and epoch are not interchangeable";
  }
  EXPECT_TRUE(torch::equal(torch::rand({4}), expected));
  EXPECT_FALSE(SequentialSampler(4).order({}).defined());
}

TEST(SamplerTest, ARandomOrderIsAPermutation) {
  EXPECT_EQ(sorted(numbers(RandomSampler(1000).order({1, 2, 3}))), first_numbers(1000));
}

TEST(SamplerTest, TenMillionSamplesHaveOrders) {
  constexpr int64_t kMany = 10'000'000;
  at::Tensor seen = torch::zeros({kMany}, torch::kBool);
  seen.index_fill_(0, RandomSampler(kMany).order({}), true);
  EXPECT_TRUE(seen.all().item<bool>());
  const at::Tensor drawn = WeightedSampler(torch::ones({kMany}), 1000).order({});
  EXPECT_GT(drawn.max().item<int64_t>(), kMany / 2) << "beyond the 2^24 of at::multinomial there is no edge, either";
}

TEST(SamplerTest, WeightedDrawsComeAsOftenAsTheirWeightsSay) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(concat("seed ", seed));
  const std::vector<double> weights = {0, 1, 2, 0, 3, 0.5, 0};
  constexpr int64_t kDraws = 200000;
  const WeightedSampler sampler(torch::tensor(weights, torch::kDouble), kDraws);
  std::vector<int64_t> counts(weights.size());
  for (const int64_t sample : numbers(sampler.order({seed, 0, 1}))) ++counts.at(static_cast<size_t>(sample));
  for (size_t i = 0; i < weights.size(); ++i) {
    const double p = weights[i] / 6.5, sigma = std::sqrt(kDraws * p * (1 - p));
    EXPECT_NEAR(static_cast<double>(counts[i]), kDraws * p, 5 * sigma) << "sample " << i;
  }
}

TEST(SamplerTest, WithoutReplacementNoSampleComesTwiceAndTheFirstIsDrawnByWeight) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(concat("seed ", seed));
  const WeightedSampler sampler(torch::tensor({1.0, 0.0, 3.0, 2.0}, torch::kDouble), 3, false);
  constexpr int64_t kEpochs = 20000;
  std::vector<int64_t> firsts(4);
  for (int64_t epoch = 0; epoch < kEpochs; ++epoch) {
    const auto order = numbers(sampler.order({seed, epoch, 1}));
    ASSERT_EQ(sorted(order), (std::vector<int64_t>{0, 2, 3})) << "never the one without weight";
    ++firsts.at(static_cast<size_t>(order[0]));
  }
  const double expected[] = {1 / 6.0, 0, 3 / 6.0, 2 / 6.0};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(static_cast<double>(firsts[i]), kEpochs * expected[i], 5 * std::sqrt(kEpochs * expected[i] * (1 - expected[i]))) << "sample " << i;
  }
}

TEST(SamplerTest, TinyAndHugeWeightsAreDrawnFrom) {
  const at::Tensor weights = torch::tensor({1e-300, 0.0, 1e-300, 0.0}, torch::kDouble);
  EXPECT_EQ(sorted(numbers(WeightedSampler(weights, 2, false).order({}))), (std::vector<int64_t>{0, 2}));
  for (const int64_t sample : numbers(WeightedSampler(weights, 1000).order({}))) EXPECT_TRUE(sample == 0 || sample == 2);
  EXPECT_EQ(sorted(numbers(WeightedSampler(torch::tensor({1e300, 0.0, 1e-300}, torch::kDouble), 2, false).order({}))), (std::vector<int64_t>{0, 2}));
}

TEST(SamplerTest, WeightsThatCannotBeDrawnFromAreRefused) {
  const auto make = [](const at::Tensor& weights, int64_t count, bool replacement) { return [=] { WeightedSampler(weights, count, replacement); }; };
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  EXPECT_THAT(make(torch::tensor({1.0, -2.0}), 1, true), ThrowsError(Errc::kInvalidArgument, HasSubstr("weight 1 is -2")));
  EXPECT_THAT(make(torch::tensor({nan, 1.0}), 1, true), ThrowsError(Errc::kInvalidArgument, HasSubstr("weight 0 is nan")));
  EXPECT_THAT(make(torch::tensor({1.0, inf}), 1, true), ThrowsError(Errc::kInvalidArgument, HasSubstr("weight 1 is inf")));
  EXPECT_THAT(make(torch::full({2}, 1e308, torch::kDouble), 1, true), ThrowsError(Errc::kInvalidArgument, HasSubstr("too large")));
  EXPECT_THAT(make(torch::zeros({3}), 1, true), ThrowsError(Errc::kInvalidArgument, HasSubstr("all weights are 0")));
  EXPECT_THAT(make(torch::tensor({1.0, 0.0, 1.0}), 3, false), ThrowsError(Errc::kInvalidArgument, HasSubstr("only 2 of 3 weights")));
  EXPECT_THAT(make(torch::ones({2}), 0, true), ThrowsError(Errc::kInvalidArgument, HasSubstr("at least one sample")));
  EXPECT_THAT(make(torch::ones({2, 2}), 1, true), ThrowsError(Errc::kInvalidArgument, HasSubstr("[2, 2]")));
  EXPECT_THAT(make({}, 1, true), ThrowsError(Errc::kInvalidArgument, HasSubstr("undefined")));
}

TEST(SamplerTest, BucketsHoldEverySampleOnceInBatchesOfAboutOneLength) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const at::Tensor lengths = torch::randint(1, 1000, {4003}, generator, torch::kInt64);
  const auto order = numbers(BucketSampler(lengths, 20).order({1, 2, 10}));
  EXPECT_EQ(sorted(order), first_numbers(4003));
  double spread = 0;
  std::vector<int64_t> shortest;
  for (size_t begin = 0; begin + 10 <= order.size(); begin += 10) {
    const at::Tensor batch = lengths.index_select(0, torch::tensor(std::vector<int64_t>(order.begin() + static_cast<std::ptrdiff_t>(begin), order.begin() + static_cast<std::ptrdiff_t>(begin) + 10)));
    spread += (batch.max() - batch.min()).item<double>() / 400;
    shortest.push_back(batch.min().item<int64_t>());
  }
  EXPECT_LT(spread, 80) << "10 of 200 sorted lengths below 1000; at random it were over 800";
  EXPECT_FALSE(std::is_sorted(shortest.begin(), shortest.begin() + 20)) << "batches do not come from short to long";
}

TEST(SamplerTest, BucketsTakeAnyBatchSizeAndLength) {
  for (const int64_t count : {1, 2, 7, 10}) {
    for (const int64_t batch_size : {1, 3, 10, 1000}) {
      for (const int64_t buckets : {int64_t{1}, int64_t{2}, std::numeric_limits<int64_t>::max()}) {
        EXPECT_EQ(sorted(numbers(BucketSampler(torch::ones({count}, torch::kInt32), buckets).order({0, 0, batch_size}))), first_numbers(count));
      }
    }
  }
  EXPECT_THAT([] { BucketSampler(torch::ones({3}, torch::kLong), 0); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("batches_per_bucket must be at least 1")));
  EXPECT_THAT([] { BucketSampler(torch::ones({3})); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("must be integers")));
}

}  // namespace
}  // namespace marlin
