#include "marlin/core/data/epoch_order.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <numeric>

#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;

LoaderRequest request(int64_t batch_size, int rank = 0, int world_size = 1, uint64_t seed = 0) {
  return {.stage = Stage::kTrain, .batch_size = batch_size, .rank = rank, .world_size = world_size, .seed = seed};
}

std::vector<int64_t> numbers(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<int64_t>(), tensor.const_data_ptr<int64_t>() + tensor.numel()};
}

// The samples of every batch that is left of an epoch.
std::vector<std::vector<int64_t>> rest(EpochOrder& order) {
  std::vector<std::vector<int64_t>> batches;
  while (const auto slice = order.next()) batches.push_back(numbers(order.indices(slice->begin, slice->end)));
  return batches;
}

std::vector<std::vector<int64_t>> epoch(EpochOrder& order, int64_t number) {
  order.begin_epoch(number);
  return rest(order);
}

TEST(EpochOrderTest, EveryEpochHoldsEverySampleOnce) {
  EpochOrder order(103, request(10), true, false);
  for (int64_t e = 0; e < 3; ++e) {
    std::vector<int64_t> all;
    for (const auto& batch : epoch(order, e)) all.insert(all.end(), batch.begin(), batch.end());
    std::sort(all.begin(), all.end());
    std::vector<int64_t> expected(103);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(all, expected);
  }
}

TEST(EpochOrderTest, OrderDependsOnSeedAndEpochOnly) {
  EpochOrder a(50, request(7, 0, 1, 5), true, false);
  EpochOrder b(50, request(7, 0, 1, 5), true, false);
  (void)epoch(a, 0);
  EXPECT_EQ(epoch(a, 3), epoch(b, 3));
  EXPECT_NE(epoch(a, 3), epoch(a, 4));
  EpochOrder other_seed(50, request(7, 0, 1, 6), true, false);
  EXPECT_NE(epoch(a, 3), epoch(other_seed, 3));
}

TEST(EpochOrderTest, SeedAndEpochAreNotInterchangeable) {
  EpochOrder seed1(50, request(7, 0, 1, 1), true, false);
  EpochOrder seed0(50, request(7, 0, 1, 0), true, false);
  EXPECT_NE(epoch(seed1, 0), epoch(seed0, 1));
}

TEST(EpochOrderTest, LeavesTheGlobalGeneratorAlone) {
  torch::manual_seed(1);
  const at::Tensor expected = torch::rand({4});
  torch::manual_seed(1);
  EpochOrder order(50, request(7), true, false);
  (void)epoch(order, 2);
  EXPECT_TRUE(torch::equal(torch::rand({4}), expected));
}

TEST(EpochOrderTest, GlobalBatchesAreTheSameForAnyNumberOfRanks) {
  EpochOrder alone(23, request(10), true, false);
  const auto expected = epoch(alone, 1);
  for (int ranks = 1; ranks <= 4; ++ranks) {
    std::vector<std::vector<int64_t>> joined(expected.size());
    for (int rank = 0; rank < ranks; ++rank) {
      EpochOrder order(23, request(10, rank, ranks), true, false);
      const auto own = epoch(order, 1);
      ASSERT_EQ(own.size(), expected.size()) << "every rank has a part in every batch";
      for (size_t i = 0; i < own.size(); ++i) joined[i].insert(joined[i].end(), own[i].begin(), own[i].end());
    }
    EXPECT_EQ(joined, expected) << ranks << " ranks";
  }
}

TEST(EpochOrderTest, SlicesDifferByOneSampleAtMostAndTheFirstRanksHaveMore) {
  std::vector<int64_t> sizes;
  for (int rank = 0; rank < 4; ++rank) {
    EpochOrder order(10, request(10, rank, 4), false, false);
    const auto slice = order.next();
    sizes.push_back(slice->end - slice->begin);
    EXPECT_EQ(slice->num_global_samples, 10);
  }
  EXPECT_EQ(sizes, (std::vector<int64_t>{3, 3, 2, 2}));
}

TEST(EpochOrderTest, ARankMayHaveNoSampleOfAShortLastBatch) {
  EpochOrder order(9, request(8, 1, 2), false, false);
  (void)order.next();
  const auto last = order.next();
  ASSERT_TRUE(last.has_value());
  EXPECT_EQ(last->begin, last->end);
  EXPECT_EQ(last->num_global_samples, 1);
  EXPECT_FALSE(order.next().has_value());
}

TEST(EpochOrderTest, DropLastLeavesOnlyAShortBatchOut) {
  EpochOrder shorter(23, request(10), true, true);
  EXPECT_EQ(epoch(shorter, 0).size(), 2u);
  EXPECT_EQ(shorter.consumed_samples(), 20);
  EpochOrder exact(20, request(10), true, true);
  EXPECT_EQ(epoch(exact, 0).size(), 2u);
}

TEST(EpochOrderTest, UnshuffledHasNoIndices) {
  EpochOrder order(5, request(2), false, false);
  EXPECT_FALSE(order.indices(0, 2).defined());
}

