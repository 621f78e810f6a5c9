#include <gtest/gtest.h>
#include <torch/torch.h>

#include "marlin/core/backends/sp_backend.h"
#include "marlin/core/optim/lr_scheduler.h"
#include "marlin/core/trainer.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::damage;
using testing::default_checkpointer;
using testing::names_in;
using testing::RecordingLogger;
using testing::run_of;
using testing::same_parameters;
using testing::save_in;
using testing::saving_trainer;
using testing::TempFolder;
using testing::ThrowsError;
using testing::TinyModule;
using testing::TinyOptions;
using Outcome = RunResult::Outcome;

// AdamW under a schedule per step and one per epoch, none of which depends on how long the run is.
OptimizersSchedulers scheduled_adamw(TinyModule& module, const TrainingPlan&) {
  auto optimizer = std::make_shared<torch::optim::AdamW>(module.parameters(), torch::optim::AdamWOptions(0.05));
  auto other = std::make_shared<torch::optim::SGD>(std::vector<at::Tensor>{module.bias()}, torch::optim::SGDOptions(0.01).momentum(0.9));
  return {{optimizer, other}, {std::make_shared<optim::CosineAnnealingLR>(*optimizer, 30), std::make_shared<optim::StepLR>(*other, 1, 0.5)}};
}

std::shared_ptr<TinyModule> hard_module() {
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 11, .dropout = 0.4});
  module->make_optimizers = scheduled_adamw;
  return module;
}

// ---- going on is the same as not having stopped

struct Straight {
  std::shared_ptr<TinyModule> module = hard_module();
  Metrics metrics;
};

TrainerOptions hard_run(std::optional<std::string> resume = {}) {
  TrainerOptions options = run_of(4, std::move(resume));
  options.micro_batch_limit = 3;
  return options;
}

const Straight& straight() {
  static const Straight kRun = [] {
    Straight run;
    const TempFolder folder;
    torch::manual_seed(5);
    run.metrics = saving_trainer(run.module, folder.text(), hard_run())->train().metrics;
    return run;
  }();
  return kRun;
}

// The same run as `first` left it, in another process as it were: other initial weights, other random numbers.
void expect_same_end(const std::string& folder, const TinyModule& first) {
  torch::manual_seed(999);
  auto module = hard_module();
  {
    const torch::NoGradGuard no_grad;
    for (at::Tensor& parameter : module->parameters()) parameter.fill_(17);
  }
  const RunResult result = saving_trainer(module, folder, hard_run("must"))->train();
  EXPECT_EQ(result.outcome, Outcome::kDone);
  EXPECT_EQ(result.global_step, 12);
  EXPECT_TRUE(same_parameters(*module, *straight().module));
  std::vector<double> losses = first.losses;
  losses.insert(losses.end(), module->losses.begin(), module->losses.end());
  EXPECT_EQ(losses, straight().module->losses) << "every step, bit for bit";
  EXPECT_EQ(result.metrics.at("val/loss"), straight().metrics.at("val/loss"));
}

TEST(TrainerResumeTest, StoppedAfterAnyStepItEndsLikeTheStraightRun) {
  for (int64_t step = 1; step < 12; ++step) {
    SCOPED_TRACE(step);
    const TempFolder folder;
    auto module = hard_module();
    std::unique_ptr<Trainer> trainer;
    module->at_end_step = [&](const StepSummary& summary) { if (summary.global_step == step) trainer->stop(); };
    torch::manual_seed(5);
    static_cast<void>(straight());
    torch::manual_seed(5);
    trainer = saving_trainer(module, folder.text(), hard_run());
    const RunResult result = trainer->train();
    EXPECT_EQ(result.outcome, Outcome::kStopped);
    EXPECT_EQ(result.global_step, step);
    EXPECT_EQ(result.checkpoint, (folder / ("checkpoint_step_" + std::to_string(step) + ".pt")).string());
    EXPECT_EQ(module->times("end_train"), 0u) << "there is more to do";
    for (const std::string& name : names_in(folder.path())) EXPECT_EQ(name.find("model"), std::string::npos);
    expect_same_end(folder.text(), *module);
  }
}

