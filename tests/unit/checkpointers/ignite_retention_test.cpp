// Ignite's behaviour, row by row: what is kept, what goes, and when. The number at a test's end is the row of the case table; a comment
// says where this project differs.
#include <gtest/gtest.h>

#include <limits>

#include "ignite_support.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::by_score;
using testing::IgniteCases;
using testing::listed;
using testing::Listed;
using testing::one;
using testing::point;
using testing::RecordingStorage;
using testing::ThrowsError;
using testing::two;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
const BestKHooks kByScore{.score_function = by_score};

// ---- without a score

TEST_F(IgniteCases, TheNewestTwoStayRow24) {
  const auto checkpointer = on_disk({.filename_prefix = "PREFIX", .n_saved = 2});
  for (int64_t i = 0; i <= 8; ++i) checkpointer->save_objects(one(), point(1, i));
  EXPECT_THAT(files(), ElementsAre("PREFIX_model_7.pt", "PREFIX_model_8.pt"));
}

TEST_F(IgniteCases, AllStayOnDiskRow25) {
  const auto checkpointer = on_disk({.filename_prefix = "PREFIX", .n_saved = std::nullopt});
  std::vector<std::string> expected;
  for (int64_t i = 0; i < 100; ++i) {
    checkpointer->save_objects(one(), point(1, i));
    expected.push_back("PREFIX_model_" + std::to_string(i) + ".pt");
  }
  EXPECT_THAT(files(), ::testing::UnorderedElementsAreArray(expected));
}

TEST_F(IgniteCases, AllStayRow26) {
  const auto checkpointer = in_memory({.n_saved = std::nullopt});
  for (int64_t i = 0; i < 10; ++i) checkpointer->save_objects(one(), point(1, i));
  EXPECT_THAT(storage->calls, SizeIs(10));
  EXPECT_EQ(checkpointer->last_checkpoint(), "model_9.pt");
}

// Four calls are what a storage of one's own needs; its put() may say anything about where the state went.
TEST_F(IgniteCases, AStorageOfOnesOwnIsEnoughRow23) {
  class Elsewhere final : public Storage {
   public:
    std::string put(const std::string& name, const StateDict&, const CommitRecord&) override {
      names.push_back(name);
      return "elsewhere:" + name;
    }
    [[nodiscard]] Archive get(const std::string& name, Verify) const override { throw Error(Errc::kNotFound, name); }
    [[nodiscard]] std::vector<std::string> list() const override { return names; }
    bool remove(const std::string& name) override { return std::erase(names, name) > 0; }
    [[nodiscard]] std::string where(const std::string& name) const override { return "elsewhere:" + name; }
    std::vector<std::string> names;
  };
  const auto elsewhere = std::make_shared<Elsewhere>();
  BestKCheckpointer checkpointer({}, {.storage = elsewhere});
  EXPECT_THAT(checkpointer.save_objects(one(), point(1, 12)), ElementsAre("elsewhere:model_12.pt"));
  EXPECT_EQ(checkpointer.last_checkpoint(), "elsewhere:model_12.pt");
  checkpointer.save_objects(one(), point(1, 13));
  EXPECT_THAT(elsewhere->names, ElementsAre("model_13.pt"));
}

TEST_F(IgniteCases, AStorageThatKeepsAllIsAWarningRow169) {
  storage->removes = false;
  const auto checkpointer = in_memory();
  for (int64_t i = 1; i <= 3; ++i) checkpointer->save_objects(one(), point(1, i));
  EXPECT_THAT(storage->calls, ElementsAre("put model_1.pt", "put model_2.pt", "remove model_1.pt", "put model_3.pt", "remove model_2.pt"));
  EXPECT_THAT(storage->list(), SizeIs(3));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{3.0, "model_3.pt"}}));
}

TEST_F(IgniteCases, FewerThanOneIsRefusedRow154) {
  for (const int64_t n : {0, -1}) {
    EXPECT_THAT([&] { (void)in_memory({.n_saved = n}); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("n_saved"), HasSubstr(std::to_string(n)))));
  }
}