TEST(EpochOrderTest, FromAPositionFollowsWhatWouldHaveFollowedThere) {
  EpochOrder order(23, request(5, 0, 1, 9), true, false);
  const auto whole = epoch(order, 4);
  order.begin_epoch(4);
  for (int i = 0; i < 3; ++i) (void)order.next();
  const StateDict position = order.get_state();
  EXPECT_EQ(position.at("epoch").as_int(), 4);
  EXPECT_EQ(position.at("consumed_samples").as_int(), 15);
  EXPECT_EQ(position.at("num_samples").as_int(), 23);

  EpochOrder fresh(23, request(5, 0, 1, 9), true, false);
  fresh.update_state(position);
  EXPECT_EQ(rest(fresh), (std::vector<std::vector<int64_t>>(whole.begin() + 3, whole.end())));
  EXPECT_EQ(epoch(fresh, 5), epoch(order, 5));
}

TEST(EpochOrderTest, APositionHoldsForAnotherNumberOfRanksAndAnotherBatchSize) {
  EpochOrder order(20, request(4), true, false);
  order.begin_epoch(1);
  const auto order_of_epoch = numbers(order.indices(0, 20));
  (void)order.next();
  EpochOrder second(20, request(8, 1, 2), true, false);
  second.update_state(order.get_state());
  const auto slice = second.next();
  EXPECT_EQ(numbers(second.indices(slice->begin, slice->end)), (std::vector<int64_t>(order_of_epoch.begin() + 8, order_of_epoch.begin() + 12)));
}

TEST(EpochOrderTest, AtTheEndOfAnEpochNothingFollows) {
  EpochOrder order(6, request(3), true, false);
  (void)epoch(order, 0);
  EpochOrder fresh(6, request(3), true, false);
  fresh.update_state(order.get_state());
  EXPECT_FALSE(fresh.next().has_value());
}

TEST(EpochOrderTest, APositionOfAnotherDataSetIsRefusedAndChangesNothing) {
  EpochOrder order(10, request(2), true, false);
  order.begin_epoch(1);
  (void)order.next();
  EXPECT_THAT([&] { order.update_state({{"epoch", 0}, {"consumed_samples", 0}, {"num_samples", 11}}); }, ThrowsError(Errc::kMismatch, HasSubstr("data set: 11 samples an epoch in the file, 10 in this run")));
  EXPECT_THAT([&] { order.update_state({{"epoch", 0}, {"consumed_samples", 12}, {"num_samples", 10}}); }, ThrowsError(Errc::kMismatch, HasSubstr("sample 12 of 10")));
  EXPECT_THAT([&] { order.update_state({{"epoch", "one"}, {"consumed_samples", 0}, {"num_samples", 10}}); }, ThrowsError(Errc::kMismatch, HasSubstr("'epoch' must be an int, found string")));
  EXPECT_THAT([&] { order.update_state({}); }, ThrowsError(Errc::kMismatch, HasSubstr("'epoch' must be an int, found nothing")));
  EXPECT_EQ(order.get_state().at("epoch").as_int(), 1);
  EXPECT_EQ(order.consumed_samples(), 2);
}

TEST(EpochOrderTest, WithinAnEpochAnotherSeedOrBatchSizeChangesNoOrder) {
  const auto sampler = std::make_shared<BucketSampler>(torch::arange(40) % 7, 2);
  EpochOrder before(40, request(4, 0, 1, 1), sampler, false);
  before.begin_epoch(2);
  const auto whole = numbers(before.indices(0, 40));
  (void)before.next();
  for (const bool drop_last : {false, true}) {
    EpochOrder after(40, request(7, 0, 1, 2), sampler, drop_last);
    after.update_state(before.get_state());
    std::vector<int64_t> left;
    for (const auto& batch : rest(after)) left.insert(left.end(), batch.begin(), batch.end());
    EXPECT_EQ(left, (std::vector<int64_t>(whole.begin() + 4, whole.begin() + (drop_last ? 39 : 40))));
    EXPECT_TRUE(equal(Value(after.get_state().at("seed")), Value(1))) << "and it can be saved again";
    EpochOrder own(40, request(7, 0, 1, 2), sampler, drop_last);
    EXPECT_EQ(epoch(after, 2), epoch(own, 2)) << "begun anew, it is this run's order";
  }
}

TEST(EpochOrderTest, ASeedAboveTheSignedRangeIsKept) {
  EpochOrder before(20, request(3, 0, 1, 0xFFFFFFFFFFFFFFF0u), true, false);
  (void)before.next();
  EpochOrder after(20, request(3, 0, 1, 1), true, false);
  after.update_state(before.get_state());
  EXPECT_EQ(after.seed(), 0xFFFFFFFFFFFFFFF0u);
  EXPECT_EQ(rest(after), rest(before));
}

TEST(EpochOrderTest, PositionsOfOlderFilesAreTaken) {
  EpochOrder order(10, request(2), true, false);
  const auto whole = epoch(order, 3);
  order.update_state({{"epoch", 3}, {"consumed_samples", 4}, {"num_samples", 10}});
  EXPECT_EQ(rest(order), (std::vector<std::vector<int64_t>>(whole.begin() + 2, whole.end())));
}

