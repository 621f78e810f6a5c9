#include "marlin/core/trainer.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "recording_checkpointer.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::names_in;
using testing::Recorded;
using testing::recording_checkpointer;
using testing::RecordingLogger;
using testing::run_of;
using testing::saving_trainer;
using testing::TempFolder;
using testing::ThrowsError;
using testing::TinyModule;
using testing::TinyOptions;
using testing::unsaved_trainer;
using Outcome = RunResult::Outcome;

// ---- when it saves

std::shared_ptr<Recorded> record(TrainerOptions options, const SaveSchedule& schedule = {}, std::shared_ptr<TinyModule> module = std::make_shared<TinyModule>()) {
  auto recorded = std::make_shared<Recorded>();
  Trainer(std::move(module), nullptr, recording_checkpointer(recorded, schedule), std::move(options)).train();
  return recorded;
}

TEST(TrainerTest, SavesWhereThePeriodSaysAndAtTheEndEachOnce) {
  EXPECT_THAT(record(run_of(2))->indices(), ElementsAre(0, 1));
  EXPECT_THAT(record(run_of(4), {.period = 2})->indices(), ElementsAre(0, 2, 3));
  EXPECT_THAT(record(run_of(5), {.period = 3})->indices(), ElementsAre(0, 3, 4));
  EXPECT_THAT(record(run_of(4), {.period = 3})->indices(), ElementsAre(0, 3));
  EXPECT_THAT(record(run_of(3), {.period = 100})->indices(), ElementsAre(0, 2));
}

TEST(TrainerTest, ASavePointSaysWhatItIs) {
  const auto recorded = record(run_of(4), {.period = 2});
  ASSERT_THAT(recorded->saves, SizeIs(3));
  const SavePoint &second = recorded->saves[1].point, &last = recorded->saves[2].point;
  EXPECT_EQ(second.unit, Unit::kEpoch);
  EXPECT_EQ(second.epoch, 2);
  EXPECT_EQ(second.global_step, 6);
  EXPECT_EQ(second.cause, Cause::kPeriod);
  EXPECT_FALSE(second.force);
  EXPECT_NE(second.metrics.find("train/loss"), nullptr);
  EXPECT_NE(second.metrics.find("val/absolute"), nullptr);
  EXPECT_EQ(last.cause, Cause::kEnd);
  EXPECT_TRUE(last.force);
  EXPECT_FALSE(last.run_id.empty());
  EXPECT_EQ(last.run_id, second.run_id);
  EXPECT_NE(last.run_id, record(run_of(1))->saves[0].point.run_id);
}

TEST(TrainerTest, TheLastModelIsSavedOnceAtTheEnd) {
  EXPECT_THAT(record(run_of(3))->models, ElementsAre(2));
}

TEST(TrainerTest, WithTheSwitchOffNobodyIsAskedForState) {
  auto module = std::make_shared<TinyModule>();
  const auto recorded = record(run_of(3), {.checkpoint = false}, module);
  EXPECT_THAT(recorded->saves, IsEmpty());
  EXPECT_THAT(recorded->models, IsEmpty());
  EXPECT_THAT(recorded->opened, IsEmpty());
  EXPECT_EQ(recorded->due_asked, 0);
  EXPECT_EQ(module->get_state_calls, 0);
  EXPECT_EQ(module->times("end_train"), 1u) << "it is trained all the same";
}

TEST(TrainerTest, StateIsBuiltOnlyWhereItIsDue) {
  auto module = std::make_shared<TinyModule>();
  record(run_of(5), {.period = 3}, module);
  EXPECT_EQ(module->get_state_calls, 4) << "epochs 0, 3 and 4, and the model";
}

