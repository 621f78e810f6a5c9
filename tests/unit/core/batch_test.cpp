#include "marlin/core/data/batch.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;

Batch batch_of(int64_t samples) {
  Batch batch;
  batch.tensors = {torch::arange(samples * 2).reshape({samples, 2}), torch::arange(samples)};
  batch.num_samples = samples;
  batch.num_global_samples = 3 * samples;
  return batch;
}

TEST(BatchTest, DataAndTargetAreTheFirstTwoTensors) {
  Batch batch = batch_of(4);
  EXPECT_TRUE(batch.data().is_same(batch.tensors[0]));
  EXPECT_TRUE(batch.target().is_same(batch.tensors[1]));
}

TEST(BatchTest, AMissingTensorIsNamed) {
  Batch batch;
  EXPECT_THAT([&] { (void)batch.data(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("no data")));
  batch.tensors.push_back(torch::zeros({2}));
  EXPECT_THAT([&] { (void)batch.target(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("no target")));
}

TEST(BatchTest, ASliceIsAViewAndStillAPartOfTheSameGlobalBatch) {
  Batch batch = batch_of(5);
  batch.extra = std::string("whole");
  Batch part = batch.slice(1, 4);
  EXPECT_EQ(part.num_samples, 3);
  EXPECT_EQ(part.num_global_samples, 15);
  EXPECT_TRUE(part.data().is_alias_of(batch.data()));
  EXPECT_TRUE(torch::equal(part.target(), torch::tensor({1, 2, 3})));
  EXPECT_EQ(std::any_cast<std::string>(part.extra), "whole");
}

TEST(BatchTest, SlicesOfNothingAndOfEverythingAreBatches) {
  const Batch batch = batch_of(3);
  EXPECT_EQ(batch.slice(3, 3).num_samples, 0);
  EXPECT_EQ(batch.slice(3, 3).tensors[0].sizes(), (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(batch.slice(0, 3).num_samples, 3);
}

TEST(BatchTest, SamplesOutsideTheBatchAreRefused) {
  const Batch batch = batch_of(3);
  EXPECT_THAT([&] { (void)batch.slice(2, 4); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("[2, 4)")));
  EXPECT_THAT([&] { (void)batch.slice(-1, 2); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("[-1, 2)")));
  EXPECT_THAT([&] { (void)batch.slice(2, 1); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("[2, 1)")));
}

TEST(BatchTest, MovingToWhereItIsCopiesNothing) {
  Batch batch = batch_of(3);
  const void* before = batch.data().data_ptr();
  batch.to(at::kCPU);
  EXPECT_EQ(batch.data().data_ptr(), before);
}

TEST(BatchTest, MovesEveryTensor) {
  Batch batch = batch_of(3);
  batch.to(at::kMeta);  // the one other device that is always there
  EXPECT_TRUE(batch.data().is_meta());
  EXPECT_TRUE(batch.target().is_meta());
}

}  // namespace
}  // namespace marlin
