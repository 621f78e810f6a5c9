#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "marlin/core/trainer.h"
#include "temp_folder.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using testing::names_in;
using testing::same_parameters;
using testing::saving_trainer;
using testing::TempFolder;
using testing::TinyModule;
using testing::TinyOptions;
using Outcome = RunResult::Outcome;

TrainerOptions run_of(int64_t epochs, std::optional<std::string> resume = {}) {
  TrainerOptions options;
  options.epochs = epochs;
  options.train_batch_size = 4;
  options.resume = std::move(resume);
  return options;
}

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

}  // namespace
}  // namespace marlin