TEST(EpochOrderTest, AnotherLengthFingerprintOrSamplerIsToldInOneSentence) {
  const auto made = [](int64_t size, const char* print, std::shared_ptr<const Sampler> sampler) {
    return EpochOrder(size, request(2), std::move(sampler), false, [print] { return std::string(print); });
  };
  const auto random = [](int64_t size) { return std::make_shared<RandomSampler>(size); };
  const auto sentences = [](const EpochOrder& order, const EpochOrder& saved) { return order.differences(saved.get_state()); };
  const EpochOrder order = made(10, "a", random(10));
  EXPECT_TRUE(sentences(order, made(10, "a", random(10))).empty());
  EXPECT_TRUE(sentences(order, made(10, "", random(10))).empty()) << "what was not kept is not compared";
  EXPECT_TRUE(sentences(made(10, "", random(10)), order).empty());
  using Texts = std::vector<std::string>;
  EXPECT_EQ(sentences(order, made(11, "b", random(11))), Texts{"data set: 11 samples an epoch in the file, 10 in this run"});
  EXPECT_EQ(sentences(order, made(11, "b", random(10))), Texts{"data set: 11 samples to choose from in the file, 10 in this run"});
  EXPECT_EQ(sentences(order, made(10, "b", random(10))), Texts{"data set: other samples, fingerprint b in the file, a in this run"});
  EpochOrder ordered = made(10, "a", std::make_shared<SequentialSampler>(10));
  EXPECT_THAT([&] { ordered.update_state(order.get_state()); }, ThrowsError(Errc::kMismatch, ::testing::StrEq("loader position: it is in the order of a sampler 'random', this run has 'sequential'")));
}

TEST(EpochOrderTest, AFingerprintIsMadeOnceAndNotBeforeItIsNeeded) {
  int made = 0;
  EpochOrder order(10, request(2), std::make_shared<RandomSampler>(10), false, [&made] { return std::to_string(++made); });
  order.begin_epoch(1);
  (void)order.next();
  order.update_state({{"epoch", 3}, {"consumed_samples", 4}, {"num_samples", 10}});
  EXPECT_EQ(made, 0);
  EXPECT_EQ(order.get_state().at("fingerprint").as_string(), "1");
  EXPECT_EQ(order.get_state().at("fingerprint").as_string(), "1");
}

TEST(EpochOrderTest, AnEpochMayHaveOtherSamplesThanTheDataSet) {
  EpochOrder order(5, request(4), std::make_shared<WeightedSampler>(torch::ones({5}), 13), false);
  EXPECT_EQ(order.num_samples(), 13);
  EXPECT_EQ(order.dataset_samples(), 5);
  EXPECT_EQ(epoch(order, 0).size(), 4u);
}

// Gives what it is told to.
class Given : public Sampler {
 public:
  explicit Given(at::Tensor order) : order_(std::move(order)) {}
  int64_t num_samples() const override { return 3; }
  at::Tensor order(const OrderRequest&) const override { return order_; }
  std::string kind() const override { return "given"; }

 private:
  at::Tensor order_;
};

TEST(EpochOrderTest, ASamplersOrderMustBeOfTheDataSet) {
  const auto asked = [](at::Tensor given, int64_t dataset_samples = 3) {
    return [=] { (void)EpochOrder(dataset_samples, request(1), std::make_shared<Given>(given), false).indices(0, 1); };
  };
  EXPECT_NO_THROW(asked(torch::tensor({2, 0, 2}))());
  EXPECT_THAT(asked(torch::tensor({0, 3, 1})), ThrowsError(Errc::kInvalidArgument, HasSubstr("sampler 'given': its order holds sample 3, but the data set has 3")));
  EXPECT_THAT(asked(torch::tensor({0, -1, 1})), ThrowsError(Errc::kInvalidArgument, HasSubstr("holds sample -1")));
  EXPECT_THAT(asked(torch::tensor({0, 1})), ThrowsError(Errc::kInvalidArgument, HasSubstr("must be int64 [3] on the CPU, and is Long [2] on cpu")));
  EXPECT_THAT(asked(torch::zeros({3})), ThrowsError(Errc::kInvalidArgument, HasSubstr("Float")));
  EXPECT_THAT(asked({}, 2), ThrowsError(Errc::kInvalidArgument, HasSubstr("ends at sample 2")));
  EXPECT_THAT([] { EpochOrder(1, request(1), nullptr, false); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("null")));
}

TEST(EpochOrderTest, RefusesWhatCannotBeCut) {
  EXPECT_THAT([] { EpochOrder(0, request(1), true, false); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("at least one sample")));
  EXPECT_THAT([] { EpochOrder(1, request(0), true, false); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("batch_size must be at least 1, got 0")));
  EXPECT_THAT([] { EpochOrder(1, request(1, 2, 2), true, false); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("rank 2 of 2")));
  EXPECT_THAT([] { EpochOrder(1, request(1, -1, 2), true, false); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("rank -1 of 2")));
}

}  // namespace
}  // namespace marlin
