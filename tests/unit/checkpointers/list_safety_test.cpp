// What lists of checkpoints never do: take, write over or remove what is not theirs, or lose what is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ignite_support.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/checkpointers/key_metric_checkpointer.h"

namespace marlin {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::damage;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::ThrowsError;
using testing::write_file;

Checkpoint state_at(int64_t step) {
  return {{{"weight", torch::full({50}, static_cast<double>(step))}}, {{"last_epoch", step / 10 - 1}}, {{"global_step_completed", step}}, {}};
}

// The end of an epoch of ten steps.
SavePoint epoch_end(int64_t epochs, double accuracy = 0.5, Cause cause = Cause::kPeriod) {
  SavePoint point;
  point.index = point.epoch = epochs - 1;
  point.global_step = 10 * epochs;
  point.cause = cause;
  point.run_id = "run";
  point.metrics.set("val/accuracy", accuracy);
  return point;
}

class ListSafetyTest : public ::testing::Test {
 protected:
  ListSafetyTest() { options_.save_dir = folder_.text(), options_.links = false; }
  [[nodiscard]] std::unique_ptr<BestKCheckpointer> make(BestKOptions options) { return std::make_unique<BestKCheckpointer>(std::move(options), BestKHooks{}, HostContext{.logger = &logger_}); }
  void save(AbstractCheckpointer& checkpointer, const SavePoint& point) { checkpointer.save(state_at(point.global_step), point); }
  [[nodiscard]] RunStart resumed(const std::string& name) const { return {(folder_ / name).string(), "run"}; }
  [[nodiscard]] std::vector<std::string> names() const { return names_in(folder_.path()); }
  [[nodiscard]] int64_t step_in(const std::string& name) const { return read_checkpoint(folder_ / name).global_step(); }

  TempFolder folder_;
  RecordingLogger logger_;
  BestKOptions options_;
};

TEST_F(ListSafetyTest, AStateAfterAnExceptionTakesNobodysName) {
  const auto checkpointer = make(options_);
  checkpointer->open({});
  save(*checkpointer, epoch_end(1));
  SavePoint suspect = epoch_end(1, 0.5, Cause::kException);
  checkpointer->save(state_at(11), suspect);
  EXPECT_THAT(names(), ElementsAre("checkpoint_10.pt", "checkpoint_10_10.pt"));
  EXPECT_EQ(step_in("checkpoint_10.pt"), 10);
  EXPECT_EQ(checkpointer->load({.from = LoadRequest::From::kAnywhere}).source, (folder_ / "checkpoint_10.pt").string());
  // Nor does a later good one take the suspect's, and no list ever removes that.
  const auto again = make(options_);
  again->open(resumed("checkpoint_10.pt"));
  for (int64_t epochs = 2; epochs < 5; ++epochs) save(*again, epoch_end(epochs));
  EXPECT_THAT(names(), ElementsAre("checkpoint_10_10.pt", "checkpoint_40.pt"));
}

TEST_F(ListSafetyTest, AFixedNameIsNotTheSuspects) {
  KeyMetricOptions options;
  options.save_dir = folder_.text();
  options.save_final = true;
  options.final_filename = "final.pt";
  KeyMetricCheckpointer checkpointer(options);
  checkpointer.open({});
  save(checkpointer, epoch_end(1, 0.5, Cause::kStop));
  save(checkpointer, epoch_end(2, 0.5, Cause::kException));
  EXPECT_THAT(names(), ElementsAre("final.pt", "final_20.pt"));
  EXPECT_EQ(step_in("final.pt"), 10);
}

TEST_F(ListSafetyTest, LinksReplaceNoFiles) {
  options_.links = true;
  options_.score_name = "val/accuracy";
  BestKOptions own_name = options_;
  own_name.filename_pattern = "best.{ext}";
  EXPECT_THAT([&] { (void)make(own_name); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("best.pt, which is a link's")));
  write_file(folder_ / "best.pt", "mine");
  const auto checkpointer = make(options_);
  checkpointer->open({});
  save(*checkpointer, epoch_end(1));
  EXPECT_FALSE(std::filesystem::is_symlink(folder_ / "best.pt"));
  EXPECT_THAT(logger_.warnings(), Contains(HasSubstr("best.pt is a file")));
}

TEST_F(ListSafetyTest, StartingOverRemovesNoOtherListsFiles) {
  BestKOptions other = options_;
  other.filename_prefix = "exp_2";
  const auto theirs = make(other);
  theirs->open({});
  save(*theirs, epoch_end(1));
  options_.filename_prefix = "exp";
  options_.require_empty = false;  // theirs could be ours, by the prefix
  const auto before = make(options_);
  before->open({});
  save(*before, epoch_end(1));
  write_file(folder_ / "exp_notes_7.pt", "mine");
  options_.delete_existing_checkpoints = true;
  make(options_)->open({});
  EXPECT_THAT(names(), ElementsAre("exp_2_checkpoint_10.pt", "exp_notes_7.pt"));
}

TEST_F(ListSafetyTest, AResumedListTakesNoOtherCheckpointersFilesForItsOwn) {
  DefaultCheckpointerOptions default_options;
  default_options.save_dir = folder_.text();
  BestKOptions first = options_, second = options_;
  first.filename_prefix = "checkpoint";
  second.filename_prefix = "checkpoint_b";
  {
    DefaultCheckpointer by_default(default_options);
    const auto a = make(first), b = make(second);
    for (int64_t epochs = 1; epochs < 3; ++epochs) {
      SavePoint step = epoch_end(epochs);
      save(by_default, step);
      step.unit = Unit::kStep;
      step.index = step.global_step;
      save(by_default, step);
      save(*a, epoch_end(epochs));
      save(*b, epoch_end(epochs));
    }
  }
  const std::vector<std::string> before = names();
  const auto again = make(first);
  again->open(resumed("checkpoint_1.pt"));
  save(*again, epoch_end(3));
  std::vector<std::string> expected = before;
  std::replace(expected.begin(), expected.end(), std::string("checkpoint_checkpoint_20.pt"), std::string("checkpoint_checkpoint_30.pt"));
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names(), expected);
}