TEST(TrainerTest, EveryCheckpointerHasItsOwnSchedule) {
  const auto often = std::make_shared<Recorded>(), seldom = std::make_shared<Recorded>();
  Checkpointers both = recording_checkpointer(often);
  both.push_back(std::make_unique<testing::RecordingCheckpointer>(seldom, SaveSchedule{.period = 2}));
  auto module = std::make_shared<TinyModule>();
  Trainer(module, nullptr, std::move(both), run_of(4)).train();
  EXPECT_THAT(often->indices(), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(seldom->indices(), ElementsAre(0, 2, 3));
  EXPECT_EQ(module->get_state_calls, 7) << "one state for all that are due at epochs 0 to 3, one at the end, and a model for each";
}

TEST(TrainerTest, NoEpochsWriteNothing) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>();
  const RunResult result = saving_trainer(module, folder.text(), run_of(0))->train();
  EXPECT_EQ(result.outcome, Outcome::kNothingToDo);
  EXPECT_EQ(result.summary(), "nothing to do epochs=0 global_step=0");
  EXPECT_THAT(names_in(folder.path()), IsEmpty());
  EXPECT_THAT(module->log, IsEmpty());
  EXPECT_EQ(module->get_state_calls, 0);
}

TEST(TrainerTest, TrainingAgainFindsNothingToDo) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>();
  const auto trainer = saving_trainer(module, folder.text(), run_of(2));
  EXPECT_EQ(trainer->train().outcome, Outcome::kDone);
  const auto written = std::filesystem::last_write_time(folder / "checkpoint_1.pt");
  const auto model_written = std::filesystem::last_write_time(folder / "checkpoint_model_1.pt");
  const RunResult again = trainer->train();
  EXPECT_EQ(again.outcome, Outcome::kNothingToDo);
  EXPECT_EQ(again.epochs, 2);
  EXPECT_EQ(again.global_step, 4);
  EXPECT_EQ(again.checkpoint, (folder / "checkpoint_1.pt").string());
  EXPECT_EQ(std::filesystem::last_write_time(folder / "checkpoint_1.pt"), written);
  EXPECT_EQ(std::filesystem::last_write_time(folder / "checkpoint_model_1.pt"), model_written);
  EXPECT_EQ(module->times("end_train"), 1u);
  EXPECT_EQ(module->times("begin_epoch"), 2u);
}

TEST(TrainerTest, OnlyAMissingLastModelIsWrittenWhenNothingIsLeft) {
  const TempFolder folder;
  const auto trainer = saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(2));
  trainer->train();
  std::filesystem::remove(folder / "checkpoint_model_1.pt");
  std::filesystem::remove(folder / "checkpoint_1.pt");
  trainer->train();
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt", "checkpoint_model_1.pt"));
}

TEST(TrainerTest, SavesOnRequest) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>();
  std::unique_ptr<Trainer> trainer;
  module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step == 3) {
      EXPECT_THAT(trainer->save_checkpoint(), IsEmpty()) << "no period is due within an epoch";
      EXPECT_THAT(trainer->save_checkpoint(true), ElementsAre((folder / "checkpoint_step_3.pt").string()));
      EXPECT_THAT(trainer->save_model_checkpoint(), ElementsAre((folder / "checkpoint_model_1.pt").string()));
    }
  };
  trainer = saving_trainer(module, folder.text(), run_of(2));
  EXPECT_THAT([&] { trainer->save_checkpoint(true); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("nothing has been trained")));
  EXPECT_THAT([&] { trainer->save_model_checkpoint(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("nothing has been trained")));
  trainer->train();
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt", "checkpoint_1.pt", "checkpoint_model_1.pt", "checkpoint_step_3.pt"));
  EXPECT_THAT(trainer->save_checkpoint(true), IsEmpty()) << "it was just saved";
}

