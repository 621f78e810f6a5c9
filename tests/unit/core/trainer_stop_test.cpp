// Promise: a run stops where it is asked to, by whatever asks, and says how it ended.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <csignal>
#include <utility>

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/core/stop_signals.h"
#include "recording_checkpointer.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::names_in;
using testing::RecordingLogger;
using testing::run_of;
using testing::saving_trainer;
using testing::TempFolder;
using testing::ThrowsError;
using testing::TinyModule;
using testing::TinyOptions;
using testing::unsaved_trainer;
using Outcome = RunResult::Outcome;

void (*handler_of(int signal))(int) {
  struct sigaction action {};
  sigaction(signal, nullptr, &action);
  return action.sa_handler;
}

// Delivers some batches and then waits for the stop, as a loader does whose worker is stuck.
class StuckLoader final : public DataLoader {
 public:
  StuckLoader(std::unique_ptr<DataLoader> loader, std::function<bool()> stop_requested, int64_t batches, std::function<void()> when_stuck)
      : loader_(std::move(loader)), stop_requested_(std::move(stop_requested)), left_(batches), when_stuck_(std::move(when_stuck)) {}
  [[nodiscard]] std::optional<int64_t> num_samples() const override { return loader_->num_samples(); }
  [[nodiscard]] int64_t batch_size() const override { return loader_->batch_size(); }
  void begin_epoch(int64_t epoch) override { loader_->begin_epoch(epoch); }
  [[nodiscard]] bool next(Batch& into) override {
    if (left_-- > 0) return loader_->next(into);
    when_stuck_();
    interrupted_ = stop_requested_();
    return false;
  }
  [[nodiscard]] bool interrupted() const override { return interrupted_; }
  [[nodiscard]] int64_t consumed_samples() const override { return loader_->consumed_samples(); }
  [[nodiscard]] StateDict get_state() const override { return loader_->get_state(); }
  void update_state(const StateDict& state) override { loader_->update_state(state); }

 private:
  std::unique_ptr<DataLoader> loader_;
  std::function<bool()> stop_requested_;
  int64_t left_;
  std::function<void()> when_stuck_;
  bool interrupted_ = false;
};

// ---- signals

TEST(TrainerStopTest, ASignalStopsAfterTheStepWithItsExitCode) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const TempFolder folder;
    const auto module = std::make_shared<TinyModule>();
    const auto trainer = saving_trainer(module, folder.text(), run_of(3));
    module->at_end_step = [&](const StepSummary& step) { if (step.global_step == 3) raise(signal); };
    const StopSignals signals(*trainer);
    const RunResult result = trainer->train();
    EXPECT_EQ(result.outcome, Outcome::kStopped);
    EXPECT_EQ(result.global_step, 3);
    EXPECT_EQ(result.exit_code(), 128 + signal);
    EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt", "checkpoint_step_3.pt"));
  }
}

TEST(TrainerStopTest, ASignalInTheLastStepOfAllIsNoStop) {
  const TempFolder folder;
  const auto module = std::make_shared<TinyModule>(TinyOptions{.val = {}});
  const auto trainer = saving_trainer(module, folder.text(), run_of(1));
  module->at_end_epoch = [&](const EpochSummary&) { raise(SIGTERM); };
  const StopSignals signals(*trainer);
  const RunResult result = trainer->train();
  EXPECT_EQ(result.outcome, Outcome::kDone);
  EXPECT_EQ(result.exit_code(), 0);
}

TEST(TrainerStopTest, TheSecondInterruptIsForTheSystem) {
  const auto module = std::make_shared<TinyModule>();
  const auto trainer = unsaved_trainer(module, run_of(3));
  const StopSignals signals(*trainer);
  EXPECT_NE(handler_of(SIGINT), SIG_DFL);
  raise(SIGINT);
  EXPECT_TRUE(trainer->stop_requested());
  EXPECT_EQ(handler_of(SIGINT), SIG_DFL);
  raise(SIGTERM);  // does not end the process
}

