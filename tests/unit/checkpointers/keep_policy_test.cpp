// Rules for which checkpoints stay.
#include "marlin/checkpointers/keep_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::ThrowsError;
using Candidate = KeepPolicy::Candidate;

Candidate epoch(int64_t number) { return {.unit = Unit::kEpoch, .number = number}; }
Candidate step(int64_t number) { return {.unit = Unit::kStep, .number = number}; }
Candidate scored(int64_t number, double acc) {
  Candidate candidate = epoch(number);
  candidate.metrics.set("val/acc", acc);
  return candidate;
}
std::vector<std::string> reasons(const char* rules, const std::vector<Candidate>& candidates) { return KeepPolicy(rules).reasons(candidates); }

TEST(KeepPolicyTest, WithoutRulesThereAreNone) {
  for (const KeepPolicy& policy : {KeepPolicy(), KeepPolicy("")}) {
    EXPECT_TRUE(policy.empty());
    EXPECT_FALSE(policy.needs_metrics());
    EXPECT_EQ(policy.text(), "");
  }
}

TEST(KeepPolicyTest, TheNewestOfEachUnit) {
  EXPECT_THAT(reasons("last:2", {epoch(1), step(300), epoch(9), epoch(10), step(100), step(200)}), ElementsAre("", "last:2", "last:2", "last:2", "", "last:2"));
  EXPECT_THAT(reasons("last:5", {epoch(1)}), ElementsAre("last:5"));
}

TEST(KeepPolicyTest, AnAgeBeatsTheNumber) {
  Candidate newer = epoch(1);
  newer.age = 50;
  Candidate older = epoch(9);
  older.age = 40;
  EXPECT_THAT(reasons("last:1", {newer, older}), ElementsAre("last:1", ""));
  EXPECT_THAT(reasons("pin:9", {newer, older}), ElementsAre("", "pin:9")) << "pin and every look at the number";
}

TEST(KeepPolicyTest, TheBestByAMetric) {
  const std::vector<Candidate> candidates{scored(0, 0.1), scored(1, 0.9), scored(2, 0.5), scored(3, 0.7)};
  EXPECT_THAT(reasons("best:2:val/acc", candidates), ElementsAre("", "best:2:val/acc", "", "best:2:val/acc"));
  EXPECT_THAT(reasons("best:1:val/acc:min", candidates), ElementsAre("best:1:val/acc:min", "", "", ""));
}

TEST(KeepPolicyTest, OfEqualOnesTheNewerStays) {
  EXPECT_THAT(reasons("best:1:val/acc", {scored(3, 0.5), scored(1, 0.5), scored(2, 0.5)}), ElementsAre("best:1:val/acc", "", ""));
  EXPECT_THAT(reasons("best:1:val/acc:min", {scored(1, 0.5), scored(3, 0.5)}), ElementsAre("", "best:1:val/acc:min"));
}

TEST(KeepPolicyTest, NaNAndUnknownAreNeverBest) {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<Candidate> candidates{scored(0, std::numeric_limits<double>::quiet_NaN()), epoch(1), scored(2, -infinity), scored(3, infinity)};
  EXPECT_THAT(reasons("best:4:val/acc", candidates), ElementsAre("", "", "best:4:val/acc", "best:4:val/acc"));
  EXPECT_THAT(reasons("best:1:val/acc:min", candidates), ElementsAre("", "", "best:1:val/acc:min", ""));
  EXPECT_THAT(reasons("best:1:val/other", candidates), Each(""));
}

TEST(KeepPolicyTest, MultiplesStay) {
  EXPECT_THAT(reasons("every:10", {epoch(0), epoch(5), epoch(10), epoch(11), step(100), step(105)}), ElementsAre("every:10", "", "every:10", "", "every:10", ""));
}

TEST(KeepPolicyTest, APinnedOneStays) {
  EXPECT_THAT(reasons("pin:5", {epoch(4), epoch(5), epoch(55)}), ElementsAre("", "pin:5", ""));
  EXPECT_THAT(reasons("pin:0", {epoch(0), epoch(1)}), ElementsAre("pin:0", ""));
}

