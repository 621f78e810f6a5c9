// MONAI's CheckpointSaver and CheckpointLoader with a real run, row by row. The number at a name's end is the row of the case table; a
// comment says where this project does better. Rows that need no Trainer are in tests/unit/checkpointers/monai_*_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <regex>

#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/key_metric_checkpointer.h"
#include "marlin/checkpointers/load_objects.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::names_in;
using testing::RecordingLogger;
using testing::run_of;
using testing::same_parameters;
using testing::TempFolder;
using testing::TinyModule;
using testing::TinyOptions;

constexpr const char* kModule = "module_interface_state";

// A saver that keeps the whole state, so that files are "checkpoint_...".
KeyMetricOptions in(const std::filesystem::path& folder) {
  KeyMetricOptions options;
  options.save_dir = folder.string();
  return options;
}
// One that keeps the module's state only, as their rows with one object do.
KeyMetricOptions module_in(const std::filesystem::path& folder) {
  KeyMetricOptions options = in(folder);
  options.save_dict = {kModule};
  return options;
}

// What is in a folder but the bare models that end runs.
std::vector<std::string> checkpoints_in(const std::filesystem::path& folder) {
  std::vector<std::string> names = names_in(folder);
  const std::regex model(".*_model_[0-9]+\\.pt");
  std::erase_if(names, [&](const std::string& name) { return std::regex_match(name, model); });
  return names;
}

// A run of a saver, or several, over 4 samples a step.
struct SavingRun {
  RecordingLogger logger;
  std::shared_ptr<TinyModule> module;
  std::vector<KeyMetricCheckpointer*> savers;
  std::unique_ptr<Trainer> trainer;

  SavingRun(std::shared_ptr<TinyModule> of, const std::vector<KeyMetricOptions>& all, const TrainerOptions& options) : module(std::move(of)) {
    Checkpointers checkpointers;
    for (const KeyMetricOptions& one : all) {
      checkpointers.push_back(std::make_unique<KeyMetricCheckpointer>(one, HostContext{&logger}));
      savers.push_back(static_cast<KeyMetricCheckpointer*>(checkpointers.back().get()));
    }
    TrainerServices services;
    services.logger = &logger;
    trainer = std::make_unique<Trainer>(module, nullptr, std::move(checkpointers), options, std::move(services));
  }
};

std::shared_ptr<TinyModule> module_of(int64_t steps_per_epoch) { return std::make_shared<TinyModule>(TinyOptions{.num_samples = 4 * steps_per_epoch}); }

// ---- exceptions

// Better: what ends the run is saved once, and it names the steps that were completed.
TEST(MonaiTrainerCases, AnExceptionAfterTheFirstStepKeepsTheStateRow9) {
  const TempFolder folder;
  KeyMetricOptions options = module_in(folder.path());
  options.save_final = true;
  SavingRun run(module_of(8), {options}, run_of(2));
  run.module->at_end_step = [](const StepSummary&) { throw std::runtime_error("test"); };
  EXPECT_THAT([&] { run.trainer->train(); }, ::testing::ThrowsMessage<std::runtime_error>("test"));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("module_interface_state_final_iteration=1.pt"));
  const Archive archive = read_archive(folder / "module_interface_state_final_iteration=1.pt");
  EXPECT_EQ(archive.record->cause, "exception");
  EXPECT_EQ(archive.record->global_step, 1);
  EXPECT_TRUE(equal(archive.root.at(kModule), Value(run.module->get_state())));
}

// Theirs counts the step that failed; here none is completed, and what has learned nothing is not kept.
TEST(MonaiTrainerCases, AnExceptionInTheFirstStepKeepsNothingDiffersFromRow9) {
  const TempFolder folder;
  KeyMetricOptions options = module_in(folder.path());
  options.save_final = true;
  SavingRun run(module_of(8), {options}, run_of(2));
  run.module->instead_of_train_step = [](const StepContext&, Batch&) -> StepOutput { throw std::runtime_error("test"); };
  EXPECT_THAT([&] { run.trainer->train(); }, ::testing::ThrowsMessage<std::runtime_error>("test"));
  EXPECT_THAT(names_in(folder.path()), IsEmpty());
}

