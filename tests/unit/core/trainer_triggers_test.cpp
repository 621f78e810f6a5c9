// What makes a Trainer save between the ends of epochs.
#include <gmock/gmock.h>

#include <future>
#include <stdexcept>
#include <thread>

#include "marlin/core/trainer.h"
#include "recording_checkpointer.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::names_in;
using testing::Recorded;
using testing::run_of;
using testing::same_parameters;
using testing::save_in;
using testing::TempFolder;
using testing::TinyModule;
using testing::TinyOptions;

// Three steps an epoch.
std::shared_ptr<TinyModule> make_module() { return std::make_shared<TinyModule>(TinyOptions{.num_samples = 12, .adamw = true}); }

// "epoch 0", "step 5": what was saved, in order.
std::vector<std::string> saves_of(const Recorded& recorded) {
  std::vector<std::string> result;
  for (const Recorded::Saved& save : recorded.saves) result.push_back(std::string(to_string(save.point.unit)) + " " + std::to_string(save.point.index));
  return result;
}

// A clock that a module moves on by so many seconds with each step.
struct SteppingClock {
  std::chrono::steady_clock::time_point now;
  std::function<std::chrono::steady_clock::time_point()> function() {
    return [this] { return now; };
  }
  void drive(TinyModule& module, int seconds) {
    module.at_end_step = [this, seconds](const StepSummary&) { now += std::chrono::seconds(seconds); };
  }
};

struct TriggersTest : ::testing::Test {
  std::shared_ptr<Recorded> recorded = std::make_shared<Recorded>();
  std::shared_ptr<TinyModule> module = make_module();
  SteppingClock clock;
  testing::RecordingLogger logger;

  std::unique_ptr<Trainer> trainer(int64_t epochs, const SaveSchedule& schedule) {
    TrainerServices services{.logger = &logger};
    services.clock = clock.function();
    return std::make_unique<Trainer>(module, nullptr, testing::recording_checkpointer(recorded, schedule), run_of(epochs), std::move(services));
  }
};

TEST_F(TriggersTest, PeriodStepsSavesBetweenEpochsWhichGoOnAsBefore) {
  trainer(4, {.period = 2, .period_steps = 5})->train();
  EXPECT_THAT(saves_of(*recorded), ElementsAre("epoch 0", "step 5", "epoch 2", "step 10", "epoch 3"));
  const SavePoint& point = recorded->saves.at(1).point;
  EXPECT_EQ(point.epoch, 1);
  EXPECT_EQ(point.global_step, 5);
  EXPECT_EQ(point.cause, Cause::kPeriod);
  EXPECT_FALSE(point.force);
}

TEST_F(TriggersTest, PeriodSecondsCountsFromTheNewestSave) {
  clock.drive(*module, /*seconds=*/10);
  trainer(5, {.period = 100, .period_seconds = 40, .async = false})->train();
  // Epoch 0 ends at 30 s; 70 s and 110 s are after steps 7 and 11; 150 s is the end.
  EXPECT_THAT(saves_of(*recorded), ElementsAre("epoch 0", "step 7", "step 11", "step 15", "epoch 4"));
}

TEST_F(TriggersTest, APredicateIsAskedAfterEveryStepAndEpoch) {
  std::vector<std::string> asked;
  SaveSchedule schedule{.period = 100};
  schedule.also_when = [&](const SavePoint& point) {
    asked.push_back(std::string(to_string(point.unit)) + " " + std::to_string(point.global_step));
    return point.global_step == 5;
  };
  trainer(2, schedule)->train();
  EXPECT_THAT(asked, ElementsAre("step 1", "step 2", "step 3", "step 4", "step 5", "step 6", "epoch 6"));
  EXPECT_THAT(saves_of(*recorded), ElementsAre("epoch 0", "step 5", "epoch 1"));
}

