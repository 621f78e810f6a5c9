#include "marlin/core/data/dataset_loader.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>

#include "marlin/core/data/tensor_loader.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;
using torch::data::Example;
using torch::data::TensorExample;

// Sample i is ([i, i], i).
class Pairs : public torch::data::datasets::Dataset<Pairs> {
 public:
  explicit Pairs(size_t size) : size_(size) {}
  Example<> get(size_t index) override {
    const auto value = static_cast<double>(index);
    return {torch::full({2}, value), torch::tensor(static_cast<int64_t>(index))};
  }
  std::optional<size_t> size() const override { return size_; }

 private:
  size_t size_;
};

class Unlabeled : public torch::data::datasets::Dataset<Unlabeled, TensorExample> {
 public:
  TensorExample get(size_t index) override { return torch::full({3}, static_cast<double>(index)); }
  std::optional<size_t> size() const override { return 7; }
};

class Endless : public Pairs {
 public:
  Endless() : Pairs(0) {}
  std::optional<size_t> size() const override { return std::nullopt; }
};

// What to_batch() knows nothing of: words, and only whole batches.
class Words : public torch::data::datasets::BatchDataset<Words, std::vector<std::string>> {
 public:
  std::vector<std::string> get_batch(c10::ArrayRef<size_t> request) override {
    std::vector<std::string> words;
    for (const size_t index : request) words.push_back(std::string(index + 1, 'x'));
    return words;
  }
  std::optional<size_t> size() const override { return 5; }
};

LoaderRequest request(Stage stage, int64_t batch_size, int rank = 0, int world_size = 1) {
  return {.stage = stage, .batch_size = batch_size, .rank = rank, .world_size = world_size, .seed = 4};
}

std::vector<at::Tensor> targets_left(DataLoader& loader) {
  std::vector<at::Tensor> targets;
  for (Batch batch; loader.next(batch);) targets.push_back(batch.target());
  return targets;
}

TEST(DatasetLoaderTest, StacksExamples) {
  const auto loader = make_dataset_loader(Pairs(5), request(Stage::kVal, 3));
  Batch batch;
  ASSERT_TRUE(loader->next(batch));
  EXPECT_EQ(batch.data().sizes(), (std::vector<int64_t>{3, 2}));
  EXPECT_TRUE(torch::equal(batch.target(), torch::tensor({0, 1, 2})));
  EXPECT_EQ(batch.num_samples, 3);
  ASSERT_TRUE(loader->next(batch));
  EXPECT_TRUE(torch::equal(batch.target(), torch::tensor({3, 4})));
  EXPECT_FALSE(loader->next(batch));
}

TEST(DatasetLoaderTest, AppliesTransforms) {
  const auto loader = make_dataset_loader(
      Pairs(6).map(torch::data::transforms::Normalize<>(1.0, 2.0)).map(torch::data::transforms::Stack<>()), request(Stage::kVal, 4));
  Batch batch;
  ASSERT_TRUE(loader->next(batch));
  EXPECT_TRUE(torch::equal(batch.data(), (torch::arange(4, torch::kFloat).reshape({4, 1, 1, 1}).expand({4, 1, 1, 2}) - 1.0) / 2.0))
      << "Normalize adds two dimensions to what is no image";
  EXPECT_EQ(batch.tensors.size(), 2u);
}