TEST(TrainerStopTest, WhatWasThereBeforeComesBack) {
  const auto before = std::signal(SIGINT, SIG_IGN);
  {
    const auto trainer = unsaved_trainer(std::make_shared<TinyModule>(), run_of(1));
    const StopSignals signals(*trainer);
    EXPECT_NE(handler_of(SIGINT), SIG_IGN) << "an interrupt that was inherited as ignored is heard, too";
    EXPECT_THAT([&] { StopSignals second(*trainer); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("another Trainer")));
  }
  EXPECT_EQ(handler_of(SIGINT), SIG_IGN);
  EXPECT_EQ(handler_of(SIGTERM), SIG_DFL);
  std::signal(SIGINT, before);
}

TEST(TrainerStopTest, ASaveSignalSavesAndGoesOn) {
  const TempFolder folder;
  const auto module = std::make_shared<TinyModule>();
  const auto trainer = saving_trainer(module, folder.text(), run_of(2));
  module->at_end_step = [&](const StepSummary& step) { if (step.global_step == 3) raise(SIGUSR1); };
  const StopSignals signals(*trainer);
  EXPECT_EQ(trainer->train().outcome, Outcome::kDone);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt", "checkpoint_1.pt", "checkpoint_model_1.pt", "checkpoint_step_3.pt"));
}

TEST(TrainerStopTest, ASaveSignalBeforeThereIsATrainerIsRemembered) {
  const TempFolder folder;
  const auto before = handler_of(SIGUSR1);
  remember_save_signal();
  raise(SIGUSR1);
  const auto trainer = saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(1));
  {
    const StopSignals signals(*trainer);
    trainer->train();
  }
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt", "checkpoint_model_0.pt", "checkpoint_step_1.pt"));
  std::signal(SIGUSR1, before);
}

TEST(TrainerStopTest, BeforeTrainingNothingOnDiskIsChanged) {
  const TempFolder folder;
  saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(2))->train();
  const auto before = names_in(folder.path());
  TrainerServices services;
  services.before_training = [&] {
    EXPECT_EQ(names_in(folder.path()), before);
    throw std::runtime_error("here");
  };
  DefaultCheckpointerOptions options = testing::save_in(folder.text());
  options.delete_existing_checkpoints = true;
  Trainer trainer(std::make_shared<TinyModule>(), nullptr, testing::default_checkpointer(options), run_of(2), std::move(services));
  EXPECT_THROW(trainer.train(), std::runtime_error);
  EXPECT_EQ(names_in(folder.path()), before);
  EXPECT_FALSE(trainer.started());
}

// ---- validation

TEST(TrainerStopTest, AStopInAValidationLeavesItToTheResumedRun) {
  const TempFolder folder;
  const TinyOptions tiny{.val = {{"a", 8}, {"b", 8}}};
  auto module = std::make_shared<TinyModule>(tiny);
  std::unique_ptr<Trainer> trainer = saving_trainer(module, folder.text(), run_of(2));
  int batches = 0;
  module->instead_of_val_step = [&](const StepContext&, Batch& batch) {
    if (++batches == 3) trainer->stop();
    return StepOutput((module->predict(batch.data()) - batch.target()).square().mean());
  };
  const RunResult stopped = trainer->train();
  EXPECT_EQ(stopped.outcome, Outcome::kStopped);
  EXPECT_EQ(batches, 3) << "b's second batch is not validated any more";
  EXPECT_EQ(module->times("end_val a"), 1u);
  EXPECT_EQ(module->times("end_val b"), 0u);
  const Checkpoint left = read_checkpoint(folder / "checkpoint_step_2.pt");
  EXPECT_EQ(left.trainer_state.at("phase").as_string(), "validation");

  module = std::make_shared<TinyModule>(tiny);
  trainer = saving_trainer(module, folder.text(), run_of(2, "auto"));
  EXPECT_EQ(trainer->train().outcome, Outcome::kDone);
  EXPECT_EQ(module->train_steps.front(), 2) << "no step is repeated";
  EXPECT_EQ(module->log.at(0), "begin_epoch 0 2 train");
  EXPECT_EQ(module->log.at(1), "end_val b 0 2 eval") << "a is through";
  EXPECT_EQ(module->log.at(2), "end_epoch 0 2 train");
}