TEST_F(ListSafetyTest, WhatARuleKeepsIsNotWrittenOver) {
  options_.score_name = "val/accuracy";
  options_.greater_or_equal = true;
  options_.keep_latest = KeepLatest::kNo;
  options_.keep = "every:2";
  const auto checkpointer = make(options_);
  checkpointer->open({});
  for (int64_t epochs = 1; epochs < 6; ++epochs) save(*checkpointer, epoch_end(epochs, 1.0));
  EXPECT_THAT(names(), ElementsAre("checkpoint_val_accuracy=1.pt", "checkpoint_val_accuracy=1_20.pt", "checkpoint_val_accuracy=1_40.pt"));
  EXPECT_EQ(step_in("checkpoint_val_accuracy=1_20.pt"), 20);
  EXPECT_EQ(step_in("checkpoint_val_accuracy=1_40.pt"), 40);
  EXPECT_EQ(step_in("checkpoint_val_accuracy=1.pt"), 50);
}

TEST_F(ListSafetyTest, ForgottenFilesStayAsTheyAre) {
  options_.score_name = "val/accuracy";
  options_.keep_latest = KeepLatest::kNo;
  options_.keep = "pin:9";
  const auto checkpointer = make(options_);
  checkpointer->open({});
  save(*checkpointer, epoch_end(1, 0.75));
  checkpointer->reset();
  save(*checkpointer, epoch_end(2, 0.75));
  save(*checkpointer, epoch_end(3, 0.8));
  EXPECT_THAT(names(), ElementsAre("checkpoint_val_accuracy=0.7500.pt", "checkpoint_val_accuracy=0.8000.pt"));
  EXPECT_EQ(step_in("checkpoint_val_accuracy=0.7500.pt"), 10);
}