TEST(TrainerTest, CheckpointersHearOfARunOnceHoweverOftenItIsStopped) {
  auto recorded = std::make_shared<Recorded>();
  auto module = std::make_shared<TinyModule>();
  Trainer trainer(module, nullptr, recording_checkpointer(recorded), run_of(2));
  module->at_end_step = [&](const StepSummary& step) { if (step.global_step < 4) trainer.stop(); };
  for (int i = 0; i < 4; ++i) trainer.train();
  EXPECT_EQ(trainer.train().outcome, Outcome::kNothingToDo);
  ASSERT_THAT(recorded->opened, SizeIs(1));
  EXPECT_EQ(recorded->opened[0].loaded_from, "");
  EXPECT_EQ(recorded->closed, 4) << "but each part of it is ended";
}

// ---- when saving fails

TEST(TrainerTest, ACheckpointerThatThrowsDoesNotEndTraining) {
  auto recorded = std::make_shared<Recorded>();
  recorded->before_save = [](const SavePoint& point) { if (point.index == 1) throw std::runtime_error("no space on the moon"); };
  RecordingLogger logger;
  TrainerServices services;
  services.logger = &logger;
  auto module = std::make_shared<TinyModule>();
  const RunResult result = Trainer(module, nullptr, recording_checkpointer(recorded), run_of(3), std::move(services)).train();
  EXPECT_THAT(recorded->indices(), ElementsAre(0, 2));
  EXPECT_FALSE(result.last_save_failed) << "what is newest is saved";
  EXPECT_EQ(result.exit_code(), 0);
  EXPECT_EQ(result.checkpoint, "memory:2");
  EXPECT_THAT(logger.errors(), ElementsAre(AllOf(HasSubstr("epoch 1, step 4"), HasSubstr("no space on the moon"))));
  EXPECT_EQ(module->times("end_train"), 1u);
}

TEST(TrainerTest, AFailedLastSaveIsTriedAgainAtTheEndAndTold) {
  auto recorded = std::make_shared<Recorded>();
  recorded->before_save = [](const SavePoint& point) { if (point.index == 2) throw std::runtime_error("no"); };
  auto module = std::make_shared<TinyModule>();
  RunResult result = Trainer(module, nullptr, recording_checkpointer(recorded), run_of(3)).train();
  EXPECT_EQ(recorded->failed, 2);
  EXPECT_TRUE(result.last_save_failed);
  EXPECT_EQ(result.exit_code(), 4);
  EXPECT_EQ(result.outcome, Outcome::kDone);
  EXPECT_EQ(result.checkpoint, "memory:1");
  EXPECT_EQ(module->times("end_train"), 1u);

  recorded = std::make_shared<Recorded>();
  recorded->before_save = [&failed = recorded->failed](const SavePoint& point) { if (point.index == 2 && failed == 0) throw std::runtime_error("no"); };
  result = Trainer(std::make_shared<TinyModule>(), nullptr, recording_checkpointer(recorded), run_of(3)).train();
  EXPECT_THAT(recorded->indices(), ElementsAre(0, 1, 2));
  EXPECT_EQ(result.exit_code(), 0) << "the second try helped";
}

TEST(TrainerTest, AModelThatIsNotSavedAndACloseThatFailsAreFailedLastSaves) {
  auto recorded = std::make_shared<Recorded>();
  recorded->before_save_model = [] { throw std::runtime_error("no"); };
  EXPECT_EQ(Trainer(std::make_shared<TinyModule>(), nullptr, recording_checkpointer(recorded), run_of(1)).train().exit_code(), 4);
  recorded = std::make_shared<Recorded>();
  recorded->at_close = [] { throw std::runtime_error("no"); };
  EXPECT_EQ(Trainer(std::make_shared<TinyModule>(), nullptr, recording_checkpointer(recorded), run_of(1)).train().exit_code(), 4);
}

TEST(TrainerTest, ACheckpointerThatCannotSayWhetherItIsDueDoesNotEndTraining) {
  auto recorded = std::make_shared<Recorded>();
  recorded->at_due = [] { throw std::runtime_error("no"); };
  auto module = std::make_shared<TinyModule>();
  const RunResult result = Trainer(module, nullptr, recording_checkpointer(recorded), run_of(3)).train();
  EXPECT_EQ(result.epochs, 3);
  EXPECT_THAT(recorded->indices(), ElementsAre(2)) << "the end is forced";
  EXPECT_EQ(result.exit_code(), 0);
}