TEST(TrainerStopTest, AValidationThatWasAskedForByItselfIsNotStopped) {
  const auto module = std::make_shared<TinyModule>(TinyOptions{.val = {{"default", 12}}});
  const auto trainer = unsaved_trainer(module, run_of(1));
  trainer->stop();
  EXPECT_NE(trainer->validate().find("val/loss"), nullptr);
  EXPECT_EQ(module->val_steps.size(), 3u);
}

TEST(TrainerStopTest, AValidationThatIsLeftPutsBuffersBack) {
  // Gathers in a buffer, as a confusion matrix does.
  class Counting final : public TinyModule {
   public:
    explicit Counting(const TinyOptions& options) : TinyModule(options), seen(register_buffer("seen", torch::zeros({}, torch::kInt64))) {}
    StepOutput val_step(const StepContext& step, Batch& batch) override {
      seen += batch.num_samples;
      return TinyModule::val_step(step, batch);
    }
    void on_begin_val_epoch(const std::string&, int64_t, int64_t) override { ++begins; }
    void on_end_val_epoch(const std::string& loader, const EpochSummary& summary) override {
      TinyModule::on_end_val_epoch(loader, summary);
      counted.push_back(seen.item<int64_t>());
      seen.zero_();
    }
    at::Tensor seen;
    std::vector<int64_t> counted;
    int begins = 0;
  };
  const TempFolder folder;
  const auto module = std::make_shared<Counting>(TinyOptions{.val = {{"default", 20}}});
  std::unique_ptr<Trainer> trainer = saving_trainer(module, folder.text(), run_of(1));
  int batches = 0;
  module->instead_of_val_step = [&](const StepContext&, Batch&) {
    if (++batches == 3) trainer->stop();
    return StepOutput(torch::tensor(1.0));
  };
  trainer->train();
  EXPECT_EQ(read_checkpoint(folder / "checkpoint_step_2.pt").module_interface_state.at("seen").as_tensor().item<int64_t>(), 0);
  EXPECT_EQ(trainer->train().outcome, Outcome::kDone);
  EXPECT_THAT(module->counted, ElementsAre(20)) << "each sample once";
  EXPECT_EQ(module->begins, 2);
}

// ---- the end by max_steps

TEST(TrainerStopTest, AValidationThatEndsARunByStepsIsNotLostByAStop) {
  for (const int64_t steps : {1, 2, 3, 4}) {  // two are an epoch
    for (const bool in_validation : {false, true}) {
      for (const bool same_trainer : {false, true}) {
        SCOPED_TRACE(steps * 100 + in_validation * 10 + same_trainer);
        const TempFolder folder;
        auto module = std::make_shared<TinyModule>(TinyOptions{.val = {{"default", 12}}});
        TrainerOptions options = run_of(2);
        options.max_steps = steps;
        std::unique_ptr<Trainer> trainer = saving_trainer(module, folder.text(), options);
        bool stopped = false;
        const auto stop_once = [&](int64_t step) {
          if (step == steps && !std::exchange(stopped, true)) trainer->stop(SIGTERM);
        };
        if (in_validation) {
          module->instead_of_val_step = [&](const StepContext& step, Batch&) { return stop_once(step.global_step), StepOutput(torch::tensor(1.0)); };
        } else {
          module->at_end_step = [&](const StepSummary& step) { stop_once(step.global_step); };
        }
        const RunResult first = trainer->train();
        EXPECT_EQ(first.outcome, Outcome::kStopped);
        EXPECT_EQ(first.global_step, steps);
        if (!same_trainer) {
          module = std::make_shared<TinyModule>(TinyOptions{.val = {{"default", 12}}});
          options.resume = "auto";
          trainer = saving_trainer(module, folder.text(), options);
        }
        const RunResult second = trainer->train();
        EXPECT_EQ(second.outcome, Outcome::kDone);
        EXPECT_EQ(second.global_step, steps);
        EXPECT_EQ(module->times("end_epoch"), static_cast<size_t>(same_trainer ? (steps + 1) / 2 : 1));
        EXPECT_EQ(module->times("end_train"), 1u);
        EXPECT_EQ(trainer->train().outcome, Outcome::kNothingToDo);
        options.resume = "auto";
        EXPECT_EQ(saving_trainer(std::make_shared<TinyModule>(TinyOptions{.val = {{"default", 12}}}), folder.text(), options)->train().outcome, Outcome::kNothingToDo);
      }
    }
  }
}

