#include "marlin/core/data/tensor_loader.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>

#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;

struct Data {
  at::Tensor inputs = torch::arange(46, torch::kFloat).reshape({23, 2});
  at::Tensor targets = torch::arange(23);
};

LoaderRequest request(Stage stage, int64_t batch_size, int rank = 0, int world_size = 1) {
  return {.stage = stage, .batch_size = batch_size, .rank = rank, .world_size = world_size, .seed = 3};
}

std::vector<at::Tensor> targets_left(DataLoader& loader) {
  std::vector<at::Tensor> targets;
  for (Batch batch; loader.next(batch);) targets.push_back(batch.target());
  return targets;
}

TEST(TensorLoaderTest, TrainingIsShuffledAndSamplesStayTogether) {
  const Data data;
  TensorLoader loader({data.inputs, data.targets}, request(Stage::kTrain, 5));
  loader.begin_epoch(0);
  std::vector<at::Tensor> seen;
  for (Batch batch; loader.next(batch);) {
    EXPECT_TRUE(torch::equal(batch.data().select(1, 0), batch.target().to(torch::kFloat) * 2));
    EXPECT_EQ(batch.num_samples, batch.target().size(0));
    EXPECT_EQ(batch.num_global_samples, batch.num_samples);
    seen.push_back(batch.target());
  }
  const at::Tensor all = torch::cat(seen);
  EXPECT_FALSE(torch::equal(all, data.targets));
  EXPECT_TRUE(torch::equal(std::get<0>(all.sort()), data.targets));
  EXPECT_EQ(seen.back().size(0), 3) << "the last batch is short";
}

TEST(TensorLoaderTest, ValidationIsInOrderAndDeliversViews) {
  const Data data;
  TensorLoader loader({data.inputs, data.targets}, request(Stage::kVal, 10));
  loader.begin_epoch(0);
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  EXPECT_TRUE(batch.data().is_alias_of(data.inputs));
  EXPECT_TRUE(torch::equal(batch.target(), data.targets.narrow(0, 0, 10)));
}

TEST(TensorLoaderTest, ShuffleCanBeChosenForEitherStage) {
  const Data data;
  TensorLoader train({data.targets}, request(Stage::kTrain, 23), {.shuffle = false});
  TensorLoader val({data.targets}, request(Stage::kVal, 23), {.shuffle = true});
  Batch batch;
  ASSERT_TRUE(train.next(batch));
  EXPECT_TRUE(torch::equal(batch.data(), data.targets));
  ASSERT_TRUE(val.next(batch));
  EXPECT_FALSE(torch::equal(batch.data(), data.targets));
}

TEST(TensorLoaderTest, CountsAreExact) {
  const Data data;
  TensorLoader keep({data.inputs, data.targets}, request(Stage::kTrain, 10));
  TensorLoader drop({data.inputs, data.targets}, request(Stage::kTrain, 10), {.drop_last = true});
  EXPECT_EQ(keep.num_samples(), 23);
  EXPECT_EQ(keep.num_batches(), 3);
  EXPECT_EQ(drop.num_batches(), 2);
  EXPECT_EQ(targets_left(drop).size(), 2u) << "and as many come";
}

TEST(TensorLoaderTest, AtTheEndTheBatchStaysAsItWas) {
  const Data data;
  TensorLoader loader({data.inputs, data.targets}, request(Stage::kVal, 23));
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  EXPECT_FALSE(loader.next(batch));
  EXPECT_EQ(batch.num_samples, 23);
  EXPECT_EQ(batch.tensors.size(), 2u);
  EXPECT_EQ(loader.consumed_samples(), 23);
}

TEST(TensorLoaderTest, ABatchIsKeptByWhoeverHoldsIt) {
  const Data data;
  TensorLoader loader({data.targets}, request(Stage::kTrain, 10));
  Batch first;
  ASSERT_TRUE(loader.next(first));
  const at::Tensor held = first.data();
  const at::Tensor copy = held.clone();
  ASSERT_TRUE(loader.next(first));
  EXPECT_TRUE(torch::equal(held, copy));
}

TEST(TensorLoaderTest, RanksTogetherHaveTheGlobalBatchForShuffledAndOrderedData) {
  const Data data;
  for (const Stage stage : {Stage::kTrain, Stage::kVal}) {
    TensorLoader alone({data.inputs, data.targets}, request(stage, 6));
    alone.begin_epoch(2);
    const std::vector<at::Tensor> expected = targets_left(alone);
    for (int ranks = 2; ranks <= 4; ++ranks) {
      std::vector<std::vector<at::Tensor>> parts(expected.size());
      for (int rank = 0; rank < ranks; ++rank) {
        TensorLoader loader({data.inputs, data.targets}, request(stage, 6, rank, ranks));
        loader.begin_epoch(2);
        const std::vector<at::Tensor> own = targets_left(loader);
        ASSERT_EQ(own.size(), expected.size());
        for (size_t i = 0; i < own.size(); ++i) parts[i].push_back(own[i]);
      }
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(torch::equal(torch::cat(parts[i]), expected[i]));
    }
  }
}

