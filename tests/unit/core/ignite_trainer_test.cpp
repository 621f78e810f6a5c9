// Ignite's behaviour, row by row: what takes a whole run. The number at a test's end is the row of the case table; a comment says where
// this project differs.
#include <gmock/gmock.h>

#include <algorithm>
#include <stdexcept>

#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/best_k_checkpointer.h"
#include "marlin/core/optim/lr_scheduler.h"
#include "marlin/core/trainer.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;
using testing::names_in;
using testing::RecordingLogger;
using testing::run_of;
using testing::same_parameters;
using testing::TempFolder;
using testing::TinyModule;
using testing::TinyOptions;
using Outcome = RunResult::Outcome;

std::shared_ptr<TinyModule> make_module(int64_t steps_per_epoch) { return std::make_shared<TinyModule>(TinyOptions{.num_samples = 4 * steps_per_epoch}); }

OptimizersSchedulers adamw_that_halves(TinyModule& module, const TrainingPlan&) {
  auto optimizer = std::make_shared<torch::optim::AdamW>(module.parameters(), torch::optim::AdamWOptions(0.05));
  auto schedule = std::make_shared<optim::StepLR>(*optimizer, 1, 0.5);
  return {{std::move(optimizer)}, {std::move(schedule)}};
}

class IgniteTrainer : public ::testing::Test {
 protected:
  IgniteTrainer() {
    options.save_dir = folder.text();
    options.links = false;
  }
  Trainer* make(std::shared_ptr<TinyModule> module, TrainerOptions run) {
    auto made = std::make_unique<BestKCheckpointer>(options, hooks, HostContext{.logger = &logger});
    made->set_schedule(schedule);
    checkpointer = made.get();
    Checkpointers all;
    all.push_back(std::move(made));
    TrainerServices services;
    services.logger = &logger;
    return trainers.emplace_back(std::make_unique<Trainer>(std::move(module), nullptr, std::move(all), std::move(run), std::move(services))).get();
  }
  [[nodiscard]] std::vector<std::string> files() const { return names_in(folder.path()); }
  [[nodiscard]] std::string file(const std::string& name) const { return (folder / name).string(); }

  TempFolder folder;
  RecordingLogger logger;
  BestKOptions options;
  BestKHooks hooks;
  SaveSchedule schedule;
  std::vector<std::unique_ptr<Trainer>> trainers;
  BestKCheckpointer* checkpointer = nullptr;  // of the newest
};

// ---- the end of every epoch

TEST_F(IgniteTrainer, NamesCountStepsNotEpochsRow27) {
  options.filename_prefix = "PREFIX";
  options.n_saved = 2;
  make(make_module(2), run_of(4))->train();
  EXPECT_THAT(files(), ElementsAre("PREFIX_checkpoint_6.pt", "PREFIX_checkpoint_8.pt"));
}

// Differs: the model's state stands under its part's name.
TEST_F(IgniteTrainer, OneFileHoldsTheModelOurLayoutRow28) {
  options.objects = {"module_interface_state"};
  options.n_saved = 1;
  const auto module = make_module(3);
  make(module, run_of(4))->train();
  ASSERT_THAT(files(), ElementsAre("module_interface_state_12.pt"));
  const Archive archive = read_archive(file("module_interface_state_12.pt"));
  ASSERT_EQ(archive.root.size(), 1u);
  EXPECT_TRUE(equal(archive.root.at("module_interface_state").as_dict(), module->get_state()));
}

TEST_F(IgniteTrainer, ModelOptimizerAndScheduleAreTheLiveOnesRow29) {
  options.filename_prefix = "PREFIX";
  const auto module = make_module(3);
  module->make_optimizers = adamw_that_halves;
  const auto trainer = make(module, run_of(4));
  trainer->train();
  ASSERT_THAT(files(), ElementsAre("PREFIX_checkpoint_12.pt"));
  const StateDict root = read_archive(file("PREFIX_checkpoint_12.pt")).root;
  EXPECT_TRUE(equal(root.at("module_interface_state").as_dict(), module->get_state()));
  const StateDict& saved = root.at("trainer_state").as_dict();
  const StateDict live = trainer->get_state();
  EXPECT_TRUE(equal(saved.at("optimizers"), live.at("optimizers")));
  EXPECT_TRUE(equal(saved.at("schedulers"), live.at("schedulers")));
  EXPECT_EQ(root.at("trainer_backend_state").as_dict().at("global_step_completed").as_int(), 12);
}