// ---- callbacks

TEST(TrainerStopTest, WhatABeginCallbackDrawsIsNotDrawnTwiceWhenTheFirstBatchIsWaitedFor) {
  class Drawing final : public TinyModule {
   public:
    using TinyModule::TinyModule;
    void on_begin_train_epoch(int64_t, int64_t) override { drawn.push_back(torch::rand({}).item<double>()); }
    std::vector<double> drawn;
  };
  const auto module = std::make_shared<Drawing>(TinyOptions{.num_samples = 4});
  std::unique_ptr<Trainer> trainer;
  bool stuck = false;
  module->instead_of_train_loader = [&](const LoaderRequest& request) {
    return std::make_unique<StuckLoader>(std::make_unique<TensorLoader>(module->data(4), request), request.stop_requested, std::exchange(stuck, true) ? 1000 : 2, [&] { trainer->stop(); });
  };
  trainer = unsaved_trainer(module, run_of(2));
  torch::manual_seed(3);
  EXPECT_EQ(trainer->train().global_step, 1) << "the second epoch's first batch never came";
  EXPECT_EQ(trainer->train().global_step, 1);
  ASSERT_EQ(module->drawn.size(), 3u);
  EXPECT_EQ(module->drawn[1], module->drawn[2]);
}

TEST(TrainerStopTest, AStateSavedInACallbackIsFollowedByTheWholeOneOfTheStep) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>();
  std::unique_ptr<Trainer> trainer = saving_trainer(module, folder.text(), run_of(1));
  module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step != 1) return;
    trainer->save_checkpoint(true);
    trainer->request_save();
  };
  trainer->train();
  const StateDict state = read_checkpoint(folder / "checkpoint_step_1.pt").trainer_state;
  EXPECT_EQ(state.at("epoch_metrics").as_dict().at("loss").as_items().at(1).as_double(), 4.0) << "samples of the step";
}

// ---- waiting for data

TEST(TrainerStopTest, ALoaderThatWaitsIsLeftAndTheResumedRunIsTheStraightOne) {
  auto straight = std::make_shared<TinyModule>(TinyOptions{.num_samples = 12});
  unsaved_trainer(straight, run_of(2))->train();
  for (const int64_t batches : {0, 1, 3, 4}) {
    SCOPED_TRACE(batches);
    const TempFolder folder;
    auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 12});
    std::unique_ptr<Trainer> trainer;
    module->instead_of_train_loader = [&](const LoaderRequest& request) {
      EXPECT_FALSE(request.stop_requested());
      return std::make_unique<StuckLoader>(std::make_unique<TensorLoader>(module->data(12), request), request.stop_requested, batches, [&] { trainer->stop(SIGTERM); });
    };
    trainer = saving_trainer(module, folder.text(), run_of(2));
    const RunResult result = trainer->train();
    EXPECT_EQ(result.outcome, Outcome::kStopped);
    EXPECT_EQ(result.exit_code(), 143);
    EXPECT_EQ(result.global_step, std::min<int64_t>(batches, 3)) << "three batches are an epoch";
    const auto resumed = std::make_shared<TinyModule>(TinyOptions{.num_samples = 12});
    EXPECT_EQ(saving_trainer(resumed, folder.text(), run_of(2, "auto"))->train().outcome, Outcome::kDone);
    EXPECT_TRUE(testing::same_parameters(*straight, *resumed));
  }
}