TEST(DatasetLoaderTest, UnlabeledDataHaveOneTensorStackedOrNot) {
  const auto single = make_dataset_loader(Unlabeled(), request(Stage::kVal, 4));
  const auto stacked = make_dataset_loader(Unlabeled().map(torch::data::transforms::Stack<TensorExample>()), request(Stage::kVal, 4));
  Batch a, b;
  ASSERT_TRUE(single->next(a));
  ASSERT_TRUE(stacked->next(b));
  EXPECT_EQ(a.tensors.size(), 1u);
  EXPECT_TRUE(torch::equal(a.data(), b.data()));
  EXPECT_THAT([&] { (void)a.target(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("no target")));
}

TEST(DatasetLoaderTest, HasTheOrderOfATensorLoader) {
  const auto loader = make_dataset_loader(Pairs(23), request(Stage::kTrain, 5));
  TensorLoader tensors({torch::zeros({23, 2}), torch::arange(23)}, request(Stage::kTrain, 5));
  loader->begin_epoch(3);
  tensors.begin_epoch(3);
  const auto ours = targets_left(*loader);
  const auto theirs = targets_left(tensors);
  ASSERT_EQ(ours.size(), theirs.size());
  for (size_t i = 0; i < ours.size(); ++i) EXPECT_TRUE(torch::equal(ours[i], theirs[i]));
  EXPECT_EQ(loader->num_batches(), 5);
}

TEST(DatasetLoaderTest, RanksTogetherHaveTheGlobalBatch) {
  const auto alone = make_dataset_loader(Pairs(9), request(Stage::kTrain, 4));
  const auto expected = targets_left(*alone);
  for (int ranks = 2; ranks <= 4; ++ranks) {
    std::vector<std::vector<at::Tensor>> parts(expected.size());
    for (int rank = 0; rank < ranks; ++rank) {
      const auto loader = make_dataset_loader(Pairs(9), request(Stage::kTrain, 4, rank, ranks));
      const auto own = targets_left(*loader);
      ASSERT_EQ(own.size(), expected.size());
      for (size_t i = 0; i < own.size(); ++i) parts[i].push_back(own[i]);
    }
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(torch::equal(torch::cat(parts[i]), expected[i]));
  }
}

TEST(DatasetLoaderTest, ARankWithoutASampleGetsTensorsOfTheRightShape) {
  const auto loader = make_dataset_loader(Pairs(5).map(torch::data::transforms::Stack<>()), request(Stage::kTrain, 4, 1, 2));
  Batch batch;
  ASSERT_TRUE(loader->next(batch));
  ASSERT_TRUE(loader->next(batch));
  EXPECT_EQ(batch.num_samples, 0);
  EXPECT_EQ(batch.num_global_samples, 1);
  EXPECT_EQ(batch.data().sizes(), (std::vector<int64_t>{0, 2}));
}

TEST(DatasetLoaderTest, ResumesInTheMiddleOfAnEpoch) {
  const auto loader = make_dataset_loader(Pairs(11), request(Stage::kTrain, 3));
  loader->begin_epoch(2);
  Batch batch;
  ASSERT_TRUE(loader->next(batch));
  const StateDict position = loader->get_state();
  const auto expected = targets_left(*loader);
  const auto fresh = make_dataset_loader(Pairs(11), request(Stage::kTrain, 3));
  fresh->update_state(position);
  EXPECT_EQ(fresh->consumed_samples(), 3);
  const auto got = targets_left(*fresh);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(torch::equal(got[i], expected[i]));
}

TEST(DatasetLoaderTest, ACollateFunctionMakesBatchesOfAnything) {
  using Loader = DatasetLoader<Words>;
  const auto collate = [](std::vector<std::string>&& words) {
    Batch batch;
    std::vector<int64_t> lengths;
    for (const std::string& word : words) lengths.push_back(static_cast<int64_t>(word.size()));
    batch.tensors = {torch::tensor(lengths)};
    batch.extra = std::move(words);
    return batch;
  };
  const auto loader = make_dataset_loader(Words(), request(Stage::kVal, 2), {}, collate);
  static_assert(!Loader::kKnownBatchType && DatasetLoader<Pairs>::kKnownBatchType);
  Batch batch;
  ASSERT_TRUE(loader->next(batch));
  EXPECT_TRUE(torch::equal(batch.data(), torch::tensor({1, 2})));
  EXPECT_EQ(batch.num_samples, 2);
  EXPECT_EQ(std::any_cast<std::vector<std::string>>(batch.extra)[1], "xx");
  EXPECT_THAT([] { Loader(Words(), request(Stage::kVal, 2)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("need a collate function")));
}

TEST(DatasetLoaderTest, ACollateFunctionReplacesStacking) {
  const auto collate = [](std::vector<Example<>>&& examples) {
    Batch batch = to_batch(examples);
    batch.tensors[1] = batch.tensors[1] * 10;
    return batch;
  };
  const auto loader = make_dataset_loader(Pairs(4), request(Stage::kVal, 4), {}, collate);
  Batch batch;
  ASSERT_TRUE(loader->next(batch));
  EXPECT_TRUE(torch::equal(batch.target(), torch::tensor({0, 10, 20, 30})));
}

TEST(DatasetLoaderTest, ABatchOfAnotherSizeThanAskedForIsRefused) {
  const auto collate = [](std::vector<Example<>>&&) {
    Batch batch;
    batch.tensors = {torch::zeros({7, 2})};
    return batch;
  };
  const auto loader = make_dataset_loader(Pairs(4), request(Stage::kVal, 4), {}, collate);
  Batch batch;
  EXPECT_THAT([&] { (void)loader->next(batch); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("4 samples were asked for, but tensor 0 of the batch has shape [7, 2]")));
}

TEST(DatasetLoaderTest, DataSetsWithoutASizeAreRefused) {
  EXPECT_THAT([] { (void)make_dataset_loader(Endless(), request(Stage::kTrain, 1)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("does not know its size")));
  EXPECT_THAT([] { (void)make_dataset_loader(Pairs(0), request(Stage::kTrain, 1)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("at least one sample")));
  EXPECT_THAT([] { (void)to_batch(std::vector<Example<>>{}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("no examples")));
}

}  // namespace
}  // namespace marlin
