// pymarlin's behaviour, row by row: checkpoint files. The number at a name's end is the row of the case table; a comment says
// where this project does better.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "marlin/checkpointers/archive.h"
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
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;
using testing::content_of;
using testing::damage;
using testing::default_checkpointer;
using testing::names_in;
using testing::Recorded;
using testing::save_in;
using testing::saving_trainer;
using testing::TempFolder;
using testing::ThrowsError;
using testing::TinyModule;
using testing::TinyOptions;
using testing::write_file;

Checkpoint state_of(int64_t last_epoch) {
  return {{{"weight", torch::ones({2})}}, {{"last_epoch", last_epoch}}, {{"global_step_completed", last_epoch + 1}, {"batches_completed", last_epoch + 1}}, {}};
}

int64_t last_epoch(const Checkpoint& state) { return state.trainer_state.at("last_epoch").as_int(); }

// The set-up of the rows 1 to 13.
struct Rig {
  Rig() {
    options.checkpoint = false;
    options.delete_existing_checkpoints = true;
    options.period = 2;
    options.save_dir = (folder / "save_dir").string();
    options.model_state_save_dir = (folder / "model_save_dir").string();
    options.load_dir = (folder / "load_dir").string();
    options.file_prefix = "test";
    options.file_ext = "tar";
    std::filesystem::create_directory(folder / "load_dir");
  }
  [[nodiscard]] DefaultCheckpointer make() const { return DefaultCheckpointer(options); }
  [[nodiscard]] std::vector<std::string> saved() const { return names_in(options.save_dir); }
  void put(const std::string& name, int64_t epoch) const { write_checkpoint(folder / "load_dir" / name, state_of(epoch), {}); }

  TempFolder folder;
  DefaultCheckpointerOptions options;
};

TEST(PymarlinCases, TheSwitchKeepsStatesFromBeingWrittenRow1) {
  const Rig rig;
  DefaultCheckpointer checkpointer = rig.make();
  EXPECT_THAT(checkpointer.save(state_of(0), 0), IsEmpty());
  EXPECT_THAT(rig.saved(), IsEmpty());
}

TEST(PymarlinCases, ForceBeatsThePeriodRow2) {
  Rig rig;
  rig.options.checkpoint = true;
  DefaultCheckpointer checkpointer = rig.make();
  EXPECT_THAT(checkpointer.save(state_of(1), 1, true), SizeIs(1));
  EXPECT_THAT(rig.saved(), ElementsAre("test_1.tar"));
}

TEST(PymarlinCases, ThePeriodHoldsRow3AndRow4) {
  Rig rig;
  rig.options.checkpoint = true;
  DefaultCheckpointer checkpointer = rig.make();
  checkpointer.save(state_of(1), 1, true);
  checkpointer.save(state_of(3), 3);
  EXPECT_THAT(rig.saved(), SizeIs(1));
  checkpointer.save(state_of(4), 4);
  EXPECT_THAT(rig.saved(), ElementsAre("test_1.tar", "test_4.tar"));
}

TEST(PymarlinCases, TheSameIndexIsWrittenOverRow5) {
  Rig rig;
  rig.options.checkpoint = true;
  rig.options.load_dir = rig.options.save_dir;
  DefaultCheckpointer checkpointer = rig.make();
  checkpointer.save(state_of(4), 4);
  checkpointer.save(state_of(40), 4);
  EXPECT_THAT(rig.saved(), ElementsAre("test_4.tar"));
  EXPECT_EQ(last_epoch(checkpointer.load()), 40);
}

TEST(PymarlinCases, TheSwitchKeepsModelsFromBeingWrittenRow6) {
  const Rig rig;
  DefaultCheckpointer checkpointer = rig.make();
  EXPECT_THAT(checkpointer.save_model(state_of(0).module_interface_state, 0), IsEmpty());
  EXPECT_THAT(names_in(rig.folder / "model_save_dir"), IsEmpty());
}

TEST(PymarlinCases, ModelsKnowNoPeriodRow7) {
  Rig rig;
  rig.options.checkpoint = true;
  DefaultCheckpointer checkpointer = rig.make();
  checkpointer.save_model(state_of(0).module_interface_state, 0);
  checkpointer.save_model(state_of(1).module_interface_state, 1);
  EXPECT_THAT(names_in(rig.folder / "model_save_dir"), ElementsAre("test_model_0.tar", "test_model_1.tar"));
}