// ---- time

struct TimedRun {
  std::chrono::steady_clock::time_point now = std::chrono::steady_clock::now();
  RecordingLogger logger;
  TrainerServices services() {
    TrainerServices services;
    services.logger = &logger;
    services.clock = [this] { return now; };
    services.began = now;
    return services;
  }
  void pass(double seconds) { now += std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(seconds)); }
};

TEST(TrainerStopTest, StopsAndSavesBeforeItsTimeIsUp) {
  const TempFolder folder;
  TimedRun run;
  const auto module = std::make_shared<TinyModule>();
  module->at_end_step = [&](const StepSummary&) { run.pass(1.0); };
  TrainerOptions options = run_of(1000);
  options.max_seconds = 100.0;
  const auto trainer = saving_trainer(module, folder.text(), options, run.services());
  const RunResult result = trainer->train();
  EXPECT_EQ(result.outcome, Outcome::kStopped);
  EXPECT_TRUE(result.out_of_time);
  EXPECT_EQ(result.exit_code(), 5);
  EXPECT_GE(result.global_step, 90);
  EXPECT_LE(result.global_step, 99);
  EXPECT_FALSE(result.checkpoint.empty());
  options.max_seconds.reset();
  options.epochs = result.epochs + 1;
  options.resume = "auto";
  EXPECT_EQ(saving_trainer(std::make_shared<TinyModule>(), folder.text(), options)->train().global_step, (result.epochs + 1) * 2);
}

TEST(TrainerStopTest, AValidationLooksAtTheTimeToo) {
  const TempFolder folder;
  TimedRun run;
  const auto module = std::make_shared<TinyModule>(TinyOptions{.val = {{"default", 400}}});
  int batches = 0;
  module->instead_of_val_step = [&](const StepContext&, Batch&) { return ++batches, run.pass(1.0), StepOutput(torch::tensor(1.0)); };
  TrainerOptions options = run_of(3);
  options.max_seconds = 50.0;
  const RunResult result = saving_trainer(module, folder.text(), options, run.services())->train();
  EXPECT_EQ(result.exit_code(), 5);
  EXPECT_LT(batches, 50);
  EXPECT_EQ(read_checkpoint(folder / "checkpoint_step_2.pt").trainer_state.at("phase").as_string(), "validation");
}

TEST(TrainerStopTest, TimeThatIsShorterThanASaveIsRefusedBeforeAnythingIsTrained) {
  const TempFolder folder;
  TimedRun run;
  TrainerOptions options = run_of(3);
  options.max_seconds = 0.01;
  const auto module = std::make_shared<TinyModule>();
  const auto trainer = saving_trainer(module, folder.text(), options, run.services());
  EXPECT_THAT([&] { trainer->train(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("--max_seconds 0.01: 0 s have gone by before training could begin, and one save is expected to take 0.02")));
  EXPECT_THAT(names_in(folder.path()), IsEmpty());
  EXPECT_FALSE(trainer->started());
}

// ---- what does not fit

TEST(TrainerStopTest, EntriesOfAnotherKindAreListedBeforeAnythingIsChanged) {
  const TempFolder folder;
  saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(1))->train();
  const Checkpoint good = read_checkpoint(folder / "checkpoint_0.pt");
  const std::vector<std::pair<const char*, Value>> wrong = {{"in_epoch", 1}, {"steps_in_epoch", "two"}, {"last_epoch", -2}, {"phase", "lunch"}, {"metrics", StateDict{{"val/loss", "low"}}},
                                                            {"epoch_metrics", StateDict{{"loss", 1.0}}}, {"outputs", List{{1}}}};
  for (const auto& [key, value] : wrong) {
    for (const bool validate_only : {false, true}) {
      SCOPED_TRACE(key);
      Checkpoint bad = good;
      bad.trainer_state.set(key, value);
      const TempFolder other;
      DefaultCheckpointer(testing::save_in(other.text()), HostContext{&null_logger()}).save(bad, 0, true);
      const auto module = std::make_shared<TinyModule>();
      const StateDict before = clone(module->get_state());
      TrainerOptions options = run_of(2, "auto");
      options.validate_only = validate_only;
      const auto trainer = saving_trainer(module, other.text(), options);
      EXPECT_THAT([&] { validate_only ? static_cast<void>(trainer->validate()) : static_cast<void>(trainer->train()); }, ThrowsError(Errc::kMismatch, HasSubstr("Nothing was changed")));
      EXPECT_TRUE(equal(module->get_state(), before));
    }
  }
}

