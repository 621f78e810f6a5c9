// Promise: a run ends once its metric no longer gets better, and a resumed one counts on.
#include "marlin/core/early_stopping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::run_of;
using testing::saving_trainer;
using testing::TempFolder;
using testing::ThrowsError;
using testing::TinyModule;
using Outcome = RunResult::Outcome;

Metrics metric(const std::string& name, double value) {
  Metrics metrics;
  metrics.set(name, value);
  return metrics;
}

// The epoch, from 1, at which it is over; 0: never.
int over_after(EarlyStopping& stopping, const std::string& name, const std::vector<double>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    stopping.observe(metric(name, values[i]));
    if (stopping.is_over()) return static_cast<int>(i) + 1;
  }
  return 0;
}

TEST(EarlyStoppingTest, WithoutAMetricItNeverStops) {
  EarlyStopping stopping;
  EXPECT_EQ(over_after(stopping, "val/loss", {1, 2, 3, 4, 5, 6, 7}), 0);
}

TEST(EarlyStoppingTest, StopsAfterSoManyEpochsInARowWithoutAnImprovement) {
  EarlyStopping stopping({.metric = "val/loss", .patience = 2});
  EXPECT_EQ(over_after(stopping, "val/loss", {5, 6, 4, 5, 4, 3, 3, 3, 1}), 5);
  EarlyStopping rising({.metric = "val/accuracy", .patience = 2, .mode = "max"});
  EXPECT_EQ(over_after(rising, "val/accuracy", {0.1, 0.2, 0.3, 0.3, 0.3}), 5);
}

TEST(EarlyStoppingTest, WhatIsBetterByNoMoreThanTheSmallestChangeIsNoImprovement) {
  EarlyStopping stopping({.metric = "val/loss", .patience = 2, .min_delta = 0.5});
  EXPECT_EQ(over_after(stopping, "val/loss", {5, 4.5, 4.25, 4, 3.75, 1}), 5) << "4.25 is by more than 0.5 below 5; 3.75 is not by more below 4.25";
}

TEST(EarlyStoppingTest, NotANumberIsNoImprovementAndNoBest) {
  EarlyStopping stopping({.metric = "val/loss", .patience = 2});
  EXPECT_EQ(over_after(stopping, "val/loss", {NAN, 3, NAN, NAN}), 4);
  EarlyStopping never({.metric = "val/loss", .patience = 2});
  EXPECT_EQ(over_after(never, "val/loss", {NAN, NAN}), 2);
  EXPECT_THAT(never.reason(), HasSubstr("was not a number in 2 epochs"));
}

TEST(EarlyStoppingTest, ModeIsGuessedForALossOnly) {
  EXPECT_THAT([] { EarlyStopping({.metric = "val/accuracy"}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("early_stopping.mode: say whether val/accuracy is better")));
  EXPECT_NO_THROW(EarlyStopping({.metric = "val/other/loss"}));
}

TEST(EarlyStoppingTest, AnUnknownMetricListsThoseThereAre) {
  EarlyStopping stopping({.metric = "val/los", .mode = "min"});
  EXPECT_THAT([&] { stopping.observe(metric("val/loss", 1)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("no metric 'val/los'; there are: val/loss")));
}

TEST(EarlyStoppingTest, ItsStateGoesOnAndPatienceMayBeRaised) {
  EarlyStopping first({.metric = "val/loss", .patience = 2});
  ASSERT_EQ(over_after(first, "val/loss", {3, 4, 4}), 3);
  EarlyStopping same({.metric = "val/loss", .patience = 2});
  same.update_state(first.get_state());
  EXPECT_TRUE(same.is_over());
  EarlyStopping patient({.metric = "val/loss", .patience = 4});
  patient.update_state(first.get_state());
  EXPECT_FALSE(patient.is_over());
  EXPECT_EQ(over_after(patient, "val/loss", {3.5, 3.5}), 2);
  EarlyStopping other({.metric = "train/loss", .patience = 2});
  other.update_state(first.get_state());
  EXPECT_FALSE(other.is_over()) << "another metric begins anew";
}

std::shared_ptr<TinyModule> module_with_losses(std::vector<double> losses) {
  auto module = std::make_shared<TinyModule>();
  module->instead_of_val_step = [losses = std::move(losses)](const StepContext& step, Batch&) { return StepOutput(torch::tensor(losses.at(static_cast<size_t>(step.epoch)))); };
  return module;
}

TrainerOptions early(int64_t patience, std::optional<std::string> resume = {}) {
  TrainerOptions options = run_of(10, std::move(resume));
  options.early_stopping = {.metric = "val/loss", .patience = patience};
  return options;
}

TEST(EarlyStoppingTest, ARunThatStopsEarlyIsDoneAndStaysSoUntilPatienceIsRaised) {
  const std::vector<double> losses = {3, 2, 2.5, 2.5, 1, 2, 2, 2, 2, 2};
  const TempFolder folder;
  const RunResult first = saving_trainer(module_with_losses(losses), folder.text(), early(2))->train();
  EXPECT_EQ(first.outcome, Outcome::kDone);
  EXPECT_EQ(first.epochs, 4);
  EXPECT_EQ(first.exit_code(), 0);
  EXPECT_EQ(saving_trainer(module_with_losses(losses), folder.text(), early(2, "auto"))->train().outcome, Outcome::kNothingToDo);
  const RunResult patient = saving_trainer(module_with_losses(losses), folder.text(), early(3, "auto"))->train();
  EXPECT_EQ(patient.epochs, 8) << "better at the fifth, then three in vain";
  EXPECT_EQ(patient.outcome, Outcome::kDone);
}

TEST(EarlyStoppingTest, AStopBetweenDoesNotChangeWhenItEnds) {
  const std::vector<double> losses = {3, 2, 2.5, 2.5, 1, 2, 2, 2, 2, 2};
  for (const int64_t step : {1, 3, 4, 5, 7}) {
    SCOPED_TRACE(step);
    const TempFolder folder;
    const auto module = module_with_losses(losses);
    std::unique_ptr<Trainer> trainer = saving_trainer(module, folder.text(), early(2));
    module->at_end_step = [&](const StepSummary& summary) { if (summary.global_step == step) trainer->stop(); };
    EXPECT_EQ(trainer->train().outcome, Outcome::kStopped);
    EXPECT_EQ(saving_trainer(module_with_losses(losses), folder.text(), early(2, "auto"))->train().epochs, 4);
  }
}

}  // namespace
}  // namespace marlin