TEST_F(IgniteTrainer, EverySecondEpochByAFilterRow30) {
  options.filename_prefix = "myprefix";
  options.filename_pattern = "{filename_prefix}_mymodel_{global_step}.{ext}";
  options.n_saved = 2;
  schedule.period = 1000;
  schedule.also_when = [](const SavePoint& point) { return point.unit == Unit::kEpoch && (point.epoch + 1) % 2 == 0; };
  make(make_module(5), run_of(6))->train();
  EXPECT_THAT(files(), ElementsAre("myprefix_mymodel_20.pt", "myprefix_mymodel_30.pt"));
  EXPECT_EQ(checkpointer->last_checkpoint(), file("myprefix_mymodel_30.pt"));
}

// The host's period counts from the first epoch, so that it is due at epochs 1, 3 and 5, and at the end.
TEST_F(IgniteTrainer, EverySecondEpochByThePeriodDiffersFromRow30) {
  options.n_saved = 2;
  schedule.period = 2;
  make(make_module(5), run_of(6))->train();
  EXPECT_THAT(files(), ElementsAre("checkpoint_25.pt", "checkpoint_30.pt"));
}

TEST_F(IgniteTrainer, TheNewestTwoOfTenEpochsRow92) {
  options.filename_prefix = "PREFIX";
  options.n_saved = 2;
  make(make_module(2), run_of(10))->train();
  EXPECT_THAT(files(), ElementsAre("PREFIX_checkpoint_18.pt", "PREFIX_checkpoint_20.pt"));
  EXPECT_EQ(checkpointer->last_checkpoint(), file("PREFIX_checkpoint_20.pt"));
}

// ---- a second run goes on

TEST_F(IgniteTrainer, AFileHoldsTheRunAndTheListRow100) {
  options.global_step = GlobalStepOf::kEpoch;
  options.include_self = true;
  const auto module = make_module(2);
  module->make_optimizers = adamw_that_halves;
  make(module, run_of(3))->train();
  ASSERT_THAT(files(), ElementsAre("checkpoint_3.pt"));
  const StateDict root = read_archive(file("checkpoint_3.pt")).root;
  std::vector<std::string> keys;
  for (const auto& entry : root) keys.push_back(to_string(entry.key));
  EXPECT_THAT(keys, ElementsAre("module_interface_state", "trainer_state", "trainer_backend_state", "checkpointer"));
  EXPECT_TRUE(equal(root.at("checkpointer").as_dict(), checkpointer->state()));
}

TEST_F(IgniteTrainer, ASecondRunHasAllOfItRow101) {
  options.global_step = GlobalStepOf::kEpoch;
  options.include_self = true;
  const auto first_module = make_module(2), second_module = make_module(2), straight_module = make_module(2);
  for (const auto& module : {first_module, second_module, straight_module}) module->make_optimizers = adamw_that_halves;
  const auto first = make(first_module, run_of(3));
  first->train();
  const StateDict list = checkpointer->state(), trained = first->get_state();
  bool compared = false;
  const auto second = make(second_module, run_of(4, "auto"));
  second_module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step != 7 || compared) return;
    compared = true;
    EXPECT_TRUE(equal(checkpointer->state(), list)) << "found again";
  };
  EXPECT_EQ(second->train().epochs, 4);
  EXPECT_TRUE(compared);
  EXPECT_EQ(second->get_state().at("run_id").as_string(), trained.at("run_id").as_string());
  EXPECT_THAT(files(), ElementsAre("checkpoint_4.pt")) << "the first run's file was in the list";
  const TempFolder other;
  options.save_dir = other.text();
  const auto straight = make(straight_module, run_of(4));
  straight->train();
  EXPECT_TRUE(same_parameters(*second_module, *straight_module));
  EXPECT_TRUE(equal(second->get_state().at("optimizers"), straight->get_state().at("optimizers")));
  EXPECT_TRUE(equal(second->get_state().at("schedulers"), straight->get_state().at("schedulers")));
}