// Better: the checkpointer's own load() finds nothing, as theirs; a run that was told to load ends with an error.
TEST(PymarlinCases, AMissingLoadDirIsAnErrorForARunRow8AndD3) {
  Rig rig;
  rig.options.load_dir = (rig.folder / "non_existing_folder").string();
  EXPECT_TRUE(rig.make().load().empty());
  Trainer trainer(std::make_shared<TinyModule>(), nullptr, default_checkpointer(rig.options), {});
  EXPECT_THAT([&] { trainer.train(); }, ThrowsError(Errc::kNotFound, HasSubstr("non_existing_folder")));
}

TEST(PymarlinCases, NoLoadDirLoadsNothingRow9) {
  Rig rig;
  rig.options.load_dir = "";
  EXPECT_TRUE(rig.make().load().empty());
  rig.options.load_dir.reset();
  EXPECT_TRUE(rig.make().load().empty());
}

TEST(PymarlinCases, AnEmptyLoadDirLoadsNothingRow10) { EXPECT_TRUE(Rig().make().load().empty()); }

TEST(PymarlinCases, LoadsWhatIsThereRow11) {
  const Rig rig;
  rig.put("test_0.tar", 0);
  EXPECT_EQ(last_epoch(rig.make().load()), 0);
}

TEST(PymarlinCases, AnExplicitNameBeatsTheSearchRow12) {
  Rig rig;
  rig.put("test_0.tar", 0);
  rig.put("custom_filename.tar", 1);
  rig.options.load_filename = "custom_filename.tar";
  EXPECT_EQ(last_epoch(rig.make().load()), 1);
}

TEST(PymarlinCases, TheHigherNumberIsTheNewestRow13) {
  const Rig rig;
  rig.put("test_1.tar", 1);
  rig.put("test_2.tar", 2);
  EXPECT_EQ(rig.make().load().source, (rig.folder / "load_dir" / "test_2.tar").string());
}

// ---- probes

// Better: an error, not a silent fresh start.
TEST(PymarlinCases, ANamedFileThatIsMissingIsAnErrorRow47AndD3) {
  Rig rig;
  rig.options.load_filename = "none.tar";
  EXPECT_THAT([&] { (void)rig.make().load(); }, ThrowsError(Errc::kNotFound, HasSubstr("none.tar")));
}

// Better: models and states of one folder and one prefix do not meet, not even under pymarlin's own default prefix.
TEST(PymarlinCases, TheDefaultFolderCanBeResumedFromRow48AndD1) {
  const TempFolder folder;
  DefaultCheckpointerOptions options = save_in(folder.text());
  options.file_prefix = "model";
  TrainerOptions run;
  run.epochs = 2;
  run.train_batch_size = 4;
  Trainer(std::make_shared<TinyModule>(), nullptr, default_checkpointer(options), run).train();
  EXPECT_THAT(names_in(folder.path()), ElementsAre("model_0.pt", "model_1.pt", "model_model_1.pt"));
  options.load_dir = folder.text();
  run.epochs = 3;
  auto module = std::make_shared<TinyModule>();
  EXPECT_EQ(Trainer(module, nullptr, default_checkpointer(options), run).train().epochs, 3);
  EXPECT_EQ(module->times("end_epoch"), 1u);
}

// Better: folders below are not searched.
TEST(PymarlinCases, AModelFolderInsideTheLoadFolderDoesNotMatterRow49AndD2) {
  const TempFolder folder;
  write_checkpoint(folder / "checkpoint_1.pt", state_of(1), {});
  write_model(folder / "models/checkpoint_model_9.pt", state_of(9).module_interface_state, 9);
  write_checkpoint(folder / "old/checkpoint_9.pt", state_of(9), {});
  DefaultCheckpointerOptions options;
  options.load_dir = folder.text();
  EXPECT_EQ(last_epoch(DefaultCheckpointer(options).load()), 1);
}