TEST(TrainerResumeTest, FewerEpochsAndThenMoreEndLikeAllAtOnce) {
  static_cast<void>(straight());
  for (int64_t epochs = 1; epochs < 4; ++epochs) {
    const TempFolder folder;
    auto module = hard_module();
    TrainerOptions options = hard_run();
    options.epochs = epochs;
    torch::manual_seed(5);
    EXPECT_EQ(saving_trainer(module, folder.text(), options)->train().outcome, Outcome::kDone);
    expect_same_end(folder.text(), *module);
  }
}

TEST(TrainerResumeTest, MaxStepsWithinAnEpochAndThenMoreEndLikeAllAtOnce) {
  static_cast<void>(straight());
  for (const int64_t steps : {1, 4, 5, 8, 11}) {
    SCOPED_TRACE(steps);
    const TempFolder folder;
    auto module = hard_module();
    TrainerOptions options = hard_run();
    options.max_steps = steps;
    torch::manual_seed(5);
    EXPECT_EQ(saving_trainer(module, folder.text(), options)->train().outcome, Outcome::kDone);
    const Checkpoint left = read_checkpoint(folder / ("checkpoint_step_" + std::to_string(steps) + ".pt"));
    EXPECT_EQ(left.trainer_state.at("loader").as_dict().at("consumed_samples").as_int(), steps % 3 * 4);
    expect_same_end(folder.text(), *module);
  }
}

TEST(TrainerResumeTest, TrainingAgainAfterAStopGoesOnInTheSameTrainer) {
  static_cast<void>(straight());
  const TempFolder folder;
  auto module = hard_module();
  DefaultCheckpointerOptions checkpointer = save_in(folder.text());
  checkpointer.delete_existing_checkpoints = true;
  Trainer trainer(module, nullptr, default_checkpointer(checkpointer), hard_run());
  module->at_end_step = [&](const StepSummary& step) { if (step.global_step == 2 || step.global_step == 7) trainer.stop(); };
  torch::manual_seed(5);
  EXPECT_EQ(trainer.train().global_step, 2);
  EXPECT_EQ(trainer.train().global_step, 7);
  EXPECT_EQ(trainer.train().outcome, Outcome::kDone);
  EXPECT_TRUE(same_parameters(*module, *straight().module));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt", "checkpoint_1.pt", "checkpoint_2.pt", "checkpoint_3.pt", "checkpoint_model_3.pt",
                                                   "checkpoint_step_2.pt", "checkpoint_step_7.pt")) << "what the run wrote itself is not deleted";
}

TEST(TrainerResumeTest, AStopBeforeTheFirstStepWritesNothing) {
  const TempFolder folder;
  auto module = hard_module();
  const auto trainer = saving_trainer(module, folder.text(), hard_run());
  trainer->stop();
  const RunResult result = trainer->train();
  EXPECT_EQ(result.outcome, Outcome::kStopped);
  EXPECT_EQ(result.summary(), "stopped epochs=0 global_step=0");
  EXPECT_THAT(names_in(folder.path()), IsEmpty());
  EXPECT_THAT(module->losses, IsEmpty());
}

TEST(TrainerResumeTest, AStateSavedInACallbackHoldsTheStepsOfItsEpoch) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 20});
  std::unique_ptr<Trainer> trainer;
  module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step == 5) trainer->save_checkpoint(true);
  };
  TrainerOptions options = run_of(2);
  options.max_train_steps_per_epoch = 3;
  trainer = saving_trainer(module, folder.text(), options);
  trainer->train();
  auto resumed = std::make_shared<TinyModule>(TinyOptions{.num_samples = 20});
  options.resume = (folder / "checkpoint_step_5.pt").string();
  const TempFolder elsewhere;
  EXPECT_EQ(saving_trainer(resumed, elsewhere.text(), options)->train().global_step, 6) << "two of the three were done";
  EXPECT_TRUE(same_parameters(*module, *resumed));
}

