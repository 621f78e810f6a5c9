#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "marlin/core/trainer.h"
#include "recording_checkpointer.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using testing::names_in;
using testing::run_of;
using testing::same_parameters;
using testing::saving_trainer;
using testing::TempFolder;
using testing::TinyModule;
using testing::TinyOptions;
using Outcome = RunResult::Outcome;

std::shared_ptr<TinyModule> make_module() { return std::make_shared<TinyModule>(TinyOptions{.num_samples = 12, .adamw = true}); }

TEST(TrainerThreadTest, StopFromAnotherThreadEndsAfterTheRunningStepAndCanBeResumed) {
  const TempFolder folder, straight_folder;
  auto straight = make_module(), module = make_module(), resumed = make_module();
  saving_trainer(straight, straight_folder.text(), run_of(3))->train();

  const auto trainer = saving_trainer(module, folder.text(), run_of(3));
  std::promise<void> in_step, stopped;
  module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step != 4) return;
    in_step.set_value();
    stopped.get_future().wait();
  };
  std::thread other([&] {
    in_step.get_future().wait();
    trainer->stop();
    stopped.set_value();
  });
  const RunResult result = trainer->train();
  other.join();
  EXPECT_EQ(result.outcome, Outcome::kStopped);
  EXPECT_EQ(result.global_step, 4);
  EXPECT_EQ(result.summary().substr(0, 32), "stopped epochs=1 global_step=4 v");
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt", "checkpoint_step_4.pt"));

  EXPECT_EQ(saving_trainer(resumed, folder.text(), run_of(3, "auto"))->train().outcome, Outcome::kDone);
  EXPECT_TRUE(same_parameters(*straight, *resumed));
}

TEST(TrainerThreadTest, TwoTrainersInOneProcessDoNotDisturbEachOther) {
  const TempFolder alone_folder, folders[2];
  auto alone = make_module();
  const RunResult expected = saving_trainer(alone, alone_folder.text(), run_of(6))->train();

  std::shared_ptr<TinyModule> modules[2] = {make_module(), make_module()};
  RunResult results[2];
  std::promise<void> ready[2];
  std::shared_future<void> is_ready[2] = {ready[0].get_future().share(), ready[1].get_future().share()};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    modules[i]->at_end_step = [&, i](const StepSummary& step) {
      if (step.global_step != 1) return;
      ready[i].set_value();
      is_ready[1 - i].wait();  // both are in the middle of an epoch
    };
    threads.emplace_back([&, i] { results[i] = saving_trainer(modules[i], folders[i].text(), run_of(6))->train(); });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(results[i].metrics, expected.metrics);
    EXPECT_TRUE(same_parameters(*modules[i], *alone));
    EXPECT_EQ(names_in(folders[i].path()), names_in(alone_folder.path()));
  }
}

// The first save is held up until the third epoch begins.
struct HeldUp {
  std::promise<void> third_epoch;
  std::shared_ptr<testing::Recorded> recorded = std::make_shared<testing::Recorded>();
  std::shared_ptr<TinyModule> module = make_module();

  HeldUp() {
    recorded->before_save = [this](const SavePoint& point) {
      if (point.epoch == 0) third_epoch.get_future().wait();
    };
    module->at_end_step = [this](const StepSummary& step) {
      if (step.epoch == 2 && step.global_step == 7) third_epoch.set_value();
    };
  }
};

TEST(TrainerThreadTest, ASavePointThatFindsTheSaveBeforeInFlightIsSkippedIfTheOptionsSaySoAndTheLogTells) {
  HeldUp run;
  testing::RecordingLogger logger;
  Trainer trainer(run.module, nullptr, testing::recording_checkpointer(run.recorded, {.when_busy = WhenBusy::kSkip}), run_of(3), {.logger = &logger});
  const RunResult result = trainer.train();
  EXPECT_EQ(result.exit_code(), 0);
  EXPECT_THAT(run.recorded->indices(), ElementsAre(0, 2)) << "the last one is never skipped";
  EXPECT_THAT(logger.lines(LogLevel::kInfo), ::testing::Contains(::testing::HasSubstr("does not save the epoch 1, step 6: the save before it is still being written")));
}

TEST(TrainerThreadTest, ASavePointWaitsForTheSaveInFlightUnlessToldOtherwise) {
  auto recorded = std::make_shared<testing::Recorded>();
  const auto module = make_module();
  std::promise<void> second_save_point;
  recorded->before_save = [&](const SavePoint& point) {
    if (point.epoch == 0) second_save_point.get_future().wait();
  };
  recorded->at_due = [&, asked = 0]() mutable {
    if (++asked == 2) second_save_point.set_value();
  };
  Trainer trainer(module, nullptr, testing::recording_checkpointer(recorded), run_of(3));
  trainer.train();
  EXPECT_THAT(recorded->indices(), ElementsAre(0, 1, 2));
}

TEST(TrainerThreadTest, WithoutMemoryForASnapshotTheStateIsSavedWhileTrainingStandsStill) {
  // No copy can be made of a tensor that has a size and no memory, as none can be made when memory has run out.
  struct WithoutMemory : TinyModule {
    using TinyModule::TinyModule;
    [[nodiscard]] StateDict get_state() const override {
      StateDict state = TinyModule::get_state();
      state.set("no_memory", torch::empty({4}, torch::kMeta));
      return state;
    }
  };
  auto recorded = std::make_shared<testing::Recorded>();
  testing::RecordingLogger logger;
  Trainer trainer(std::make_shared<WithoutMemory>(TinyOptions{.num_samples = 12}), nullptr, testing::recording_checkpointer(recorded), run_of(2), {.logger = &logger});
  EXPECT_EQ(trainer.train().exit_code(), 0);
  EXPECT_THAT(recorded->indices(), ElementsAre(0, 1));
  EXPECT_THAT(logger.warnings(), ::testing::Contains(::testing::HasSubstr("no snapshot could be taken")));
}

}  // namespace
}  // namespace marlin