TEST(TrainerTest, OneFailingCheckpointerDoesNotKeepAnotherFromSaving) {
  const auto bad = std::make_shared<Recorded>(), good = std::make_shared<Recorded>();
  bad->before_save = [](const SavePoint&) { throw 42; };
  Checkpointers both = recording_checkpointer(bad);
  both.push_back(std::make_unique<testing::RecordingCheckpointer>(good));
  const RunResult result = Trainer(std::make_shared<TinyModule>(), nullptr, std::move(both), run_of(2)).train();
  EXPECT_THAT(good->indices(), ElementsAre(0, 1));
  EXPECT_TRUE(result.last_save_failed);
  EXPECT_EQ(result.checkpoint, "memory:1");
}

TEST(TrainerTest, AFailedStepLeavesTheLastGoodCheckpoint) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>();
  module->instead_of_train_step = [&](const StepContext& step, Batch& batch) {
    const at::Tensor loss = module->predict(batch.data()).square().mean();
    return StepOutput(step.global_step == 3 ? loss / 0.0 : loss);
  };
  const auto trainer = saving_trainer(module, folder.text(), run_of(3));
  EXPECT_THAT([&] { trainer->train(); }, ThrowsError(Errc::kTraining, AllOf(HasSubstr("epoch 1, step 4"), HasSubstr("inf"))));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt", "checkpoint_suspect_3.pt"));
  EXPECT_EQ(read_checkpoint(folder / "checkpoint_0.pt").trainer_state.at("last_epoch").as_int(), 0);
  EXPECT_EQ(read_checkpoint(folder / "checkpoint_suspect_3.pt").global_step(), 3) << "what was learned before the step that failed";
  EXPECT_TRUE(trainer->started());
}

TEST(TrainerTest, WhatAModuleThrowsGoesThroughAsItIs) {
  struct Own {};
  auto module = std::make_shared<TinyModule>();
  module->at_end_step = [](const StepSummary&) { throw Own(); };
  EXPECT_THROW(unsaved_trainer(module, run_of(1))->train(), Own);
}

// ---- callbacks

TEST(TrainerTest, CallbacksComeInOrderAndInTheirMode) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.val = {{"a", 4}, {"b", 2}}});
  unsaved_trainer(module, run_of(2))->train();
  EXPECT_THAT(module->log, ElementsAre("begin_epoch 0 0 train", "end_step 0 1 train", "end_step 0 2 train", "end_val a 0 2 eval", "end_val b 0 2 eval", "end_epoch 0 2 train",
                                       "begin_epoch 1 2 train", "end_step 1 3 train", "end_step 1 4 train", "end_val a 1 4 eval", "end_val b 1 4 eval", "end_epoch 1 4 train",
                                       "end_train 4 train"));
  EXPECT_THAT(module->train_steps, ElementsAre(0, 1, 2, 3)) << "steps completed, everywhere";
  EXPECT_THAT(module->val_steps, ElementsAre(2, 2, 4, 4));
}

TEST(TrainerTest, GradientsAreThereAfterAStepAndGoneBeforeTheNext) {
  auto module = std::make_shared<TinyModule>();
  int with_gradients = 0;
  module->at_end_step = [&](const StepSummary&) { with_gradients += module->weight().grad().defined(); };
  module->instead_of_train_step = [&](const StepContext&, Batch& batch) {
    EXPECT_FALSE(module->weight().grad().defined() && module->weight().grad().any().item<bool>());
    return StepOutput(module->predict(batch.data()).mean());
  };
  unsaved_trainer(module, run_of(2))->train();
  EXPECT_EQ(with_gradients, 4);
}