TEST(TrainerResumeTest, ALoaderOfUnknownLengthIsResumedWhereItWas) {
  const auto module = [] { return std::make_shared<TinyModule>(TinyOptions{.num_samples = 11, .known_length = false}); };
  const TempFolder straight_folder, folder;
  auto whole = module(), first = module(), second = module();
  saving_trainer(whole, straight_folder.text(), run_of(3))->train();
  std::unique_ptr<Trainer> trainer;
  first->at_end_step = [&](const StepSummary& step) { if (step.global_step == 6) trainer->stop(); };
  trainer = saving_trainer(first, folder.text(), run_of(3));
  trainer->train();
  const RunResult result = saving_trainer(second, folder.text(), run_of(3, "auto"))->train();
  EXPECT_EQ(result.global_step, 9);
  EXPECT_EQ(result.epochs, 3);
  EXPECT_TRUE(same_parameters(*whole, *second));
}

TEST(TrainerResumeTest, ASchedulePlannedForTheRunReachesItsEndExactly) {
  const TempFolder folder;
  const auto last_lr = [](const TinyModule& module) { return module.made.schedulers.at(0)->get_last_lr().at(0); };
  auto module = std::make_shared<TinyModule>(TinyOptions{.adamw = true});
  std::unique_ptr<Trainer> trainer;
  module->at_end_step = [&](const StepSummary& step) { if (step.global_step == 3) trainer->stop(); };
  trainer = saving_trainer(module, folder.text(), run_of(3));
  trainer->train();
  EXPECT_DOUBLE_EQ(last_lr(*module), 0.05);
  auto resumed = std::make_shared<TinyModule>(TinyOptions{.adamw = true});
  saving_trainer(resumed, folder.text(), run_of(3, "auto"))->train();
  EXPECT_EQ(last_lr(*resumed), 0.0);
}

// ---- what is resumed

TEST(TrainerResumeTest, NothingLeftDoesNothing) {
  const TempFolder folder;
  saving_trainer(hard_module(), folder.text(), run_of(2))->train();
  auto module = hard_module();
  const RunResult result = saving_trainer(module, folder.text(), run_of(2, "auto"))->train();
  EXPECT_EQ(result.outcome, Outcome::kNothingToDo);
  EXPECT_THAT(result.summary(), ::testing::MatchesRegex("nothing to do epochs=2 global_step=6 val/absolute=[0-9.]+ val/loss=[0-9.]+ checkpoint=" + (folder / "checkpoint_1.pt").string())) << "with the metrics of the resumed state";
  EXPECT_THAT(module->log, IsEmpty());
}