// Better: of each of pymarlin's nine traps the right file, or none.
TEST(PymarlinCases, TheTableOfNewestFilesRow50AndD5) {
  struct Trap {
    std::vector<std::string> files;
    std::string newest;  // empty: none
    std::string extension = "pt";
  };
  for (const Trap& trap : std::vector<Trap>{{{"model_9.pt", "model_10.pt", "model_010.pt"}, "model_10.pt"},
                                            {{"model_1.pt", "old/model_9.pt"}, "model_1.pt"},
                                            {{"model_2.pt", "model_model_3.pt"}, "model_2.pt"},
                                            {{"model_1.pt", "modelling_7.pt"}, "model_1.pt"},
                                            {{"model_1.pt", "model_9.opt"}, "model_1.pt"},
                                            {{"model_3.pt", "model_4.tmp.pt"}, "model_3.pt"},
                                            {{"run_2024/model_best.pt", "run_2024/model_3.pt"}, "run_2024/model_3.pt"},
                                            {{"model_best.pt"}, ""},
                                            {{"model_1.pt2", "model_9.pt2", "model_5.pt2"}, "model_9.pt2", "pt2"},
                                            {{"model_-1.pt", "model_0.pt"}, "model_0.pt"}}) {
    SCOPED_TRACE(trap.files[0]);
    const TempFolder folder;
    for (const std::string& file : trap.files) write_checkpoint(folder / file, state_of(0), {});
    DefaultCheckpointerOptions options;
    options.file_prefix = "model";
    options.file_ext = trap.extension;
    options.load_dir = trap.newest.starts_with("run_2024/") ? (folder / "run_2024").string() : folder.text();
    EXPECT_EQ(DefaultCheckpointer(options).load().source, trap.newest.empty() ? "" : (folder / trap.newest).string());
  }
}

// Better: the one before it, with a warning; where it was named, an error with its name.
TEST(PymarlinCases, ABrokenNewestFallsBackRow51) {
  Rig rig;
  rig.put("test_1.tar", 1);
  rig.put("test_2.tar", 2);
  damage(rig.folder / "load_dir" / "test_2.tar");
  testing::RecordingLogger logger;
  EXPECT_EQ(last_epoch(DefaultCheckpointer(rig.options, HostContext{&logger}).load()), 1);
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("test_2.tar")));
  rig.options.load_filename = "test_2.tar";
  EXPECT_THAT([&] { (void)rig.make().load(); }, ThrowsError(Errc::kCorrupt, HasSubstr("test_2.tar")));
}

// Better: only its own names go, and a folder harms nothing.
TEST(PymarlinCases, DeletesOnlyItsOwnFilesRow52) {
  const TempFolder folder;
  for (const char* name : {"a.pt", "x.opt", "receipt", "model_1.pt", "keep.txt"}) write_file(folder / name, "content");
  std::filesystem::create_directory(folder / "sub.pt");
  std::filesystem::create_directory(folder / "model_2.pt");
  DefaultCheckpointerOptions options = save_in(folder.text());
  options.file_prefix = "model";
  options.delete_existing_checkpoints = true;
  DefaultCheckpointer(options).open({});
  EXPECT_THAT(names_in(folder.path()), UnorderedElementsAre("a.pt", "x.opt", "receipt", "keep.txt", "sub.pt", "model_2.pt"));
}