// ---- exceptions and stops

// Throws after that step.
void throw_after(TinyModule& module, int64_t step) {
  module.at_end_step = [step](const StepSummary& now) {
    if (now.global_step == step) throw std::runtime_error("the disk of the data is gone");
  };
}

// Ignite's run returns as if nothing had happened.
TEST_F(IgniteTrainer, AnExceptionIsSavedOnceAndGoesOnDiffersFromRow132) {
  const auto module = make_module(3);
  throw_after(*module, 1);
  const auto trainer = make(module, run_of(1));
  std::vector<std::string> saved;
  checkpointer->on_saved([&](const SavedCheckpoint& checkpoint) { saved.push_back(checkpoint.name); });
  EXPECT_THAT([&] { trainer->train(); }, ::testing::ThrowsMessage<std::runtime_error>("the disk of the data is gone"));
  EXPECT_THAT(saved, ElementsAre("checkpoint_1.pt"));
  EXPECT_THAT(files(), ElementsAre("checkpoint_1.pt"));
  const Archive archive = read_archive(file("checkpoint_1.pt"));
  EXPECT_EQ(archive.record->cause, "exception");
  EXPECT_EQ(archive.root.at("trainer_backend_state").as_dict().at("global_step_completed").as_int(), 1);
}

// Ignite swallows it and trains on, to steps 5 and 8.
TEST_F(IgniteTrainer, NothingIsTrainedAfterAnExceptionDiffersFromRow150) {
  const auto module = make_module(3);
  throw_after(*module, 2);
  options.filename_pattern = "m_{global_step}.{ext}";
  options.n_saved = std::nullopt;
  const auto trainer = make(module, run_of(3));
  EXPECT_THROW(trainer->train(), std::runtime_error);
  EXPECT_THAT(files(), ElementsAre("m_2.pt"));
  EXPECT_THAT(module->losses, ::testing::SizeIs(2));
  EXPECT_EQ(module->times("end_epoch"), 0u);
  EXPECT_EQ(module->times("end_train"), 0u);
}

TEST_F(IgniteTrainer, AnExceptionsFileIsBesideTheListAndNotResumedFromRow150) {
  const auto module = make_module(3);
  throw_after(*module, 5);
  EXPECT_THROW(make(module, run_of(3))->train(), std::runtime_error);
  EXPECT_THAT(files(), ElementsAre("checkpoint_3.pt", "checkpoint_5.pt")) << "nothing goes for it";
  const auto again = make_module(3);
  const auto trainer = make(again, run_of(3, "auto"));
  EXPECT_EQ(trainer->train().outcome, Outcome::kDone);
  EXPECT_EQ(again->train_steps.front(), 3) << "from the end of the first epoch";
}

// Ignite swallows an interrupt, too; here it is a stop(), and the caller learns of it.
TEST_F(IgniteTrainer, AStopIsSavedAndSaidDiffersFromRow151) {
  const auto module = make_module(3);
  const auto trainer = make(module, run_of(3));
  module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step == 2) trainer->stop();
  };
  EXPECT_EQ(trainer->train().outcome, Outcome::kStopped);
  EXPECT_THAT(files(), ElementsAre("checkpoint_2.pt"));
  EXPECT_EQ(read_archive(file("checkpoint_2.pt")).record->cause, "stop");
}