TEST(TrainerTest, TheEpochsSummaryHasTrainingAndValidation) {
  auto module = std::make_shared<TinyModule>();
  const RunResult result = unsaved_trainer(module, run_of(2))->train();
  const Metrics& metrics = module->train_summaries.at(1).metrics;
  ASSERT_EQ(metrics.size(), 3u);
  EXPECT_EQ(metrics.at("train/loss"), (module->losses[2] + module->losses[3]) / 2);
  EXPECT_EQ(metrics.at("val/loss"), module->val_summaries.at(1).metrics.at("val/loss"));
  EXPECT_EQ(result.metrics, metrics);
  EXPECT_THAT(result.summary(), AllOf(HasSubstr("done epochs=2 global_step=4 val/absolute="), HasSubstr(" val/loss=")));
}

TEST(TrainerTest, SeveralValidationLoadersHaveTheirNamesInTheMetrics) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.val = {{"a", 4}, {"b", 2}}});
  const Metrics metrics = unsaved_trainer(module, run_of(1))->train().metrics;
  for (const char* name : {"val/a/loss", "val/a/absolute", "val/b/loss", "val/b/absolute"}) EXPECT_NE(metrics.find(name), nullptr) << name;
  EXPECT_EQ(metrics.find("val/loss"), nullptr);
  EXPECT_EQ(module->val_summaries.at(0).metrics.size(), 2u) << "each callback has its loader's";
}

TEST(TrainerTest, WithoutAValidationLoaderNothingIsValidated) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.val = {}});
  const RunResult result = unsaved_trainer(module, run_of(2))->train();
  EXPECT_EQ(module->times("end_val"), 0u);
  EXPECT_EQ(module->times("end_epoch"), 2u);
  EXPECT_EQ(result.metrics.size(), 1u);
}

TEST(TrainerTest, ValidateGivesTheMetricsOfAllLoadersAndTrainsNothing) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.val = {{"a", 4}, {"b", 2}}});
  const at::Tensor before = module->weight().detach().clone();
  TrainerOptions options = run_of(1);
  options.validate_only = true;
  const auto trainer = unsaved_trainer(module, options);
  EXPECT_EQ(trainer->validate().size(), 4u);
  EXPECT_THAT(module->log, ElementsAre("end_val a 0 0 eval", "end_val b 0 0 eval"));
  EXPECT_TRUE(torch::equal(module->weight(), before));
  EXPECT_THAT(module->plans, IsEmpty()) << "no optimizer is made";
  EXPECT_THAT([&] { trainer->train(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("validate()")));
}

TEST(TrainerTest, OutputsArriveInOrderAndOnlyIfTheyAreReturned) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 7, .shuffle = false});
  module->instead_of_train_step = [&](const StepContext&, Batch& batch) {
    StepOutput output(module->predict(batch.data()).square().mean());
    output.outputs = {batch.target(), output.loss};
    return output;
  };
  std::vector<std::vector<at::Tensor>> of_steps;
  module->at_end_step = [&](const StepSummary& step) { of_steps.push_back(step.outputs); };
  TrainerOptions options = run_of(1);
  options.micro_batch_limit = 2;
  unsaved_trainer(module, options)->train();
  ASSERT_THAT(of_steps, SizeIs(2));
  EXPECT_EQ(of_steps[0].at(0).size(0), 4);
  EXPECT_EQ(of_steps[0].at(1).sizes(), (std::vector<int64_t>{2})) << "a number of each micro-batch";
  const std::vector<at::Tensor>& of_epoch = module->train_summaries.at(0).outputs;
  EXPECT_TRUE(torch::equal(of_epoch.at(0), module->data(7)[1]));
  EXPECT_EQ(of_epoch.at(1).size(0), 4);
  EXPECT_FALSE(of_epoch.at(1).requires_grad());
  EXPECT_THAT(module->val_summaries.at(0).outputs, IsEmpty());
}