// Better: once, by every saver, and then the exception goes on.
TEST(MonaiTrainerCases, EverySaverKeepsTheStateOnceAfterAnExceptionRow43) {
  const TempFolder folder, other;
  KeyMetricOptions first = module_in(folder.path()), second = module_in(other.path());
  first.save_final = second.save_final = true;
  first.save_interval = 1;
  SavingRun run(module_of(2), {first, second}, run_of(5));
  std::vector<std::string> saves, other_saves;
  run.savers[0]->on_saved([&](const SavedCheckpoint& saved) { saves.push_back(saved.name); });
  run.savers[1]->on_saved([&](const SavedCheckpoint& saved) { other_saves.push_back(saved.name); });
  run.module->at_end_step = [](const StepSummary& step) {
    if (step.global_step == 3) throw std::runtime_error("in epoch 2");
  };
  EXPECT_THAT([&] { run.trainer->train(); }, ::testing::ThrowsMessage<std::runtime_error>("in epoch 2"));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("module_interface_state_epoch=1.pt", "module_interface_state_final_iteration=3.pt"));
  EXPECT_THAT(names_in(other.path()), ElementsAre("module_interface_state_final_iteration=3.pt"));
  EXPECT_THAT(saves, ElementsAre("module_interface_state_epoch=1.pt", "module_interface_state_final_iteration=3.pt"));
  EXPECT_THAT(other_saves, ElementsAre("module_interface_state_final_iteration=3.pt"));
}

TEST(MonaiTrainerCases, WithoutAFinalPartAnExceptionSavesNothingRow43) {
  const TempFolder folder;
  KeyMetricOptions options = module_in(folder.path());
  options.save_interval = 1;
  SavingRun run(module_of(2), {options}, run_of(5));
  run.module->at_end_step = [](const StepSummary& step) {
    if (step.global_step == 3) throw std::runtime_error("in epoch 2");
  };
  EXPECT_THROW(run.trainer->train(), std::runtime_error);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("module_interface_state_epoch=1.pt"));
}

// The state of a run that failed is not what `--resume auto` goes on from.
TEST(MonaiTrainerCases, AutoGoesOnFromBeforeTheExceptionRow43) {
  const TempFolder folder;
  KeyMetricOptions options = in(folder.path());
  options.save_final = true;
  options.save_interval = 1;
  SavingRun first(module_of(2), {options}, run_of(3));
  first.module->at_end_step = [](const StepSummary& step) {
    if (step.global_step == 3) throw std::runtime_error("in epoch 2");
  };
  EXPECT_THROW(first.trainer->train(), std::runtime_error);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_epoch=1.pt", "checkpoint_final_iteration=3.pt"));
  SavingRun second(module_of(2), {options}, run_of(3, "auto"));
  second.trainer->train();
  EXPECT_THAT(second.module->train_steps, ElementsAre(2, 3, 4, 5));

  const TempFolder elsewhere;
  KeyMetricOptions there = in(elsewhere.path());
  there.save_final = true;
  SavingRun undisturbed(module_of(2), {there}, run_of(3));
  undisturbed.trainer->train();
  EXPECT_TRUE(same_parameters(*second.module, *undisturbed.module));
}

struct Interrupt {};

TEST(MonaiTrainerCases, AnInterruptIsPassedOnRow44) {
  const TempFolder folder;
  KeyMetricOptions options = module_in(folder.path());
  options.save_final = true;
  SavingRun run(module_of(2), {options}, run_of(5));
  int saves = 0;
  run.savers[0]->on_saved([&](const SavedCheckpoint&) { ++saves; });
  run.module->at_end_step = [](const StepSummary& step) {
    if (step.global_step == 3) throw Interrupt();
  };
  EXPECT_THROW(run.trainer->train(), Interrupt);
  EXPECT_EQ(saves, 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("module_interface_state_final_iteration=3.pt"));
}

TEST(MonaiTrainerCases, AStopKeepsTheStateAndTheNextEndReplacesItRow44) {
  const TempFolder folder;
  KeyMetricOptions options = module_in(folder.path());
  options.save_final = true;
  SavingRun run(module_of(2), {options}, run_of(2));
  run.module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step == 3) run.trainer->stop();
  };
  EXPECT_EQ(run.trainer->train().outcome, RunResult::Outcome::kStopped);
  EXPECT_THAT(checkpoints_in(folder.path()), ElementsAre("module_interface_state_final_iteration=3.pt"));
  EXPECT_EQ(run.trainer->train().outcome, RunResult::Outcome::kDone);
  EXPECT_THAT(checkpoints_in(folder.path()), ElementsAre("module_interface_state_final_iteration=4.pt"));
}

