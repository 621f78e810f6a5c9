#include "marlin/core/metric_sums.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;

TEST(MetricSumsTest, MeansAreWeightedBySamplesAndKeepTheOrderOfFirstUse) {
  MetricSums sums;
  sums.add("loss", 1.0, 30);
  sums.add("accuracy", 0.5, 30);
  sums.add("loss", 4.0, 10);
  sums.add("accuracy", 0.7, 10);
  const Metrics means = sums.means("train/");
  ASSERT_EQ(means.size(), 2u);
  EXPECT_EQ(means.begin()->first, "train/loss");
  EXPECT_DOUBLE_EQ(means.at("train/loss"), 1.75);
  EXPECT_DOUBLE_EQ(means.at("train/accuracy"), 0.55);
}

TEST(MetricSumsTest, TakesTensorsOfEveryTypeWithOneElement) {
  for (const auto type : {torch::kFloat, torch::kDouble, torch::kLong, torch::kInt, torch::kHalf, torch::kBFloat16, torch::kBool, torch::kUInt8}) {
    MetricSums sums;
    sums.add("m", torch::ones({}, type), 2);
    sums.add("m", torch::zeros({1, 1}, type), 2);
    EXPECT_DOUBLE_EQ(sums.means("").at("m"), 0.5) << type;
  }
}

TEST(MetricSumsTest, TakesALossThatIsStillInAGraphAndOneThatIsAView) {
  const at::Tensor weight = torch::full({2}, 3.0, torch::requires_grad());
  MetricSums sums;
  sums.add("loss", (weight * 2).sum(), 1);
  sums.add("loss", torch::tensor({5.0, 8.0, 9.0})[1], 1);
  EXPECT_DOUBLE_EQ(sums.means("").at("loss"), 10.0);
}

TEST(MetricSumsTest, ReadsNegatedViewsAsTheirValue) {
  const at::Tensor negative = at::imag(torch::complex(torch::tensor(0.0), torch::tensor(2.0)).conj());
  ASSERT_TRUE(negative.is_neg());
  MetricSums sums;
  sums.add("m", negative, 1);
  EXPECT_DOUBLE_EQ(sums.means("").at("m"), -2.0);
}

TEST(MetricSumsTest, NothingElseThanOneElementIsTaken) {
  MetricSums sums;
  EXPECT_THAT([&] { sums.add("top5", torch::zeros({3}), 1); }, ThrowsError(Errc::kTraining, HasSubstr("'top5' must be a number or a tensor of one element, got shape [3]")));
  EXPECT_THAT([&] { sums.add("top5", at::Tensor(), 1); }, ThrowsError(Errc::kTraining, HasSubstr("undefined")));
  EXPECT_TRUE(sums.means("").empty());
}

TEST(MetricSumsTest, WithoutWeightAValueCountsForNothing) {
  MetricSums sums;
  sums.add("loss", std::nan(""), 0);
  EXPECT_TRUE(sums.empty());
  EXPECT_TRUE(sums.means("").empty());
  sums.add("loss", 2.0, 1);
  EXPECT_DOUBLE_EQ(sums.means("").at("loss"), 2.0);
}

TEST(MetricSumsTest, ANotANumberIsNotHidden) {
  MetricSums sums;
  sums.add("loss", std::nan(""), 1);
  sums.add("loss", 1.0, 1);
  EXPECT_TRUE(std::isnan(sums.means("").at("loss")));
}

TEST(MetricSumsTest, SumsOfSumsAreTheSumsOfAll) {
  MetricSums epoch, step;
  epoch.add("loss", 1.0, 1);
  step.add("loss", 4.0, 2);
  step.add("lr", 0.1, 1);
  epoch.add(step);
  EXPECT_DOUBLE_EQ(epoch.means("").at("loss"), 3.0);
  EXPECT_DOUBLE_EQ(epoch.means("").at("lr"), 0.1);
  EXPECT_DOUBLE_EQ(step.means("").at("loss"), 4.0) << "the other stays as it was";
}

TEST(MetricSumsTest, ClearingForgetsValuesAndKeepsTheOrder) {
  MetricSums sums;
  sums.add("a", 1.0, 1);
  sums.add("b", 1.0, 1);
  EXPECT_FALSE(sums.empty());
  sums.clear();
  EXPECT_TRUE(sums.empty());
  EXPECT_TRUE(sums.means("").empty());
  sums.add("b", 2.0, 1);
  sums.add("a", 3.0, 1);
  const Metrics means = sums.means("");
  EXPECT_EQ(means.begin()->first, "a");
  EXPECT_DOUBLE_EQ(means.at("a"), 3.0);
}

}  // namespace
}  // namespace marlin