TEST(TrainerTest, ANumberOfOutputsThatChangesIsRefused) {
  const auto module = std::make_shared<TinyModule>();
  module->instead_of_train_step = [&](const StepContext& step, Batch& batch) {
    StepOutput output(module->predict(batch.data()).mean());
    output.outputs.assign(static_cast<size_t>(step.global_step + 1), torch::ones({2}));
    return output;
  };
  EXPECT_THAT([&] { unsaved_trainer(module, run_of(1))->train(); }, ThrowsError(Errc::kTraining, HasSubstr("2 outputs")));
}

// ---- loaders, plan and options

TEST(TrainerTest, LoadersAndOptimizersAreAskedForOnceARun) {
  auto module = std::make_shared<TinyModule>();
  TrainerOptions options = run_of(3);
  options.val_batch_size = 3;
  options.seed = 7;
  const auto trainer = unsaved_trainer(module, options);
  EXPECT_THAT(module->requests, IsEmpty()) << "making a trainer asks for nothing";
  trainer->train();
  trainer->validate();
  ASSERT_THAT(module->requests, SizeIs(2));
  EXPECT_EQ(module->requests[0].stage, Stage::kTrain);
  EXPECT_EQ(module->requests[0].batch_size, 4);
  EXPECT_EQ(module->requests[0].seed, 7u);
  EXPECT_EQ(module->requests[1].stage, Stage::kVal);
  EXPECT_EQ(module->requests[1].batch_size, 3);
  EXPECT_THAT(module->plans, SizeIs(1));
}

TEST(TrainerTest, EveryEpochHasAnOrderOfItsOwnThatTheSeedDecides) {
  const auto orders = [](int64_t seed) {
    auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 40});
    std::vector<at::Tensor> seen;
    module->instead_of_train_step = [&](const StepContext&, Batch& batch) {
      seen.push_back(batch.target().clone());
      return StepOutput(module->predict(batch.data()).mean());
    };
    TrainerOptions options = run_of(2, 40);
    options.seed = seed;
    unsaved_trainer(module, options)->train();
    return seen;
  };
  const auto first = orders(0), again = orders(0), other = orders(1);
  EXPECT_FALSE(torch::equal(first[0], first[1]));
  EXPECT_TRUE(torch::equal(first[0], again[0]));
  EXPECT_TRUE(torch::equal(first[1], again[1]));
  EXPECT_FALSE(torch::equal(first[0], other[0]));
}

TEST(TrainerTest, StepCountsAreExact) {
  for (const auto& [samples, batch, steps] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{{100, 4, 25}, {8, 4, 2}, {7, 4, 2}, {3, 4, 1}, {9, 2, 5}}) {
    auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = samples, .val = {}});
    TrainerOptions options = run_of(2, batch);
    options.micro_batch_limit = 3;
    const RunResult result = unsaved_trainer(module, options)->train();
    EXPECT_EQ(module->plans.at(0).steps_per_epoch, steps);
    EXPECT_EQ(module->plans.at(0).total_steps(), 2 * steps);
    EXPECT_EQ(module->plans.at(0).epochs, 2);
    EXPECT_EQ(result.global_step, 2 * steps) << "and as many are made";
  }
}

TEST(TrainerTest, CapsCountInThePlanAndInTheRun) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.val = {{"default", 6}}});
  TrainerOptions options = run_of(3, 2);
  options.max_train_steps_per_epoch = 3;
  options.max_val_steps_per_epoch = 2;
  EXPECT_EQ(unsaved_trainer(module, options)->train().global_step, 9);
  EXPECT_EQ(module->plans.at(0).total_steps(), 9);
  EXPECT_THAT(module->val_steps, ElementsAre(3, 3, 6, 6, 9, 9));
}