TEST_F(TriggersTest, APredicateThatThrowsIsAFailedSaveAndTrainingGoesOn) {
  SaveSchedule schedule{.async = false};
  schedule.also_when = [](const SavePoint& point) -> bool {
    if (point.unit == Unit::kStep) throw std::runtime_error("no idea");
    return false;
  };
  EXPECT_EQ(trainer(1, schedule)->train().exit_code(), 0) << "the last save succeeds";
  EXPECT_THAT(logger.errors(), Contains(HasSubstr("also_when failed: no idea")));
}

TEST_F(TriggersTest, ARequestFromACallbackIsCarriedOutAfterTheRunningStep) {
  const auto run = trainer(2, {.period = 100});
  module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step == 2 || step.global_step == 4) run->request_save();
  };
  run->train();
  EXPECT_THAT(saves_of(*recorded), ElementsAre("step 2", "epoch 0", "step 4", "epoch 1"));
  EXPECT_EQ(recorded->saves.at(0).point.cause, Cause::kRequest);
}

TEST_F(TriggersTest, ARequestFromAnotherThreadIsCarriedOutAfterTheRunningStep) {
  const auto run = trainer(1, {.period = 100});
  std::promise<void> in_step, requested;
  std::thread other([&] {
    in_step.get_future().wait();
    run->request_save();
    requested.set_value();
  });
  module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step != 2) return;
    in_step.set_value();
    requested.get_future().wait();
  };
  run->train();
  other.join();
  EXPECT_THAT(saves_of(*recorded), ElementsAre("step 2", "epoch 0"));
}

TEST_F(TriggersTest, ARequestAtAnEpochsEndIsCarriedOutWithIt) {
  const auto run = trainer(3, {.period = 100});
  module->at_end_epoch = [&](const EpochSummary& epoch) {
    if (epoch.epoch == 1) run->request_save();
  };
  run->train();
  EXPECT_THAT(saves_of(*recorded), ElementsAre("epoch 0", "epoch 1", "epoch 2"));
  EXPECT_EQ(recorded->saves.at(1).point.cause, Cause::kRequest);
}

TEST_F(TriggersTest, TheMasterSwitchBeatsAllOfThem) {
  SaveSchedule schedule{.checkpoint = false, .period_steps = 1, .period_seconds = 0.001};
  schedule.also_when = [](const SavePoint&) { return true; };
  const auto run = trainer(1, schedule);
  run->request_save();
  run->train();
  EXPECT_TRUE(recorded->saves.empty());
  EXPECT_EQ(module->get_state_calls, 0);
}

TEST_F(TriggersTest, AFailedSaveIsTriedAgainAMinuteLater) {
  clock.drive(*module, /*seconds=*/10);
  recorded->before_save = [](const SavePoint& point) {
    if (point.index == 0) throw std::runtime_error("the disk is away");
  };
  trainer(5, {.period = 100, .async = false})->train();
  EXPECT_THAT(saves_of(*recorded), ElementsAre("step 9", "epoch 4")) << "epoch 0 failed at 30 s";
}

TEST_F(TriggersTest, ARunResumedFromAStepFileGoesOnAtItsConsumedSamples) {
  const TempFolder folder;
  DefaultCheckpointer* writer = nullptr;
  {
    auto checkpointer = std::make_unique<DefaultCheckpointer>(save_in(folder.text()));
    writer = checkpointer.get();
    writer->set_schedule({.period_steps = 2});
    Checkpointers checkpointers;
    checkpointers.push_back(std::move(checkpointer));
    Trainer(module, nullptr, std::move(checkpointers), run_of(2)).train();
  }
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt", "checkpoint_1.pt", "checkpoint_model_1.pt", "checkpoint_step_2.pt", "checkpoint_step_4.pt", "checkpoint_step_6.pt"));
  for (const char* file : {"checkpoint_step_2.pt", "checkpoint_step_4.pt", "checkpoint_step_6.pt"}) {
    const TempFolder other;
    const auto resumed = make_module();
    const RunResult result = testing::saving_trainer(resumed, other.text(), run_of(2, (folder / file).string()))->train();
    EXPECT_EQ(result.global_step, 6) << file;
    EXPECT_TRUE(same_parameters(*module, *resumed)) << file;
  }
}

}  // namespace
}  // namespace marlin