TEST(TrainerResumeTest, AFreshStartBesideAnEarlierRunIsRefusedAndTouchesNothing) {
  const TempFolder folder;
  saving_trainer(hard_module(), folder.text(), run_of(1))->train();
  const auto names = names_in(folder.path());
  for (const std::optional<std::string>& resume : {std::optional<std::string>(), std::optional<std::string>("never")}) {
    auto module = hard_module();
    EXPECT_THAT([&] { saving_trainer(module, folder.text(), run_of(3, resume))->train(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("--resume auto")));
    EXPECT_THAT(module->log, IsEmpty());
  }
  EXPECT_EQ(names_in(folder.path()), names);
}

TEST(TrainerResumeTest, AutoStartsOrGoesOnAndMustGoesOn) {
  const TempFolder folder;
  EXPECT_THAT([&] { saving_trainer(hard_module(), folder.text(), run_of(1, "must"))->train(); }, ThrowsError(Errc::kNotFound, HasSubstr(folder.text())));
  EXPECT_EQ(saving_trainer(hard_module(), folder.text(), run_of(1, "auto"))->train().global_step, 3);
  EXPECT_EQ(saving_trainer(hard_module(), folder.text(), run_of(2, "auto"))->train().global_step, 6);
  EXPECT_EQ(saving_trainer(hard_module(), folder.text(), run_of(3, "must"))->train().global_step, 9);
  EXPECT_EQ(read_checkpoint(folder / "checkpoint_0.pt").trainer_state.at("run_id").as_string(),
            read_checkpoint(folder / "checkpoint_2.pt").trainer_state.at("run_id").as_string());
}

TEST(TrainerResumeTest, LoadDirMeansMustUnlessResumeSaysOtherwise) {
  const TempFolder from, to, nothing;
  saving_trainer(hard_module(), from.text(), run_of(2))->train();
  const auto run = [&](const TempFolder& load_dir, std::optional<std::string> resume) {
    DefaultCheckpointerOptions checkpointer = save_in((to / load_dir.path().filename()).string());
    checkpointer.load_dir = load_dir.text();
    checkpointer.delete_existing_checkpoints = true;
    return Trainer(hard_module(), nullptr, default_checkpointer(checkpointer), run_of(3, std::move(resume))).train().global_step;
  };
  EXPECT_EQ(run(from, {}), 9);
  EXPECT_THAT(names_in(to / from.path().filename()), ElementsAre("checkpoint_2.pt", "checkpoint_model_2.pt")) << "only epoch 2 was left";
  EXPECT_THAT([&] { run(nothing, {}); }, ThrowsError(Errc::kNotFound, HasSubstr(nothing.text())));
  EXPECT_EQ(run(nothing, "auto"), 9);
  EXPECT_EQ(run(from, "never"), 9);
  EXPECT_THAT(names_in(to / from.path().filename()), SizeIs(4)) << "all of them anew";
}

TEST(TrainerResumeTest, APathIsThatFileOrThatFoldersNewest) {
  const TempFolder from, a, b, c;
  saving_trainer(hard_module(), from.text(), run_of(3))->train();
  EXPECT_EQ(saving_trainer(hard_module(), a.text(), run_of(4, (from / "checkpoint_0.pt").string()))->train().global_step, 12);
  EXPECT_THAT(names_in(a.path()), ElementsAre("checkpoint_1.pt", "checkpoint_2.pt", "checkpoint_3.pt", "checkpoint_model_3.pt"));
  saving_trainer(hard_module(), b.text(), run_of(4, from.text()))->train();
  EXPECT_THAT(names_in(b.path()), ElementsAre("checkpoint_3.pt", "checkpoint_model_3.pt"));
  damage(from / "checkpoint_2.pt");
  EXPECT_THAT([&] { saving_trainer(hard_module(), c.text(), run_of(4, (from / "checkpoint_2.pt").string()))->train(); },
              ThrowsError(Errc::kCorrupt, HasSubstr("checkpoint_2.pt")));
  EXPECT_THAT([&] { saving_trainer(hard_module(), c.text(), run_of(4, (from / "checkpoint_model_2.pt").string()))->train(); },
              ThrowsError(Errc::kMismatch, HasSubstr("--init_from")));
  EXPECT_THAT([&] { saving_trainer(hard_module(), c.text(), run_of(4, c.text()))->train(); }, ThrowsError(Errc::kNotFound, HasSubstr(c.text())));
}

TEST(TrainerResumeTest, ABrokenNewestCostsOneEpochNotTheRun) {
  const TempFolder folder;
  saving_trainer(hard_module(), folder.text(), run_of(3))->train();
  damage(folder / "checkpoint_2.pt");
  RecordingLogger logger;
  TrainerServices services;
  services.logger = &logger;
  auto module = hard_module();
  EXPECT_EQ(saving_trainer(module, folder.text(), run_of(3, "auto"), std::move(services))->train().global_step, 9);
  EXPECT_THAT(module->losses, SizeIs(3));
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("checkpoint_2.pt")));
  for (const char* name : {"checkpoint_0.pt", "checkpoint_1.pt", "checkpoint_2.pt"}) damage(folder / name);
  EXPECT_THAT([&] { saving_trainer(hard_module(), folder.text(), run_of(3, "auto"))->train(); }, ThrowsError(Errc::kCorrupt, HasSubstr("checkpoint_2.pt")));
}

TEST(TrainerResumeTest, OfSeveralCheckpointersTheNewestStateIsTaken) {
  const TempFolder old_folder, new_folder;
  saving_trainer(hard_module(), old_folder.text(), run_of(1))->train();
  saving_trainer(hard_module(), new_folder.text(), run_of(2))->train();
  const auto both = [&] {
    Checkpointers result = default_checkpointer(save_in(old_folder.text()));
    result.push_back(std::make_unique<DefaultCheckpointer>(save_in(new_folder.text())));
    return result;
  };
  EXPECT_EQ(Trainer(hard_module(), nullptr, both(), run_of(2, "must")).load_checkpoints().source, (new_folder / "checkpoint_1.pt").string());
  damage(new_folder / "checkpoint_0.pt");
  damage(new_folder / "checkpoint_1.pt");
  EXPECT_EQ(Trainer(hard_module(), nullptr, both(), run_of(2, "must")).load_checkpoints().source, (old_folder / "checkpoint_0.pt").string());
}