// Ignite 0.5.1's own error hides the real one.
TEST_F(IgniteTrainer, AFailedSaveDoesNotHideTheExceptionDiffersFromRow152) {
  class Full final : public DiskStorage {
   public:
    using DiskStorage::DiskStorage;
    std::string put(const std::string& name, const StateDict&, const CommitRecord&) override { throw Error(Errc::kIo, "cannot write " + name + ": no room"); }
  };
  hooks.storage = std::make_shared<Full>(folder.path());
  const auto module = make_module(3);
  throw_after(*module, 2);
  EXPECT_THAT([&] { make(module, run_of(1))->train(); }, ::testing::ThrowsMessage<std::runtime_error>("the disk of the data is gone"));
  std::vector<std::string> said = logger.errors();
  const std::vector<std::string> warnings = logger.warnings();
  said.insert(said.end(), warnings.begin(), warnings.end());
  EXPECT_THAT(said, Contains(HasSubstr("no room")));
  EXPECT_THAT(files(), IsEmpty());
}

// In Ignite the first handler runs twice and the later ones never.
TEST_F(IgniteTrainer, EveryListenerHearsOfAnExceptionsSaveOnceDiffersFromRow153) {
  const auto module = make_module(3);
  throw_after(*module, 2);
  const auto trainer = make(module, run_of(1));
  int first = 0, second = 0;
  checkpointer->on_saved([&](const SavedCheckpoint& checkpoint) {
    ++first;
    EXPECT_EQ(checkpoint.point.cause, Cause::kException);
    throw std::logic_error("of the listener");
  });
  checkpointer->on_saved([&](const SavedCheckpoint&) { ++second; });
  EXPECT_THAT([&] { trainer->train(); }, ::testing::ThrowsMessage<std::runtime_error>("the disk of the data is gone"));
  EXPECT_EQ(first, 1);
  EXPECT_EQ(second, 1);
}

TEST_F(IgniteTrainer, AStopWithinAnEpochIsAFileOfItsOwnRow178) {
  options.filename_pattern = "m_{global_step}.{ext}";
  options.n_saved = 2;
  const auto module = make_module(3);
  const auto trainer = make(module, run_of(3));
  module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step == 4) trainer->stop();
  };
  trainer->train();
  EXPECT_THAT(files(), ElementsAre("m_3.pt", "m_4.pt"));
}

// ---- the best

// A module whose validation says 0.2, 0.3, 0.2.
std::shared_ptr<TinyModule> scored_module() {
  auto module = make_module(2);
  module->instead_of_val_step = [](const StepContext& step, Batch&) -> StepOutput {
    return {torch::tensor(1.0), {{"acc", torch::tensor(step.epoch == 1 ? 0.3 : 0.2)}}};
  };
  return module;
}

TEST_F(IgniteTrainer, TheBestOfAValidationStayRow184) {
  options.filename_prefix = "best";
  options.score_name = "val/acc";
  options.global_step = GlobalStepOf::kEpoch;
  options.n_saved = 2;
  options.keep_latest = KeepLatest::kNo;
  const auto trainer = make(scored_module(), run_of(3));
  const RunResult result = trainer->train();
  EXPECT_THAT(files(), ElementsAre("best_checkpoint_1_val_acc=0.2000.pt", "best_checkpoint_2_val_acc=0.3000.pt"));
  EXPECT_EQ(checkpointer->best_checkpoint(), file("best_checkpoint_2_val_acc=0.3000.pt"));
  EXPECT_EQ(result.outcome, Outcome::kDone);
  EXPECT_FALSE(result.last_save_failed) << "not kept by choice";
}

// Ignite has nothing to go on from.
TEST_F(IgniteTrainer, TheNewestStaysBesideTheBestDiffersFromRow184) {
  options.filename_prefix = "best";
  options.score_name = "val/acc";
  options.n_saved = 2;
  make(scored_module(), run_of(3))->train();
  EXPECT_THAT(files(), UnorderedElementsAre("best_checkpoint_val_acc=0.2000.pt", "best_checkpoint_val_acc=0.3000.pt", "best_checkpoint_latest_6.pt"));
  const auto again = make_module(2);
  make(again, run_of(3, "auto"))->train();
  EXPECT_THAT(again->train_steps, IsEmpty()) << "all three epochs are done";
}

}  // namespace
}  // namespace marlin