// Better: it is loaded first, and stays until what follows it is written.
TEST(PymarlinCases, DeletingWhatIsResumedFromComesAfterLoadingRow53AndD4) {
  const TempFolder folder;
  TrainerOptions run;
  run.epochs = 2;
  run.train_batch_size = 4;
  saving_trainer(std::make_shared<TinyModule>(), folder.text(), run)->train();
  DefaultCheckpointerOptions options = save_in(folder.text());
  options.load_dir = folder.text();
  options.delete_existing_checkpoints = true;
  run.epochs = 3;
  auto module = std::make_shared<TinyModule>();
  module->at_end_step = [&](const StepSummary&) { EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_1.pt")); };
  EXPECT_EQ(Trainer(module, nullptr, default_checkpointer(options), run).train().epochs, 3);
  EXPECT_EQ(module->times("end_epoch"), 1u);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_2.pt", "checkpoint_model_2.pt"));
}

// Better: refused with the reason.
TEST(PymarlinCases, APeriodBelowOneIsRefusedRow55AndD27) {
  for (const int64_t period : {0, -2}) {
    DefaultCheckpointerOptions options;
    options.period = period;
    EXPECT_THAT([&] { DefaultCheckpointer checkpointer(options); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.period: must be at least 1")));
  }
}

// Better: nothing is written and nobody is told that a training has ended.
TEST(PymarlinCases, NoEpochsWriteNothingRow56AndD7) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>();
  TrainerOptions run;
  run.epochs = 0;
  saving_trainer(module, folder.text(), run)->train();
  EXPECT_THAT(names_in(folder.path()), IsEmpty());
  EXPECT_THAT(module->log, IsEmpty());
}

// Better: the module is not asked for a state that nobody keeps.
TEST(PymarlinCases, WithTheSwitchOffTheModuleIsNotAskedRow57) {
  const TempFolder folder;
  DefaultCheckpointerOptions options = save_in(folder.text());
  options.checkpoint = false;
  auto module = std::make_shared<TinyModule>();
  TrainerOptions run;
  run.epochs = 2;
  run.train_batch_size = 4;
  Trainer(module, nullptr, default_checkpointer(options), run).train();
  EXPECT_THAT(names_in(folder.path()), IsEmpty());
  EXPECT_EQ(module->get_state_calls, 0);
}

TEST(PymarlinCases, WithoutAModelFolderOnlyStatesAreKeptRow58) {
  const TempFolder folder;
  DefaultCheckpointerOptions options = save_in(folder.text());
  options.model_state_save_dir = "";
  TrainerOptions run;
  run.train_batch_size = 4;
  Trainer(std::make_shared<TinyModule>(), nullptr, default_checkpointer(options), run).train();
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_0.pt"));
}

// The three parts with the entries that pymarlin has in them, and ours beside them; the model file is the bare state.
TEST(PymarlinCases, WhatTheFilesHoldRow81) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>(TinyOptions{.adamw = true});
  TrainerOptions run;
  run.epochs = 2;
  run.train_batch_size = 4;
  run.micro_batch_limit = 2;
  saving_trainer(module, folder.text(), run)->train();
  const StateDict root = read_archive(folder / "checkpoint_1.pt").root;
  EXPECT_EQ(root.size(), 3u);
  EXPECT_TRUE(equal(root.at("module_interface_state").as_dict(), module->get_state()));
  const StateDict& trainer = root.at("trainer_state").as_dict();
  EXPECT_EQ(trainer.at("last_epoch").as_int(), 1);
  EXPECT_THAT(trainer.at("optimizers").as_items(), SizeIs(1));
  EXPECT_TRUE(trainer.at("optimizers").as_items()[0].as_dict().contains("param_groups"));
  EXPECT_THAT(trainer.at("schedulers").as_items(), SizeIs(1));
  EXPECT_EQ(trainer.at("schedulers").as_items()[0].as_dict().at("last_epoch").as_int(), 4);
  const StateDict& backend = root.at("trainer_backend_state").as_dict();
  EXPECT_EQ(backend.at("global_step_completed").as_int(), 4);
  EXPECT_EQ(backend.at("batches_completed").as_int(), 8);
  EXPECT_TRUE(equal(read_archive(folder / "checkpoint_model_1.pt").root, module->get_state()));
}

// D6: a save that fails leaves the file of that name as it was, and a forced save does not write again what is there.
TEST(PymarlinCases, AFileIsNeverWrittenTwiceNorTornD6) {
  const TempFolder folder;
  DefaultCheckpointer checkpointer(save_in(folder.text()));
  checkpointer.save(state_of(1), 1);
  const std::string before = content_of(folder / "checkpoint_1.pt");
  Checkpoint unwritable = state_of(1);
  unwritable.trainer_state.set("bad", torch::zeros({1}, torch::kMeta));
  EXPECT_THROW(checkpointer.save(unwritable, 1, true), Error);
  EXPECT_EQ(content_of(folder / "checkpoint_1.pt"), before);

  auto recorded = std::make_shared<Recorded>();
  TrainerOptions run;
  run.epochs = 3;
  run.train_batch_size = 4;
  Trainer(std::make_shared<TinyModule>(), nullptr, testing::recording_checkpointer(recorded), run).train();
  EXPECT_THAT(recorded->indices(), ElementsAre(0, 1, 2));
}

}  // namespace
}  // namespace marlin