// ---- init_from, validate, subclasses

TEST(TrainerResumeTest, InitFromTakesWeightsOnlyAndOnlyForAFreshStart) {
  const TempFolder from, to;
  auto trained = hard_module();
  saving_trainer(trained, from.text(), run_of(2))->train();
  for (const char* name : {"checkpoint_model_1.pt", "checkpoint_1.pt"}) {
    TrainerOptions options = run_of(1);
    options.validate_only = true;
    options.init_from = (from / name).string();
    auto module = hard_module();
    const auto trainer = saving_trainer(module, to.text(), options);
    trainer->validate();
    EXPECT_TRUE(same_parameters(*module, *trained));
    EXPECT_EQ(trainer->global_step(), 0);
    EXPECT_EQ(trainer->last_epoch(), -1);
  }
  TrainerOptions options = run_of(2, "must");
  options.init_from = (from / "none.pt").string();
  EXPECT_EQ(saving_trainer(hard_module(), from.text(), options)->train().outcome, Outcome::kNothingToDo) << "not looked at on a resume";
  options.resume = "never";
  EXPECT_THAT([&] { saving_trainer(hard_module(), to.text(), options)->train(); }, ThrowsError(Errc::kNotFound, HasSubstr("none.pt")));
}

TEST(TrainerResumeTest, ValidateUsesWhatIsResumed) {
  const TempFolder folder;
  const double trained = saving_trainer(hard_module(), folder.text(), run_of(2))->train().metrics.at("val/loss");
  EXPECT_EQ(saving_trainer(hard_module(), folder.text(), run_of(2, "must"))->validate().at("val/loss"), trained);
  EXPECT_NE(saving_trainer(hard_module(), folder.text(), run_of(2))->validate().at("val/loss"), trained);
}

// Compares a state with what it was given to work on, as a backend does that keeps something of each parameter.
class ComparingBackend : public SingleProcessBackend {
 public:
  void init(const BackendSetup& setup) override {
    SingleProcessBackend::init(setup);
    num_optimizers_ = static_cast<int64_t>(setup.optimizers.size());
  }
  [[nodiscard]] StateDict get_state() const override {
    StateDict state = SingleProcessBackend::get_state();
    state.set("num_optimizers", num_optimizers_);
    return state;
  }
  [[nodiscard]] std::vector<std::string> differences(const StateDict& state) const override {
    if (state.at("num_optimizers").as_int() == num_optimizers_) return {};
    return {"the state is of another number of optimizers"};
  }

 private:
  int64_t num_optimizers_ = 0;
};

TEST(TrainerResumeTest, ABackendIsMadeReadyBeforeItIsAskedAboutAState) {
  const TempFolder folder;
  const auto train = [&](int64_t epochs, std::optional<std::string> resume) {
    return Trainer(std::make_shared<TinyModule>(), std::make_unique<ComparingBackend>(), default_checkpointer(save_in(folder.text())), run_of(epochs, std::move(resume))).train();
  };
  (void)train(1, {});
  EXPECT_EQ(train(2, "auto").epochs, 2);
}

class CountingTrainer : public Trainer {
 public:
  using Trainer::Trainer;
  [[nodiscard]] StateDict get_state() const override {
    StateDict state = Trainer::get_state();
    state.set("mine", mine);
    return state;
  }
  void update_state(const StateDict& state) override {
    Trainer::update_state(state);
    mine = state.at("mine").as_int();
  }
  int64_t mine = 0;
};

TEST(TrainerResumeTest, ASubclassKeepsStateOfItsOwn) {
  const TempFolder folder;
  CountingTrainer first(hard_module(), nullptr, default_checkpointer(save_in(folder.text())), run_of(1));
  first.mine = 42;
  first.train();
  CountingTrainer second(hard_module(), nullptr, default_checkpointer(save_in(folder.text())), run_of(2, "auto"));
  second.train();
  EXPECT_EQ(second.mine, 42);
}

}  // namespace
}  // namespace marlin