TEST(KeepPolicyTest, RulesAddUp) {
  const KeepPolicy policy("last:1,best:1:val/acc,every:2,pin:1");
  const std::vector<Candidate> candidates{scored(1, 0.1), scored(3, 0.2), scored(4, 0.9), scored(5, 0.3)};
  EXPECT_THAT(policy.reasons(candidates), ElementsAre("pin:1", "", "best:1:val/acc, every:2", "last:1"));
  EXPECT_FALSE(policy.empty());
  EXPECT_TRUE(policy.needs_metrics());
  EXPECT_EQ(policy.text(), "last:1,best:1:val/acc,every:2,pin:1");
  EXPECT_THAT(KeepPolicy("last:1").reasons({}), IsEmpty());
}

TEST(KeepPolicyTest, OnlyBestNeedsMetrics) {
  EXPECT_FALSE(KeepPolicy("last:1,every:2,pin:1").needs_metrics());
  EXPECT_TRUE(KeepPolicy("pin:1,best:1:loss:min").needs_metrics());
}

TEST(KeepPolicyTest, SeveralOfAKindMayStandTogether) {
  EXPECT_THAT(reasons("pin:1,pin:2,best:1:val/acc,best:1:val/acc:min", {scored(1, 0.2), scored(2, 0.9), scored(3, 0.1)}),
              ElementsAre("pin:1", "pin:2, best:1:val/acc", "best:1:val/acc:min"));
}

TEST(KeepPolicyTest, SaysHowManyStayAtLeast) {
  EXPECT_EQ(KeepPolicy("last:3").keeps_at_least(), 3);
  EXPECT_EQ(KeepPolicy("last:3,best:2:acc").keeps_at_least(), 3);
  EXPECT_EQ(KeepPolicy("every:10").keeps_at_least(), 0);
  EXPECT_EQ(KeepPolicy("pin:10").keeps_at_least(), 0);
}

TEST(KeepPolicyTest, WrongRulesAreNamed) {
  for (const char* wrong : {"newest:3", "last", "last:", "last:0", "last:-1", "last:x", "last:1.5", "last:3x", "last:3:4", "best:2", "best:2:", "best:0:acc", "best:x:acc", "every:0", "every",
                            "pin:-1", "pin", "pin:x", "last:99999999999999999999", "Last:1"}) {
    EXPECT_THAT([&] { KeepPolicy policy(wrong, "my_keep"); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("my_keep"), HasSubstr(wrong)))) << wrong;
  }
  EXPECT_THAT([] { KeepPolicy policy("last:3,odd:1"); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("keep"), HasSubstr("odd:1"))));
  for (const char* wrong : {"last:1,", ",last:1", "last:1,,pin:2", ","}) {
    EXPECT_THAT([&] { KeepPolicy policy(wrong); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("keep"))) << wrong;
  }
}

TEST(KeepPolicyTest, TheSameRuleTwiceIsNamed) {
  EXPECT_THAT([] { KeepPolicy policy("pin:1,last:3,pin:1"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("pin:1")));
}

TEST(KeepPolicyTest, TenThousandAreRight) {
  std::vector<Candidate> candidates;
  for (int64_t i = 0; i < 10000; ++i) candidates.push_back(scored(i, static_cast<double>(i * 7919 % 10007)));
  const std::vector<std::string> why = reasons("last:10,best:5:val/acc,every:1000,pin:17", candidates);
  ASSERT_EQ(why.size(), candidates.size());
  std::vector<double> scores;
  for (const Candidate& candidate : candidates) scores.push_back(candidate.metrics.at("val/acc"));
  std::sort(scores.begin(), scores.end());
  for (size_t i = 0; i < candidates.size(); ++i) {
    const int64_t number = candidates[i].number;
    const bool stays = number >= 9990 || candidates[i].metrics.at("val/acc") >= scores[9995] || number % 1000 == 0 || number == 17;
    EXPECT_EQ(!why[i].empty(), stays) << number;
  }
}

}  // namespace
}  // namespace marlin