TEST_F(ListSafetyTest, ARunThatThrewBeforeItsFirstSaveStartsAfresh) {
  const auto crashed = make(options_);
  crashed->open({});
  save(*crashed, epoch_end(1, 0.5, Cause::kException));
  const auto again = make(options_);
  EXPECT_TRUE(again->load({.from = LoadRequest::From::kAnywhere}).empty());
  EXPECT_THAT([&] { again->open({}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("--resume auto")));
  again->open({.looked = true});
  save(*again, epoch_end(1));
  EXPECT_THAT(names(), ElementsAre("checkpoint_10.pt", "checkpoint_10_10.pt"));

  DefaultCheckpointerOptions default_options;
  default_options.save_dir = (folder_ / "default").string();
  save(*std::make_unique<DefaultCheckpointer>(default_options), epoch_end(1, 0.5, Cause::kException));
  EXPECT_NO_THROW(DefaultCheckpointer(default_options).open({.looked = true}));
}

TEST_F(ListSafetyTest, OfSeveralRunsInAFolderNoneIsChosen) {
  options_.require_empty = false;
  const auto first = make(options_);
  first->open({});
  save(*first, epoch_end(9));
  const auto second = make(options_);
  second->open({});
  SavePoint point = epoch_end(1);
  point.run_id = "another";
  save(*second, point);
  EXPECT_THAT(names(), ElementsAre("checkpoint_10.pt", "checkpoint_90.pt"));
  EXPECT_THAT([&] { (void)second->load({.from = LoadRequest::From::kAnywhere}); }, ThrowsError(Errc::kMismatch, HasSubstr("several runs (checkpoint_90.pt and checkpoint_10.pt)")));
}

TEST_F(ListSafetyTest, ABrokenOrForeignFileDoesNotKeepARunFromGoingOn) {
  options_.n_saved = 3;
  const auto checkpointer = make(options_);
  checkpointer->open({});
  for (int64_t epochs = 1; epochs < 4; ++epochs) save(*checkpointer, epoch_end(epochs));
  damage(folder_ / "checkpoint_30.pt");
  write_file(folder_ / "checkpoint_7.pt", "no archive at all");
  EXPECT_EQ(make(options_)->load({.from = LoadRequest::From::kAnywhere}).global_step(), 20);
}

TEST_F(ListSafetyTest, HiddenNamesAreRefused) {
  options_.filename_prefix = ".hidden";
  EXPECT_THAT([&] { (void)make(options_); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("dot")));
  options_.filename_prefix = "";
  options_.filename_pattern = ".{name}_{global_step}.pt";
  EXPECT_THAT([&] { (void)make(options_); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("dot")));
}

TEST_F(ListSafetyTest, TheBestOneIsNotRemovedBecauseItCannotBeRead) {
  DefaultCheckpointerOptions options;
  options.save_dir = folder_.text();
  DefaultCheckpointer first(options);
  for (int64_t epochs = 1; epochs < 5; ++epochs) save(first, epoch_end(epochs, epochs == 1 ? 0.9 : 0.1));
  write_file(folder_ / "checkpoint_0.pt", "torn");
  options.keep = "best:1:val/accuracy";
  DefaultCheckpointer second(options);
  save(second, epoch_end(5, 0.1));
  EXPECT_THAT(names(), Contains("checkpoint_0.pt"));
  EXPECT_THAT(names(), Not(Contains("checkpoint_1.pt")));
}

TEST_F(ListSafetyTest, WhatTheIntervalMissedIsSavedAtTheEnd) {
  KeyMetricOptions options;
  options.save_dir = folder_.text();
  options.save_interval = 1;
  KeyMetricCheckpointer checkpointer(options);
  checkpointer.open({});
  save(checkpointer, epoch_end(1));
  save(checkpointer, epoch_end(2, 0.5, Cause::kEnd));  // its own save failed, or was left out
  save(checkpointer, epoch_end(2, 0.5, Cause::kEnd));
  EXPECT_THAT(names(), ElementsAre("checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt"));
}

TEST_F(ListSafetyTest, WhatIsAskedForBetweenEpochsIsNotNamedByEpochs) {
  KeyMetricOptions options;
  options.save_dir = folder_.text();
  options.save_interval = 1;
  KeyMetricCheckpointer checkpointer(options, HostContext{.logger = &logger_});
  checkpointer.open({});
  SavePoint step = epoch_end(1, 0.5, Cause::kRequest);
  step.unit = Unit::kStep;
  step.index = step.global_step = 4;
  save(checkpointer, step);
  for (int64_t epochs = 1; epochs < 5; ++epochs) save(checkpointer, epoch_end(epochs));
  EXPECT_THAT(names(), ElementsAre("checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt", "checkpoint_epoch=3.pt", "checkpoint_epoch=4.pt", "checkpoint_iteration=4.pt"));
  EXPECT_THAT(logger_.warnings(), IsEmpty());
}

TEST_F(ListSafetyTest, TwoPeriodsThatNeverMeetAreRefused) {
  KeyMetricOptions options;
  options.save_dir = folder_.text();
  options.save_interval = 2;
  KeyMetricCheckpointer checkpointer(options);
  EXPECT_THAT([&] { checkpointer.set_schedule({.period = 2}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("never meet")));
}

}  // namespace
}  // namespace marlin
