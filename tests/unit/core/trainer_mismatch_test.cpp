// Checkpoints of another run, and new optimizers on a resume.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "marlin/core/model_state.h"
#include "marlin/core/optim/lr_scheduler.h"
#include "marlin/core/trainer.h"
#include "temp_folder.h"
#include "throws_error.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::run_of;
using testing::saving_trainer;
using testing::TempFolder;
using testing::ThrowsError;
using testing::TinyModule;
using testing::TinyOptions;
using Outcome = RunResult::Outcome;

class TrainerMismatchTest : public ::testing::Test {
 protected:
  // A checkpoint of two epochs of two steps, changed and put where it is resumed from.
  void put(const std::function<void(Checkpoint&)>& change) {
    const TempFolder other;
    saving_trainer(std::make_shared<TinyModule>(TinyOptions{.adamw = true}), other.text(), run_of(2))->train();
    Checkpoint state = read_checkpoint(other / "checkpoint_1.pt");
    change(state);
    write_checkpoint(folder_ / "checkpoint_1.pt", state, {});
  }
  void expect_mismatch(std::shared_ptr<TinyModule> module, const ::testing::Matcher<std::string>& text, TrainerOptions options) {
    const StateDict before = clone(model_state(*module));
    const auto trainer = saving_trainer(module, folder_.text(), std::move(options));
    EXPECT_THAT([&] { trainer->train(); }, ThrowsError(Errc::kMismatch, AllOf(HasSubstr("checkpoint"), HasSubstr("Nothing was changed"), text)));
    EXPECT_TRUE(equal(model_state(*module), before)) << "the module is as it was";
    EXPECT_EQ(trainer->global_step(), 0);
    EXPECT_EQ(trainer->last_epoch(), -1);
    EXPECT_FALSE(trainer->started()) << "so that the program ends with 3, not with 1";
    EXPECT_THAT(module->log, IsEmpty());
  }
  void expect_mismatch(const ::testing::Matcher<std::string>& text) { expect_mismatch(adamw(), text, run_of(3, "must")); }
  static std::shared_ptr<TinyModule> adamw(int64_t num_samples = 8) { return std::make_shared<TinyModule>(TinyOptions{.num_samples = num_samples, .adamw = true}); }

  TempFolder folder_;
};

TEST_F(TrainerMismatchTest, AnUnchangedOneFits) {
  put([](Checkpoint&) {});
  EXPECT_EQ(saving_trainer(adamw(), folder_.text(), run_of(3, "must"))->train().global_step, 6);
}

TEST_F(TrainerMismatchTest, EveryMismatchIsListedInOneError) {
  put([](Checkpoint& state) {
    state.module_interface_state.erase("linear.bias");
    state.module_interface_state.set("linear.weight", torch::zeros({2, 3}));
    state.module_interface_state.set("head.weight", torch::zeros({5}));
    StateDict optimizers = {{"param_groups", List{}}, {"state", StateDict()}};
    state.trainer_state.set("optimizers", List{{optimizers, optimizers}});
    state.trainer_state.set("schedulers", List{});
    state.trainer_state.set("version", 99);
  });
  expect_mismatch(AllOf(HasSubstr("linear.bias: missing in the file"), HasSubstr("linear.weight: shape [2, 3] in the file, [1, 3] in the model"),
                        HasSubstr("head.weight: in the file, not in the model"), HasSubstr("optimizers: 2 in the file, 1 in this run"),
                        HasSubstr("schedulers: 0 in the file, 1 in this run"), HasSubstr("version 99")));
}

TEST_F(TrainerMismatchTest, AnotherDtypeIsAMismatch) {
  put([](Checkpoint& state) { state.module_interface_state.set("linear.bias", torch::zeros({1}, torch::kDouble)); });
  expect_mismatch(HasSubstr("linear.bias: Double in the file, Float in the model"));
}

TEST_F(TrainerMismatchTest, AnOptimizerOfOtherShapesIsAMismatch) {
  put([](Checkpoint& state) {
    StateDict optimizer = state.trainer_state.at("optimizers").as_items().at(0).as_dict();
    StateDict& of_weight = *optimizer.find("state")->get_if<StateDict>()->find(int64_t{0})->get_if<StateDict>();
    of_weight.set("exp_avg", torch::zeros({4}));
    state.trainer_state.set("optimizers", List{{optimizer}});
  });
  expect_mismatch(HasSubstr("optimizer 0: "));
}

TEST_F(TrainerMismatchTest, ThePositionInAnotherDataSetIsAMismatch) {
  auto module = adamw();
  TrainerOptions options = run_of(3);
  options.max_steps = 3;
  saving_trainer(module, folder_.text(), options)->train();
  expect_mismatch(adamw(9), AllOf(HasSubstr("8 samples"), HasSubstr("9 in this run")), run_of(3, "must"));
}

TEST_F(TrainerMismatchTest, MissingCountersAreAMismatch) {
  put([](Checkpoint& state) { state.trainer_backend_state.erase("batches_completed"); });
  expect_mismatch(HasSubstr("batches_completed"));
  put([](Checkpoint& state) { state.trainer_state.set("last_epoch", "one"); });
  expect_mismatch(HasSubstr("string"));
}

TEST_F(TrainerMismatchTest, WithNewOptimizersTheOldOnesNeedNotFit) {
  put([](Checkpoint& state) { state.trainer_state.set("optimizers", List{}); });
  expect_mismatch(HasSubstr("optimizers: 0 in the file, 1 in this run"));
  TrainerOptions options = run_of(3, "must");
  options.reset_optimizers_schedulers = true;
  EXPECT_EQ(saving_trainer(adamw(), folder_.text(), options)->train().global_step, 6);
}

// ---- reset_optimizers_schedulers