// Its state can no longer be told once that was asked for.
class Untellable final : public TinyModule {
 public:
  using TinyModule::TinyModule;
  bool broken = false;
  [[nodiscard]] StateDict get_state() const override {
    if (broken) throw std::runtime_error("no state");
    return TinyModule::get_state();
  }
};

// Better: the earlier file stays, and the first error is the one that is told.
TEST(MonaiTrainerCases, AFailingSaveAfterAnExceptionCostsNothingRow45) {
  const TempFolder folder;
  KeyMetricOptions options = module_in(folder.path());
  options.save_final = true;
  const auto module = std::make_shared<Untellable>(TinyOptions{.num_samples = 8});
  SavingRun run(module, {options}, run_of(5));
  module->at_end_step = [&](const StepSummary& step) {
    if (step.global_step == 1) run.trainer->stop();
    if (step.global_step == 3) {
      module->broken = true;
      throw std::runtime_error("the original");
    }
  };
  EXPECT_EQ(run.trainer->train().outcome, RunResult::Outcome::kStopped);
  const std::vector<std::string> before = names_in(folder.path());
  EXPECT_THAT(before, ElementsAre("module_interface_state_final_iteration=1.pt"));
  EXPECT_THAT([&] { run.trainer->train(); }, ::testing::ThrowsMessage<std::runtime_error>("the original"));
  EXPECT_EQ(names_in(folder.path()), before);
  std::vector<std::string> told = run.logger.errors();
  for (const std::string& line : run.logger.warnings()) told.push_back(line);
  EXPECT_THAT(told, ::testing::Contains(HasSubstr("no state")));
}

// ---- loading into a run

TEST(MonaiTrainerCases, ALongerRunGoesOnRow12) {
  const TempFolder folder, elsewhere;
  KeyMetricOptions options = in(folder.path());
  options.save_final = true;
  SavingRun first(module_of(8), {options}, run_of(5));
  first.trainer->train();
  EXPECT_THAT(checkpoints_in(folder.path()), ElementsAre("checkpoint_final_iteration=40.pt"));

  SavingRun second(module_of(8), {options}, run_of(8, (folder / "checkpoint_final_iteration=40.pt").string()));
  std::optional<bool> same;
  second.module->instead_of_train_step = [&](const StepContext&, Batch& batch) -> StepOutput {
    if (!same) same = same_parameters(*first.module, *second.module);
    return (second.module->predict(batch.data()) - batch.target()).square().mean();
  };
  const RunResult result = second.trainer->train();
  EXPECT_EQ(second.module->log.at(0), "begin_epoch 5 40 train");
  EXPECT_TRUE(same.value_or(false));
  EXPECT_EQ(result.epochs, 8);
  EXPECT_THAT(checkpoints_in(folder.path()), ElementsAre("checkpoint_final_iteration=64.pt")) << "the list was found again, so that the earlier final file went";

  options.save_dir = elsewhere.text();
  SavingRun straight(module_of(8), {options}, run_of(8));
  straight.trainer->train();
  EXPECT_TRUE(same_parameters(*second.module, *straight.module));
}

// Better: looked at before anything is changed, and a run that has nothing left says so.
TEST(MonaiTrainerCases, EpochsOfTheRunAndOfTheFileRow40) {
  const TempFolder folder;
  KeyMetricOptions options = in(folder.path());
  options.save_final = true;
  SavingRun first(module_of(2), {options}, run_of(5));
  first.trainer->train();
  const std::string file = (folder / "checkpoint_final_iteration=10.pt").string();

  const auto another = module_of(2);
  CheckpointLoader::Options load;
  load.load_path = file;
  load.load_dict = {{kModule, tensors_target(another->get_state())}};
  EXPECT_THROW((void)CheckpointLoader(load).load(3), Error);
  EXPECT_TRUE(same_parameters(*another, *module_of(2)));
  EXPECT_THAT(CheckpointLoader(load).load(5), IsEmpty());
  EXPECT_TRUE(same_parameters(*another, *first.module));

  SavingRun nothing_left(module_of(2), {options}, run_of(5, file));
  EXPECT_EQ(nothing_left.trainer->train().outcome, RunResult::Outcome::kNothingToDo);
  EXPECT_THAT(nothing_left.module->train_steps, IsEmpty());

  SavingRun goes_on(module_of(2), {options}, run_of(8, file));
  EXPECT_EQ(goes_on.trainer->train().epochs, 8);
  EXPECT_THAT(goes_on.module->train_steps, ElementsAre(10, 11, 12, 13, 14, 15));
}

// ---- which files a run leaves