// Ignite removes its file and writes it again, each time.
TEST_F(IgniteCases, TheSameStepIsWrittenInPlaceDiffersFromRow176) {
  const auto checkpointer = in_memory({.n_saved = 2});
  for (const int64_t step : {10, 10, 20, 20}) checkpointer->save_objects(one(static_cast<double>(storage->calls.size())), point(1, step));
  EXPECT_THAT(storage->calls, ElementsAre("put model_10.pt", "put model_10.pt", "put model_20.pt", "put model_20.pt"));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{10.0, "model_10.pt"}, {20.0, "model_20.pt"}}));
  EXPECT_TRUE(equal(kept("model_20.pt").root, one(3.0)));
}

TEST_F(IgniteCases, TheEndAfterTheLastEpochIsWrittenInPlaceDiffersFromRow177) {
  const auto checkpointer = in_memory({.global_step = GlobalStepOf::kEpoch});
  SavePoint end = point(3, 30);
  checkpointer->save_objects(one(), end);
  end.cause = Cause::kEnd;
  end.force = true;
  checkpointer->save_objects(one(), end);
  EXPECT_THAT(storage->calls, ElementsAre("put model_3.pt", "put model_3.pt"));
}

TEST_F(IgniteCases, StepsThatRestartAreSavedWithAWarning) {
  const auto checkpointer = in_memory({.n_saved = 2});
  for (const int64_t step : {100, 200, 10}) EXPECT_THAT(checkpointer->save_objects(one(), point(1, step)), SizeIs(1));
  EXPECT_THAT(storage->calls, ElementsAre("put model_100.pt", "put model_200.pt", "put model_10.pt", "remove model_100.pt"));
  EXPECT_THAT(logger.warnings(), Contains(HasSubstr("10")));
  EXPECT_EQ(checkpointer->last_checkpoint(), "model_10.pt");
}

// ---- by a score

TEST_F(IgniteCases, AllStayByScoreRow45) {
  const auto checkpointer = in_memory({.n_saved = std::nullopt, .score_name = "val_acc"});
  for (int64_t i = 0; i < 10; ++i) checkpointer->save_objects(one(), point(i + 1, i, 0.1 * static_cast<double>(i), "val_acc"));
  EXPECT_THAT(storage->calls, SizeIs(10));
  EXPECT_EQ(storage->calls.front(), "put model_val_acc=0.pt") << "a whole number, as in row 171: ignite has 0.0000";
  EXPECT_EQ(checkpointer->last_checkpoint(), "model_val_acc=0.9000.pt");
}

TEST_F(IgniteCases, TheBestTwoStayRow46) {
  const auto checkpointer = on_disk({.filename_prefix = "PREFIX", .n_saved = 2}, kByScore);
  int64_t step = 0;
  for (const double score : {1.2, -2.0, 3.1, -4.0}) {
    checkpointer->save_objects(one(), point(step + 1, step, score));
    ++step;
  }
  EXPECT_THAT(files(), ElementsAre("PREFIX_model_1.2000.pt", "PREFIX_model_3.1000.pt"));
}

// Ends as Ignite's; in between two states never share a file.
TEST_F(IgniteCases, EqualScoresEndAsIgnitesDiffersFromRow48) {
  const auto checkpointer = on_disk({.filename_prefix = "PREFIX", .n_saved = 2}, kByScore);
  int64_t step = 0;
  for (const double score : {0.0, 1.0, 1.0}) {
    checkpointer->save_objects(one(), point(step + 1, step, score));
    ++step;
  }
  EXPECT_THAT(files(), ElementsAre("PREFIX_model_1.pt", "PREFIX_model_1_2.pt"));
  for (const double score : {2.0, 3.0}) {
    checkpointer->save_objects(one(), point(step + 1, step, score));
    ++step;
  }
  EXPECT_THAT(files(), ElementsAre("PREFIX_model_2.pt", "PREFIX_model_3.pt"));
  EXPECT_THAT(logger.warnings(), IsEmpty());
}

// Ignite's second 1 takes its namesake's place, not 0's.
TEST_F(IgniteCases, TheLowestLeavesNotTheNamesakeDiffersFromRow144) {
  const auto checkpointer = in_memory({.n_saved = 2}, kByScore);
  int64_t step = 0;
  for (const double score : {0.0, 1.0, 1.0, 2.0, 3.0}) {
    checkpointer->save_objects(one(), point(step + 1, step, score));
    ++step;
  }
  EXPECT_THAT(storage->calls, ElementsAre("put model_0.pt", "put model_1.pt", "put model_1_2.pt", "remove model_0.pt", "put model_2.pt", "remove model_1.pt",
                                          "put model_3.pt", "remove model_1_2.pt"));
}