// ---- what is asked for less than was done

TEST(TrainerStopTest, ACheckpointWithMoreEpochsThanAskedForIsOneClearLine) {
  const TempFolder folder;
  saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(5))->train();
  EXPECT_THAT([&] { saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(3, "auto"))->train(); },
              ThrowsError(Errc::kInvalidArgument, ::testing::AllOf(HasSubstr("--epochs 3: "), HasSubstr("checkpoint_4.pt has 5 epochs done; give --epochs 5 or more"))));
  EXPECT_EQ(saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(5, "auto"))->train().outcome, Outcome::kNothingToDo);
}

TEST(TrainerStopTest, AnotherBatchSizeGoesOnWithTheSamplesThatAreLeftAndSaysSo) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 15});
  std::unique_ptr<Trainer> trainer = saving_trainer(module, folder.text(), run_of(2, int64_t{4}));
  module->at_end_step = [&](const StepSummary& step) { if (step.global_step == 2) trainer->stop(); };
  trainer->train();
  RecordingLogger logger;
  TrainerServices services;
  services.logger = &logger;
  TrainerOptions options = run_of(2, int64_t{2});
  options.resume = "auto";
  module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 15});
  EXPECT_EQ(saving_trainer(module, folder.text(), options, std::move(services))->train().global_step, 2 + 4 + 8) << "7 samples were left of the first epoch";
  EXPECT_THAT(module->micro_sizes, ElementsAre(2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 1));
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("train_batch_size was 4, is 2")));
}

TEST(TrainerStopTest, ADataSetOfAnotherLengthIsADifferenceAlsoBetweenEpochs) {
  const TempFolder folder;
  saving_trainer(std::make_shared<TinyModule>(TinyOptions{.num_samples = 12}), folder.text(), run_of(1))->train();
  EXPECT_THAT([&] { saving_trainer(std::make_shared<TinyModule>(TinyOptions{.num_samples = 16}), folder.text(), run_of(2, "auto"))->train(); },
              ThrowsError(Errc::kMismatch, ::testing::AllOf(HasSubstr("12"), HasSubstr("16"), HasSubstr("Nothing was changed"))));
}

TEST(TrainerStopTest, AGeneratorStateOfAnotherKindOfDeviceIsOneWarning) {
  const TempFolder folder;
  saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(1))->train();
  Checkpoint checkpoint = read_checkpoint(folder / "checkpoint_0.pt");
  checkpoint.trainer_state.set("generators", StateDict{{"cpu", torch::zeros({16}, torch::kUInt8)}, {"cuda", List{{torch::zeros({16}, torch::kUInt8)}}}});
  const TempFolder other;
  DefaultCheckpointer(testing::save_in(other.text()), HostContext{&null_logger()}).save(checkpoint, 0, true);
  RecordingLogger logger;
  TrainerServices services;
  services.logger = &logger;
  EXPECT_EQ(saving_trainer(std::make_shared<TinyModule>(), other.text(), run_of(2, "auto"), std::move(services))->train().outcome, Outcome::kDone);
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("another device kind"), HasSubstr("of 1 GPUs and this run, on cpu")));
}

}  // namespace
}  // namespace marlin