// val/loss is a hundredth of the steps done.
void count_as_loss(TinyModule& module) {
  module.instead_of_val_step = [](const StepContext& step, Batch&) -> StepOutput { return {torch::tensor(static_cast<double>(step.global_step) / 100)}; };
}

TEST(MonaiTrainerCases, AllThreePartsRow25) {
  const TempFolder folder;
  KeyMetricOptions options = in(folder.path());
  options.file_prefix = "t";
  options.save_final = options.save_key_metric = true;
  options.key_metric_name = "val/loss";
  options.save_interval = 1;
  options.n_saved = 2;
  SavingRun run(module_of(4), {options}, run_of(3));
  count_as_loss(*run.module);
  run.trainer->train();
  EXPECT_THAT(checkpoints_in(folder.path()),
              ElementsAre("t_checkpoint_epoch=2.pt", "t_checkpoint_epoch=3.pt", "t_checkpoint_final_iteration=12.pt", "t_checkpoint_key_metric=0.1200.pt"));
  const StateDict epoch = read_archive(folder / "t_checkpoint_epoch=3.pt").root;
  for (const char* name : {"t_checkpoint_final_iteration=12.pt", "t_checkpoint_key_metric=0.1200.pt"}) {
    EXPECT_TRUE(equal(read_archive(folder / name).root.at(kModule), epoch.at(kModule))) << "all three are of one state";
  }
}

TEST(MonaiTrainerCases, TheOrderOfSavesDoesNotHangOnThreadsRow25) {
  for (const bool async : {false, true}) {
    const TempFolder folder;
    KeyMetricOptions options = in(folder.path());
    options.save_final = options.save_key_metric = true;
    options.key_metric_name = "val/loss";
    options.key_metric_negative_sign = true;
    options.key_metric_n_saved = 2;
    SavingRun run(module_of(4), {options}, run_of(4));
    SaveSchedule schedule = run.savers[0]->schedule();
    schedule.async = async;
    run.savers[0]->set_schedule(schedule);
    count_as_loss(*run.module);
    run.trainer->train();
    EXPECT_THAT(checkpoints_in(folder.path()), ElementsAre("checkpoint_final_iteration=16.pt", "checkpoint_key_metric=-0.0400.pt", "checkpoint_key_metric=-0.0800.pt"));
  }
}

TEST(MonaiTrainerCases, IterationsAreCountedOverEpochsRow32) {
  const TempFolder folder;
  KeyMetricOptions options = module_in(folder.path());
  options.epoch_level = false;
  options.save_interval = 3;
  SavingRun run(module_of(4), {options}, run_of(2));
  run.trainer->train();
  EXPECT_THAT(checkpoints_in(folder.path()), ElementsAre("module_interface_state_iteration=3.pt", "module_interface_state_iteration=6.pt"));
}

TEST(MonaiTrainerCases, TheLastEpochIsNotForcedIntoTheIntervalRow33) {
  const TempFolder folder;
  KeyMetricOptions options = module_in(folder.path());
  options.save_interval = 2;
  SavingRun run(module_of(2), {options}, run_of(5));
  run.trainer->train();
  EXPECT_THAT(checkpoints_in(folder.path()), ElementsAre("module_interface_state_epoch=2.pt", "module_interface_state_epoch=4.pt"));
}

TEST(MonaiTrainerCases, WithAFinalPartTheLastEpochIsThereRow33) {
  const TempFolder folder;
  KeyMetricOptions options = module_in(folder.path());
  options.save_interval = 2;
  options.save_final = true;
  SavingRun run(module_of(2), {options}, run_of(5));
  run.trainer->train();
  EXPECT_THAT(checkpoints_in(folder.path()), ElementsAre("module_interface_state_epoch=2.pt", "module_interface_state_epoch=4.pt", "module_interface_state_final_iteration=10.pt"));
}

// A save that is asked for goes to the interval's list.
TEST(MonaiTrainerCases, ARequestedSaveGoesToTheIntervalRow33) {
  const TempFolder folder;
  KeyMetricOptions options = module_in(folder.path());
  options.save_interval = 2;
  SavingRun run(module_of(2), {options}, run_of(3));
  run.module->at_end_epoch = [&](const EpochSummary& summary) {
    if (summary.epoch == 0) run.trainer->request_save();
  };
  run.trainer->train();
  EXPECT_THAT(checkpoints_in(folder.path()), ElementsAre("module_interface_state_epoch=1.pt", "module_interface_state_epoch=2.pt"));
}

}  // namespace
}  // namespace marlin