TEST_F(IgniteCases, OfEqualScoresTheOldestLeavesRow145) {
  const auto checkpointer = in_memory({.n_saved = 2, .global_step = GlobalStepOf::kStep}, kByScore);
  int64_t step = 0;
  for (const double score : {0.0, 1.0, 1.0, 2.0, 3.0}) {
    checkpointer->save_objects(one(), point(step + 1, step, score));
    ++step;
  }
  EXPECT_THAT(storage->calls, ElementsAre("put model_0_0.pt", "put model_1_1.pt", "put model_2_1.pt", "remove model_0_0.pt", "put model_3_2.pt", "remove model_1_1.pt",
                                          "put model_4_3.pt", "remove model_2_1.pt"));
}

// Ignite: model_1.pt, then model_2.pt three times, and model_1.pt stays (row 146).
TEST_F(IgniteCases, AsGoodAsTheWorstEntersUnderAnotherNameDiffersFromRows53And146) {
  const auto checkpointer = on_disk({.n_saved = 2, .greater_or_equal = true}, kByScore);
  std::vector<std::string> last;
  int64_t step = 0;
  for (const double score : {1.0, 2.0, 2.0, 2.0}) {
    ++step;
    checkpointer->save_objects(one(), point(step, step, score));
    last.push_back(checkpointer->last_checkpoint());
  }
  EXPECT_THAT(last, ElementsAre(file("model_1.pt"), file("model_2.pt"), file("model_2_3.pt"), file("model_2_4.pt")));
  EXPECT_THAT(files(), ElementsAre("model_2_3.pt", "model_2_4.pt"));
}

TEST_F(IgniteCases, AsGoodAsTheWorstWithStepsRow146) {
  const auto checkpointer = in_memory({.n_saved = 2, .greater_or_equal = true, .global_step = GlobalStepOf::kStep}, kByScore);
  int64_t step = 0;
  for (const double score : {1.0, 2.0, 2.0, 2.0}) {
    checkpointer->save_objects(one(), point(step + 1, step, score));
    ++step;
  }
  EXPECT_THAT(storage->list(), ElementsAre("model_2_2.pt", "model_3_2.pt"));
}

TEST_F(IgniteCases, EqualScoresAndOnePlaceRow147) {
  for (const bool or_equal : {false, true}) {
    storage = std::make_shared<RecordingStorage>();
    const auto checkpointer = in_memory({.n_saved = 1, .greater_or_equal = or_equal, .global_step = GlobalStepOf::kStep}, kByScore);
    for (int64_t step = 1; step <= 3; ++step) checkpointer->save_objects(one(), point(step, step, 2.0));
    EXPECT_THAT(storage->list(), ElementsAre(or_equal ? "model_3_2.pt" : "model_1_2.pt"));
    EXPECT_THAT(storage->calls, SizeIs(or_equal ? 5 : 1));
  }
}

// Ignite's last_checkpoint is the best.
TEST_F(IgniteCases, TheLastIsTheNewestThatEnteredDiffersFromRow148) {
  const auto checkpointer = in_memory({.n_saved = 3}, kByScore);
  std::vector<std::string> last, best;
  int64_t step = 0;
  for (const double score : {0.1, 0.9, 0.5, 0.95, 0.2}) {
    ++step;
    checkpointer->save_objects(one(), point(step, step, score));
    last.push_back(checkpointer->last_checkpoint());
    best.push_back(checkpointer->best_checkpoint());
  }
  EXPECT_THAT(last, ElementsAre("model_0.1000.pt", "model_0.9000.pt", "model_0.5000.pt", "model_0.9500.pt", "model_0.9500.pt")) << "0.2 does not enter";
  EXPECT_THAT(best, ElementsAre("model_0.1000.pt", "model_0.9000.pt", "model_0.9000.pt", "model_0.9500.pt", "model_0.9500.pt"));
}