TEST(TensorLoaderTest, ARankWithoutASampleGetsTensorsOfTheRightShape) {
  const Data data;
  for (const Stage stage : {Stage::kTrain, Stage::kVal}) {
    TensorLoader loader({data.inputs.narrow(0, 0, 9), data.targets.narrow(0, 0, 9)}, request(stage, 8, 1, 2));
    Batch batch;
    ASSERT_TRUE(loader.next(batch));
    ASSERT_TRUE(loader.next(batch));
    EXPECT_EQ(batch.num_samples, 0);
    EXPECT_EQ(batch.num_global_samples, 1);
    EXPECT_EQ(batch.data().sizes(), (std::vector<int64_t>{0, 2}));
  }
}

TEST(TensorLoaderTest, ResumesInTheMiddleOfAnEpoch) {
  const Data data;
  TensorLoader loader({data.inputs, data.targets}, request(Stage::kTrain, 5));
  loader.begin_epoch(7);
  Batch batch;
  ASSERT_TRUE(loader.next(batch));
  ASSERT_TRUE(loader.next(batch));
  const StateDict position = loader.get_state();
  const std::vector<at::Tensor> expected = targets_left(loader);

  TensorLoader fresh({data.inputs, data.targets}, request(Stage::kTrain, 5));
  fresh.begin_epoch(0);
  ASSERT_TRUE(fresh.next(batch));
  fresh.update_state(position);
  EXPECT_EQ(fresh.consumed_samples(), 10);
  const std::vector<at::Tensor> got = targets_left(fresh);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(torch::equal(got[i], expected[i]));
}

TEST(TensorLoaderTest, ASamplerDecidesWhichSamplesCome) {
  const Data data;
  const auto sampler = std::make_shared<WeightedSampler>((data.targets % 2).to(torch::kDouble), 50);
  TensorLoader loader({data.inputs, data.targets}, request(Stage::kTrain, 8), {.sampler = sampler});
  EXPECT_EQ(loader.num_samples(), 50);
  EXPECT_EQ(loader.num_batches(), 7);
  loader.begin_epoch(1);
  for (Batch batch; loader.next(batch);) {
    EXPECT_TRUE((batch.target() % 2 == 1).all().item<bool>());
    EXPECT_TRUE(torch::equal(batch.data().select(1, 0), batch.target().to(torch::kFloat) * 2));
  }
  EXPECT_THAT([&] { TensorLoader({data.targets}, request(Stage::kTrain, 8), {.shuffle = true, .sampler = sampler}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("not both")));
}

TEST(TensorLoaderTest, OtherSamplesOfTheSameShapesAreTold) {
  const Data data;
  const auto differ = [&](std::vector<at::Tensor> ours, TensorLoaderOptions options = {}) {
    const TensorLoader saved({data.inputs, data.targets}, request(Stage::kTrain, 5));
    return TensorLoader(std::move(ours), request(Stage::kTrain, 5), options).differences(saved.get_state()).size();
  };
  EXPECT_EQ(differ({data.inputs, data.targets}), 0u);
  EXPECT_EQ(differ({data.inputs.clone(), data.targets.clone()}), 0u) << "where they lie is of no meaning";
  EXPECT_EQ(differ({data.inputs.t().contiguous().t(), data.targets}), 0u);
  at::Tensor changed = data.inputs.clone();
  changed[22][1] += 1;
  EXPECT_EQ(differ({changed, data.targets}), 1u) << "the last sample is looked at";
  EXPECT_EQ(differ({data.inputs, data.targets.to(torch::kInt)}), 1u);
  EXPECT_EQ(differ({data.inputs.unsqueeze(1), data.targets}), 1u);
  EXPECT_EQ(differ({changed, data.targets}, {.fingerprint = ""}), 0u) << "not compared";
  EXPECT_EQ(differ({data.inputs, data.targets}, {.fingerprint = "v2"}), 1u);
  TensorLoader other({changed, data.targets}, request(Stage::kTrain, 5));
  const TensorLoader saved({data.inputs, data.targets}, request(Stage::kTrain, 5));
  EXPECT_THAT([&] { other.update_state(saved.get_state()); }, ThrowsError(Errc::kMismatch, HasSubstr("data set: other samples, fingerprint ")));
}

TEST(TensorLoaderTest, RefusesTensorsThatAreNoDataSet) {
  const LoaderRequest any = request(Stage::kTrain, 1);
  EXPECT_THAT([&] { TensorLoader({}, any); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("at least one tensor")));
  EXPECT_THAT([&] { TensorLoader({torch::zeros({2}), at::Tensor()}, any); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("tensor 1 of the data set is undefined")));
  EXPECT_THAT([&] { TensorLoader({torch::zeros({})}, any); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("no dimension")));
  EXPECT_THAT([&] { TensorLoader({torch::zeros({2}), torch::zeros({3})}, any); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("tensor 1 of the data set has 3 samples, tensor 0 has 2")));
  EXPECT_THAT([&] { TensorLoader({torch::zeros({0, 3})}, any); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("at least one sample")));
  EXPECT_THAT([&] { TensorLoader({torch::zeros({2}), torch::zeros({2}, torch::kMeta)}, any); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("is on meta")));
}

}  // namespace
}  // namespace marlin
