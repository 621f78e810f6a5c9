// keep: which checkpoints of DefaultCheckpointer a union of rules leaves, and the state after an exception, which no rule touches.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "marlin/checkpointers/default_checkpointer.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::damage;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::ThrowsError;

Checkpoint state_at(int64_t index) {
  return {{{"weight", torch::full({50}, static_cast<double>(index))}}, {{"last_epoch", index}}, {{"global_step_completed", index}}, {}};
}

class KeepPolicyOfDefaultTest : public ::testing::Test {
 protected:
  KeepPolicyOfDefaultTest() { options_.save_dir = folder_.text(); }

  // Each save by a checkpointer of its own, as after a resume.
  void save(int64_t index, double accuracy, Cause cause = Cause::kPeriod) {
    SavePoint point;
    point.index = point.epoch = point.global_step = index;
    point.cause = cause;
    point.metrics.set("val/accuracy", accuracy);
    DefaultCheckpointer(options_, HostContext{.logger = &logger_}).save(state_at(index), point);
  }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> names = names_in(folder_.path());
    std::sort(names.begin(), names.end());
    return names;
  }

  TempFolder folder_;
  RecordingLogger logger_;
  DefaultCheckpointerOptions options_;
};

TEST_F(KeepPolicyOfDefaultTest, AUnionOfRulesStays) {
  options_.keep = "last:2,best:1:val/accuracy,every:4,pin:1";
  const std::vector<double> accuracies = {0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6, 0.7};
  for (size_t i = 0; i < accuracies.size(); ++i) save(static_cast<int64_t>(i), accuracies[i]);
  EXPECT_THAT(names(), ElementsAre("checkpoint_0.pt", "checkpoint_1.pt", "checkpoint_2.pt", "checkpoint_4.pt", "checkpoint_6.pt", "checkpoint_7.pt"));
  EXPECT_THAT(logger_.warnings(), IsEmpty());
}

TEST_F(KeepPolicyOfDefaultTest, TheNewestTwoAlwaysStay) {
  options_.keep = "pin:0";
  for (int64_t i = 0; i < 5; ++i) save(i, 0.5);
  EXPECT_THAT(names(), ElementsAre("checkpoint_0.pt", "checkpoint_3.pt", "checkpoint_4.pt"));
}

TEST_F(KeepPolicyOfDefaultTest, KeepLastIsOneRuleMore) {
  options_.keep_last = 3;
  options_.keep = "every:5";
  for (int64_t i = 0; i < 9; ++i) save(i, 0.5);
  EXPECT_THAT(names(), ElementsAre("checkpoint_0.pt", "checkpoint_5.pt", "checkpoint_6.pt", "checkpoint_7.pt", "checkpoint_8.pt"));
}

TEST_F(KeepPolicyOfDefaultTest, NaNIsNeverOneOfTheBest) {
  options_.keep = "best:1:val/accuracy";
  for (const auto& [index, accuracy] : std::vector<std::pair<int64_t, double>>{{0, 0.2}, {1, std::nan("")}, {2, std::nan("")}, {3, 0.1}, {4, 0.1}}) save(index, accuracy);
  EXPECT_THAT(names(), ElementsAre("checkpoint_0.pt", "checkpoint_3.pt", "checkpoint_4.pt"));
}

TEST_F(KeepPolicyOfDefaultTest, ABrokenOneThatARuleWouldKeepIsLeftAndNotCounted) {
  for (int64_t i = 0; i < 3; ++i) save(i, 0.5);
  damage(folder_ / "checkpoint_2.pt");
  options_.keep = "last:2";
  save(3, 0.5);
  EXPECT_THAT(names(), ElementsAre("checkpoint_1.pt", "checkpoint_2.pt", "checkpoint_3.pt"));
}

TEST_F(KeepPolicyOfDefaultTest, RulesThatMakeNoSenseAreRefused) {
  for (const auto& [rules, says] : std::vector<std::pair<std::string, std::string>>{{"newest:3", "is no rule"}, {"last:0", "at least 1"}, {"best:2", "incomplete"}, {"last:2,last:2", "twice"}}) {
    options_.keep = rules;
    EXPECT_THAT([&] { save(0, 0.5); }, ThrowsError(Errc::kInvalidArgument, ::testing::AllOf(HasSubstr("checkpointer.keep"), HasSubstr(says)))) << rules;
  }
}

TEST_F(KeepPolicyOfDefaultTest, AStateAfterAnExceptionHasANameOfItsOwnAndNothingGoesForIt) {
  options_.keep_last = 2;
  for (int64_t i = 0; i < 3; ++i) save(i, 0.5);
  save(7, 0.5, Cause::kException);
  EXPECT_THAT(names(), ElementsAre("checkpoint_1.pt", "checkpoint_2.pt", "checkpoint_suspect_7.pt"));
  DefaultCheckpointer checkpointer(options_);
  EXPECT_TRUE(checkpointer.keeps_suspects());
  EXPECT_EQ(checkpointer.load({.from = LoadRequest::From::kAnywhere}).source, (folder_ / "checkpoint_2.pt").string());
  EXPECT_EQ(checkpointer.load({.from = LoadRequest::From::kPath, .path = (folder_ / "checkpoint_suspect_7.pt").string()}).global_step(), 7);
}

}  // namespace
}  // namespace marlin