TEST_F(IgniteCases, TheLowestMetricIsBestWithASignRow51) {
  const auto checkpointer = in_memory({.score_name = "loss", .score_sign = -1});
  checkpointer->save_objects(one(), point(1, 1, 0.5, "loss"));
  EXPECT_THAT(checkpointer->save_objects(one(), point(2, 2, 0.6, "loss")), IsEmpty());
  checkpointer->save_objects(one(), point(3, 3, 0.4, "loss"));
  EXPECT_THAT(storage->calls, ElementsAre("put model_loss=-0.5000.pt", "put model_loss=-0.4000.pt", "remove model_loss=-0.5000.pt"));
  EXPECT_THAT([&] { (void)in_memory({.score_name = "loss", .score_sign = 2}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("score_sign")));
}

TEST_F(IgniteCases, TheDefaultScoreFunctionReadsAMetricRows49To51) {
  EXPECT_THAT([] { (void)get_default_score_fn("acc", 2); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("2")));
  EXPECT_THAT([] { (void)get_default_score_fn("acc", 0); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("0")));
  EXPECT_EQ(get_default_score_fn("acc")(point(1, 1, 0.9, "acc")), 0.9);
  EXPECT_EQ(get_default_score_fn("loss", -1)(point(1, 1, 0.123, "loss")), -0.123);
}

TEST_F(IgniteCases, AMetricThatIsNotThereIsNamedWithThoseThatAreRow180) {
  const auto checkpointer = in_memory({.score_name = "val_acc"});
  SavePoint at = point(1, 1, 0.5, "val_loss");
  at.metrics.set("train_loss", 0.1);
  EXPECT_THAT([&] { checkpointer->save_objects(one(), at); },
              ThrowsError(Errc::kNotFound, AllOf(HasSubstr("val_acc"), HasSubstr("val_loss"), HasSubstr("train_loss"))));
  EXPECT_THAT([&] { (void)get_default_score_fn("val_acc")(at); }, ThrowsError(Errc::kNotFound, AllOf(HasSubstr("val_acc"), HasSubstr("val_loss"))));
  EXPECT_THAT(storage->calls, IsEmpty());
}

TEST_F(IgniteCases, NoScoreIsNotSavedWithAWarningRows10And170) {
  const auto checkpointer = in_memory({}, {.score_function = [](const SavePoint&) { return std::optional<double>(); }});
  EXPECT_THAT(checkpointer->save_objects(one(), point(1, 1)), IsEmpty());
  EXPECT_THAT(storage->calls, IsEmpty());
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("score")));
}

// In Ignite a NaN that is first blocks the list for good.
TEST_F(IgniteCases, NaNNeverEntersDiffersFromRow133) {
  const auto checkpointer = in_memory({}, kByScore);
  EXPECT_THAT(checkpointer->save_objects(one(), point(1, 1, kNan)), IsEmpty());
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("NaN")));
  checkpointer->save_objects(one(), point(2, 2, 0.5));
  checkpointer->save_objects(one(), point(3, 3, 0.9));
  EXPECT_THAT(storage->calls, ElementsAre("put model_0.5000.pt", "put model_0.9000.pt", "remove model_0.5000.pt"));
}

TEST_F(IgniteCases, NaNTakesNoPlaceDiffersFromRow134) {
  const auto checkpointer = in_memory({.n_saved = 2, .global_step = GlobalStepOf::kStep}, kByScore);
  int64_t step = 0;
  for (const double score : {0.5, kNan, 0.9, 0.95}) {
    ++step;
    checkpointer->save_objects(one(), point(step, step, score));
  }
  EXPECT_THAT(storage->calls, ElementsAre("put model_1_0.5000.pt", "put model_3_0.9000.pt", "put model_4_0.9500.pt", "remove model_1_0.5000.pt"));
}

TEST_F(IgniteCases, InfinitiesAreOrderedRow135) {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto checkpointer = in_memory({.n_saved = 2}, kByScore);
  int64_t step = 0;
  for (const double score : {-infinity, 0.5, infinity, 0.4}) {
    ++step;
    checkpointer->save_objects(one(), point(step, step, score));
  }
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{0.5, "model_0.5000.pt"}, {infinity, "model_inf.pt"}}));
}

// ---- a fixed name

TEST_F(IgniteCases, AFixedNameIsOneFileThatIsReplacedRows86To88) {
  for (const std::optional<int64_t> n : {std::optional<int64_t>(), std::optional<int64_t>(1), std::optional<int64_t>(3)}) {
    storage = std::make_shared<RecordingStorage>();
    const auto checkpointer = in_memory({.filename_pattern = "{name}.{ext}", .n_saved = n});
    for (int64_t i = 0; i < 10; ++i) {
      checkpointer->save_objects(one(static_cast<double>(i)), point(i, i));
      EXPECT_THAT(storage->calls, SizeIs(i + 1));
      EXPECT_EQ(storage->calls.back(), "put model.pt");
      EXPECT_EQ(listed(checkpointer->state()), (Listed{{static_cast<double>(i), "model.pt"}}));
      EXPECT_TRUE(equal(kept("model.pt").root, one(static_cast<double>(i))));
    }
  }
}