TEST(TrainerTest, EndsAtMaxSteps) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>();
  TrainerOptions options = run_of(10, 2);
  options.max_steps = 6;
  const RunResult result = saving_trainer(module, folder.text(), options)->train();
  EXPECT_EQ(result.outcome, Outcome::kDone);
  EXPECT_EQ(result.global_step, 6);
  EXPECT_EQ(result.epochs, 1);
  EXPECT_EQ(module->plans.at(0).total_steps(), 6);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt", "checkpoint_model_1.pt", "checkpoint_step_6.pt"));
  EXPECT_EQ(module->times("end_val default"), 2u) << "what there is, is validated";
  EXPECT_EQ(module->times("end_train"), 1u);

  const TempFolder at_an_end;
  options.max_steps = 4;
  EXPECT_EQ(saving_trainer(std::make_shared<TinyModule>(), at_an_end.text(), options)->train().epochs, 1);
  EXPECT_THAT(names_in(at_an_end.path()), ElementsAre("checkpoint_0.pt", "checkpoint_model_0.pt")) << "a whole epoch has the epoch's name";
}

TEST(TrainerTest, ALoaderOfUnknownLengthTrainsButGivesNoCount) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 7, .known_length = false});
  EXPECT_EQ(unsaved_trainer(module, run_of(2))->train().global_step, 4);
  EXPECT_EQ(module->plans.at(0).steps_per_epoch, std::nullopt);
  const auto scheduled = [] { return std::make_shared<TinyModule>(TinyOptions{.known_length = false, .adamw = true}); };
  EXPECT_THAT([&] { unsaved_trainer(scheduled(), run_of(2))->train(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("--max_steps")));
  TrainerOptions options = run_of(2);
  options.max_steps = 3;
  EXPECT_EQ(unsaved_trainer(scheduled(), options)->train().global_step, 3);
}

TEST(TrainerTest, WhatCannotBeRunIsRefusedBeforeTheFirstStep) {
  const auto with = [](auto change) {
    TrainerOptions options = run_of(1);
    change(options);
    return [options] { unsaved_trainer(std::make_shared<TinyModule>(), options)->train(); };
  };
  EXPECT_THAT(with([](auto& o) { o.epochs = -1; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("epochs")));
  EXPECT_THAT(with([](auto& o) { o.train_batch_size = 0; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("train_batch_size")));
  EXPECT_THAT(with([](auto& o) { o.micro_batch_limit = 0; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("micro_batch_limit")));
  EXPECT_THAT(with([](auto& o) { o.max_steps = 0; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("max_steps")));
  EXPECT_THAT(with([](auto& o) { o.max_grad_norm = 0; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("max_grad_norm")));
  EXPECT_THAT(with([](auto& o) { o.device = "tpu"; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("tpu")));
  EXPECT_THAT(with([](auto& o) { o.device = "cuda"; }), ThrowsError(Errc::kUnsupported, HasSubstr("--device cuda")));
  EXPECT_THAT(with([](auto& o) { o.resume = "maybe"; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("--resume")));
  EXPECT_THAT([] { Trainer trainer(nullptr); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("null")));

  const auto module_with = [](auto change) {
    auto module = std::make_shared<TinyModule>();
    change(*module);
    return [module] {
      const TempFolder folder;
      saving_trainer(module, folder.text(), run_of(1))->train();
    };
  };
  EXPECT_THAT(module_with([](auto& m) { m.instead_of_train_loader = [](auto&) { return nullptr; }; }),
              ThrowsError(Errc::kInvalidArgument, HasSubstr("get_train_dataloader returned null")));
  EXPECT_THAT(module_with([](auto& m) { m.make_optimizers = [](auto&, auto&) { return OptimizersSchedulers(); }; }),
              ThrowsError(Errc::kInvalidArgument, HasSubstr("no optimizer")));
  // LBFGS has a state that cannot be saved.
  const auto lbfgs = [](TinyModule& of, const TrainingPlan&) { return OptimizersSchedulers{{std::make_shared<torch::optim::LBFGS>(of.parameters())}}; };
  EXPECT_THAT(module_with([&](auto& m) { m.make_optimizers = lbfgs; }), ThrowsError(Errc::kUnsupported, HasSubstr("LBFGS")));
}

}  // namespace
}  // namespace marlin