TEST_F(TrainerMismatchTest, NewOptimizersAreMadeOnceForTheEpochsThatRemain) {
  put([](Checkpoint&) {});
  auto module = adamw();
  std::vector<double> rates;
  module->at_end_step = [&](const StepSummary&) { rates.push_back(module->made.schedulers.at(0)->get_last_lr().at(0)); };
  TrainerOptions options = run_of(5, "must");
  options.reset_optimizers_schedulers = true;
  saving_trainer(module, folder_.text(), options)->train();
  ASSERT_THAT(module->plans, SizeIs(1));
  EXPECT_EQ(module->plans[0].epochs, 3);
  EXPECT_EQ(module->plans[0].total_steps(), 6);
  ASSERT_THAT(rates, SizeIs(6));
  EXPECT_DOUBLE_EQ(rates.front(), 0.1 * 5 / 6) << "from the start again";
  EXPECT_EQ(rates.back(), 0.0) << "to the end";
}

TEST_F(TrainerMismatchTest, WithoutResetThePlanIsOfTheWholeRun) {
  put([](Checkpoint&) {});
  auto module = adamw();
  saving_trainer(module, folder_.text(), run_of(5, "must"))->train();
  ASSERT_THAT(module->plans, SizeIs(1));
  EXPECT_EQ(module->plans[0].epochs, 5);
}

TEST_F(TrainerMismatchTest, NewSchedulesAreAsLongAsWhatIsLeftOfMaxStepsAndOfTheEpoch) {
  TrainerOptions options = run_of(5);
  options.max_steps = 3;
  saving_trainer(adamw(), folder_.text(), options)->train();
  const auto last_rate = [&](std::optional<int64_t> max_steps, int64_t expected_steps) {
    auto module = adamw();
    const TempFolder to;
    options.resume = folder_.text();
    options.max_steps = max_steps;
    options.reset_optimizers_schedulers = true;
    EXPECT_EQ(saving_trainer(module, to.text(), options)->train().global_step, 3 + expected_steps);
    EXPECT_EQ(module->plans.at(0).total_steps(), expected_steps);
    return module->made.schedulers.at(0)->get_last_lr().at(0);
  };
  EXPECT_EQ(last_rate({}, 7), 0.0) << "five epochs of two steps, three of them done";
  EXPECT_EQ(last_rate(5, 2), 0.0);
  EXPECT_EQ(last_rate(1000, 7), 0.0);
}

TEST_F(TrainerMismatchTest, WithNothingLeftNewOptimizersHarmNobody) {
  put([](Checkpoint&) {});
  TrainerOptions options = run_of(2, "must");
  options.reset_optimizers_schedulers = true;
  EXPECT_EQ(saving_trainer(adamw(), folder_.text(), options)->train().outcome, Outcome::kNothingToDo);
}

// ---- what must not come over a run's files or state

TEST_F(TrainerMismatchTest, ARunIsNotGoneOnWithOverTheCheckpointsOfAnother) {
  const TempFolder mine, other;
  saving_trainer(std::make_shared<TinyModule>(), mine.text(), run_of(2))->train();
  saving_trainer(std::make_shared<TinyModule>(), other.text(), run_of(5))->train();
  const StateDict before = read_checkpoint(other / "checkpoint_3.pt").module_interface_state;
  const auto trainer = saving_trainer(std::make_shared<TinyModule>(), other.text(), run_of(5, (mine / "checkpoint_1.pt").string()));
  EXPECT_THAT([&] { trainer->train(); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("of another run"), HasSubstr("save_dir"))));
  EXPECT_TRUE(equal(read_checkpoint(other / "checkpoint_3.pt").module_interface_state, before));
}

TEST_F(TrainerMismatchTest, ARunThatTrainsNothingCannotSaveHalfAState) {
  const TempFolder folder;
  saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(2))->train();
  TrainerOptions options = run_of(2, "auto");
  options.validate_only = true;
  const auto trainer = saving_trainer(std::make_shared<TinyModule>(), folder.text(), options);
  (void)trainer->validate();
  EXPECT_THAT([&] { (void)trainer->save_checkpoint(true); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("no whole state to save")));
  EXPECT_THAT(read_checkpoint(folder / "checkpoint_1.pt").trainer_state.at("optimizers").as_items(), SizeIs(1));
}

TEST_F(TrainerMismatchTest, ValidatingFromWithinTrainingIsRefused) {
  auto module = std::make_shared<TinyModule>();
  const TempFolder folder;
  const auto trainer = saving_trainer(module, folder.text(), run_of(1));
  module->at_end_step = [&](const StepSummary&) { (void)trainer->validate(); };
  EXPECT_THAT([&] { trainer->train(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("within train()")));
}

class AskingTrainer : public Trainer {
 public:
  using Trainer::Trainer;
  std::vector<std::string> differences(const StateDict& state) const override {
    return state.contains("mine") ? std::vector<std::string>{} : std::vector<std::string>{"mine: missing in the file"};
  }
};

TEST_F(TrainerMismatchTest, WhatASubclassMissesIsToldBeforeAnythingIsApplied) {
  const TempFolder folder;
  saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(1))->train();
  auto module = std::make_shared<TinyModule>();
  const StateDict before = clone(model_state(*module));
  Checkpointers checkpointers;
  checkpointers.push_back(std::make_unique<DefaultCheckpointer>(DefaultCheckpointerOptions{.save_dir = folder.text()}));
  AskingTrainer trainer(module, nullptr, std::move(checkpointers), run_of(2, "must"));
  EXPECT_THAT([&] { trainer.train(); }, ThrowsError(Errc::kMismatch, HasSubstr("mine: missing in the file")));
  EXPECT_TRUE(equal(model_state(*module), before));
}

}  // namespace
}  // namespace marlin