// Ignite's list never grows past one, so that a worse state replaces the best.
TEST_F(IgniteCases, AFixedNameHoldsTheBestDiffersFromRow141) {
  const auto checkpointer = in_memory({.filename_pattern = "{name}.{ext}", .n_saved = 3}, kByScore);
  int64_t step = 0;
  for (const double score : {0.9, 0.1, 0.5, 0.95}) {
    ++step;
    checkpointer->save_objects(one(score), point(step, step, score));
  }
  EXPECT_THAT(storage->calls, ElementsAre("put model.pt", "put model.pt"));
  EXPECT_TRUE(equal(kept("model.pt").root, one(0.95)));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{0.95, "model.pt"}}));
}

TEST_F(IgniteCases, AFixedNameOfOneRow142) {
  const auto checkpointer = in_memory({.filename_pattern = "{name}.{ext}", .n_saved = 1}, kByScore);
  EXPECT_THAT(checkpointer->save_objects(one(), point(1, 1, 0.9)), ElementsAre("model.pt"));
  EXPECT_THAT(checkpointer->save_objects(one(), point(2, 2, 0.1)), IsEmpty());
  EXPECT_THAT(checkpointer->save_objects(one(), point(3, 3, 0.95)), ElementsAre("model.pt"));
}

// ---- reset

TEST_F(IgniteCases, ResetForgetsTheListRows89To91) {
  const auto checkpointer = in_memory({.n_saved = 2});
  checkpointer->save_objects(one(), point(1, 123));
  checkpointer->save_objects(one(), point(1, 234));
  EXPECT_EQ(checkpointer->last_checkpoint(), "model_234.pt");
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{123.0, "model_123.pt"}, {234.0, "model_234.pt"}}));
  checkpointer->reset();
  EXPECT_THAT(listed(checkpointer->state()), IsEmpty());
  EXPECT_EQ(checkpointer->last_checkpoint(), "");
  checkpointer->save_objects(one(), point(1, 124));
  EXPECT_THAT(storage->calls, ElementsAre("put model_123.pt", "put model_234.pt", "put model_124.pt"));
  EXPECT_EQ(checkpointer->last_checkpoint(), "model_124.pt");
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{124.0, "model_124.pt"}}));
}

TEST_F(IgniteCases, ResetLeavesFilesRow185) {
  const auto checkpointer = on_disk();
  checkpointer->save_objects(one(), point(1, 1));
  checkpointer->reset();
  checkpointer->save_objects(one(), point(1, 2));
  EXPECT_THAT(files(), ElementsAre("model_1.pt", "model_2.pt"));
}

// ---- what left the list

TEST_F(IgniteCases, WhatARuleKeepsStaysUntilItDoesNot) {
  const auto checkpointer = in_memory({.keep = "best:1:acc"});
  int64_t step = 0;
  for (const double acc : {0.9, 0.5, 0.6}) {
    step += 10;
    checkpointer->save_objects(one(), point(1, step, acc, "acc"));
  }
  EXPECT_THAT(storage->list(), ElementsAre("model_10.pt", "model_30.pt"));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{30.0, "model_30.pt"}}));
  checkpointer->save_objects(one(), point(1, 40, 0.95, "acc"));
  EXPECT_THAT(storage->list(), ElementsAre("model_40.pt"));
  EXPECT_THAT([&] { (void)in_memory({.keep = "odd:1"}); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("keep"), HasSubstr("odd:1"))));
}

// ---- more than one kind of call

TEST_F(IgniteCases, CallsWithOtherObjectsShareTheListRow186) {
  const auto checkpointer = in_memory({.filename_prefix = "p", .n_saved = 2});
  checkpointer->save_objects({{"m", testing::model_state()}}, point(1, 1));
  checkpointer->save_objects(two(), point(1, 2));
  checkpointer->save_objects({{"m", testing::model_state()}}, point(1, 3));
  EXPECT_THAT(storage->calls, ElementsAre("put p_m_1.pt", "put p_checkpoint_2.pt", "put p_m_3.pt", "remove p_m_1.pt"));
}

}  // namespace
}  // namespace marlin
