// MONAI's CheckpointSaver, row by row: what is kept, and what is refused. The number at a name's end is the row of the case table; a comment
// says where this project does better. Rows that need a Trainer are in tests/unit/core/monai_trainer_test.cpp.
#include "monai_support.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::SizeIs;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::ThrowsError;
using testing::Engine;
using testing::epoch_point;
using testing::expect_refused;
using testing::final_in;
using testing::forced;
using testing::in;
using testing::interval_in;
using testing::iteration_of;
using testing::kNan;
using testing::key_metric_in;
using testing::listed;
using testing::net_at;
using testing::one_at;
using testing::two_at;

// ---- A. their tests of the saver

TEST(MonaiCases, TheFinalFileIsReplacedRow1) {
  const TempFolder folder;
  KeyMetricOptions options = final_in(folder);
  options.file_prefix = "test";
  KeyMetricCheckpointer saver(options);
  Engine engine{saver};
  engine.run(2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("test_checkpoint_final_iteration=16.pt"));
  engine.run(5);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("test_checkpoint_final_iteration=40.pt"));
  EXPECT_EQ(saver.final_checkpoint(), (folder / "test_checkpoint_final_iteration=40.pt").string());
  EXPECT_THAT(listed(saver.state(), "final"), ElementsAre(Pair(40.0, "test_checkpoint_final_iteration=40.pt")));
  EXPECT_TRUE(equal(read_archive(saver.final_checkpoint()).root, two_at(40)));
}

// Looked at again at the end of the run, the last epoch must not enter a second time, though as good as itself.
TEST(MonaiCases, TheTwoBestByTheKeyMetricStayRow2) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder, 2);
  options.file_prefix = "test";
  options.key_metric_greater_or_equal = true;
  KeyMetricCheckpointer saver(options);
  Engine engine{saver};
  engine.run(2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("test_checkpoint_key_metric=16.pt", "test_checkpoint_key_metric=8.pt"));
  engine.run(5);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("test_checkpoint_key_metric=32.pt", "test_checkpoint_key_metric=40.pt"));
  EXPECT_THAT(listed(saver.state(), "key_metric"), ElementsAre(Pair(32.0, "test_checkpoint_key_metric=32.pt"), Pair(40.0, "test_checkpoint_key_metric=40.pt")));
  EXPECT_EQ(saver.best_checkpoint(), (folder / "test_checkpoint_key_metric=40.pt").string());
  EXPECT_EQ(iteration_of(folder / "test_checkpoint_key_metric=32.pt"), 32);
}

TEST(MonaiCases, EverySecondEpochIsKeptRow3) {
  const TempFolder folder;
  KeyMetricOptions options = interval_in(folder, 2);
  options.file_prefix = "test";
  options.n_saved = 2;
  options.key_metric_greater_or_equal = true;  // without a key metric it says nothing
  KeyMetricCheckpointer saver(options);
  Engine engine{saver};
  engine.run(2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("test_checkpoint_epoch=2.pt"));
  engine.run(5);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("test_checkpoint_epoch=2.pt", "test_checkpoint_epoch=4.pt"));
  EXPECT_THAT(listed(saver.state(), "interval"), ElementsAre(Pair(2.0, "test_checkpoint_epoch=2.pt"), Pair(4.0, "test_checkpoint_epoch=4.pt")));
  EXPECT_EQ(saver.last_interval_checkpoint(), (folder / "test_checkpoint_epoch=4.pt").string());
}

TEST(MonaiCases, TheFinalFileMayHaveAFixedNameRow6) {
  const TempFolder folder;
  KeyMetricOptions options = final_in(folder);
  options.file_prefix = "test";
  options.final_filename = "final_model.pt";
  KeyMetricCheckpointer saver(options);
  Engine engine{saver};
  engine.run(2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("final_model.pt"));
  EXPECT_EQ(iteration_of(folder / "final_model.pt"), 16);
  engine.run(5);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("final_model.pt"));
  EXPECT_EQ(iteration_of(folder / "final_model.pt"), 40);
}

TEST(MonaiCases, TheBestMayHaveAFixedNameRow7) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder);
  options.file_prefix = "test";
  options.key_metric_filename = "model.pt";
  KeyMetricCheckpointer saver(options);
  Engine engine{saver};
  engine.run(2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("model.pt"));
  engine.run(5);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("model.pt"));
  EXPECT_EQ(iteration_of(folder / "model.pt"), 40);
}

TEST(MonaiCases, WithTheSignTurnedTheLowestStayAndTheListIsInTheFileRow10) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder, 2);
  options.key_metric_negative_sign = true;
  options.key_metric_save_state = true;
  KeyMetricCheckpointer saver(options);
  Engine{saver, 3, one_at}.run(3);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("net_key_metric=-3.pt", "net_key_metric=-6.pt"));
  EXPECT_THAT(listed(saver.state(), "key_metric"), ElementsAre(Pair(-6.0, "net_key_metric=-6.pt"), Pair(-3.0, "net_key_metric=-3.pt")));
  const StateDict root = read_archive(folder / "net_key_metric=-6.pt").root;
  EXPECT_TRUE(equal(root.at("net"), net_at(6)));
  EXPECT_TRUE(equal(root.at("checkpointer"), saver.state())) << "nothing entered after it";
  EXPECT_THAT(listed(root.at("checkpointer").as_dict(), "key_metric"), ElementsAre(Pair(-6.0, "net_key_metric=-6.pt"), Pair(-3.0, "net_key_metric=-3.pt")));
  EXPECT_EQ(saver.best_checkpoint(), (folder / "net_key_metric=-3.pt").string());
}

// Their row saves with one saver and restores another from the file.
TEST(MonaiCases, AnotherSaverTakesTheListOfAFileRow11) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder, 2);
  options.key_metric_negative_sign = true;
  options.key_metric_save_state = true;
  KeyMetricCheckpointer first(options);
  Engine{first, 3, one_at}.run(3);
  KeyMetricCheckpointer second(options);
  load_objects({{"checkpointer", state_target([&](const StateDict& state) { second.load_state(state); })}}, folder / "net_key_metric=-6.pt");
  EXPECT_TRUE(equal(second.state(), first.state()));
  second.save_objects(one_at(12), epoch_point(4, 12, 4.0));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("net_key_metric=-3.pt", "net_key_metric=-4.pt"));
}

// ---- C. errors and edges

TEST(MonaiCases, NoFolderIsRefusedRow19) {
  KeyMetricOptions options;
  options.save_final = true;
  options.save_dir = "";
  expect_refused(options, HasSubstr("save_dir"));
}

TEST(MonaiCases, NothingToSaveIsRefusedRow20) {
  const TempFolder folder;
  KeyMetricOptions options = final_in(folder);
  options.save_dict = {};
  expect_refused(options, HasSubstr("save_dict"));
  KeyMetricCheckpointer saver(final_in(folder));
  EXPECT_THAT([&] { saver.save_objects({}, forced(epoch_point(1, 8), Cause::kEnd)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("object")));
  EXPECT_THAT(names_in(folder.path()), IsEmpty());
}

TEST(MonaiCases, AFixedNameForSeveralIsRefusedRow21) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder, 2);
  options.key_metric_filename = "model.pt";
  expect_refused(options, AllOf(HasSubstr("key_metric_filename"), HasSubstr("key_metric_n_saved")));
}

// Better: at construction, not when the first epoch has been trained.
TEST(MonaiCases, AKeyMetricWithoutANameIsRefusedRow22) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder);
  options.key_metric_name = {};
  expect_refused(options, HasSubstr("key_metric_name"));
}

TEST(MonaiCases, ANegativeIntervalIsRefusedRow23) {
  const TempFolder folder;
  expect_refused(interval_in(folder, -1), HasSubstr("save_interval"));
  KeyMetricOptions options = final_in(folder);
  options.save_interval = 0;  // none
  KeyMetricCheckpointer saver(options);
  Engine{saver}.run(2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_final_iteration=16.pt"));
  EXPECT_FALSE(saver.state().contains("interval"));
  EXPECT_EQ(saver.last_interval_checkpoint(), "");
}

TEST(MonaiCases, ASaverWithNoPartOnIsRefusedRow23) {
  const TempFolder folder;
  expect_refused(in(folder), HasSubstr("save_final"));
}

TEST(MonaiCases, ListsOfNoneAreRefusedRow24) {
  const TempFolder folder;
  KeyMetricOptions interval = interval_in(folder, 1);
  interval.n_saved = 0;
  expect_refused(interval, HasSubstr("n_saved"));
  expect_refused(key_metric_in(folder, 0), HasSubstr("key_metric_n_saved"));
}

TEST(MonaiCases, AllThreePartsRow25) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder);
  options.file_prefix = "t";
  options.save_final = true;
  options.save_interval = 1;
  options.n_saved = 2;
  KeyMetricCheckpointer saver(options);
  Engine{saver, 4, two_at, [](int64_t iteration) { return static_cast<double>(iteration) / 100; }}.run(3);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("t_checkpoint_epoch=2.pt", "t_checkpoint_epoch=3.pt", "t_checkpoint_final_iteration=12.pt", "t_checkpoint_key_metric=0.1200.pt"));
  const StateDict state = saver.state();
  EXPECT_EQ(state.size(), 3u);
  EXPECT_THAT(listed(state, "final"), ElementsAre(Pair(12.0, "t_checkpoint_final_iteration=12.pt")));
  EXPECT_THAT(listed(state, "key_metric"), ElementsAre(Pair(0.12, "t_checkpoint_key_metric=0.1200.pt")));
  EXPECT_THAT(listed(state, "interval"), ElementsAre(Pair(2.0, "t_checkpoint_epoch=2.pt"), Pair(3.0, "t_checkpoint_epoch=3.pt")));
}

TEST(MonaiCases, OnlyWhatIsBetterEntersRow26) {
  const TempFolder folder;
  KeyMetricCheckpointer saver(key_metric_in(folder));
  std::vector<std::string> saves;
  saver.on_saved([&](const SavedCheckpoint& saved) { saves.push_back(saved.name); });
  saver.open({});
  const auto after = [&](int64_t epoch, double metric) {
    saver.save_objects(one_at(epoch), epoch_point(epoch, epoch, metric));
    return names_in(folder.path());
  };
  EXPECT_THAT(after(1, 0.5), ElementsAre("net_key_metric=0.5000.pt"));
  EXPECT_THAT(after(2, 0.4), ElementsAre("net_key_metric=0.5000.pt"));
  EXPECT_THAT(after(3, 0.9123456), ElementsAre("net_key_metric=0.9123.pt"));
  EXPECT_THAT(after(4, 0.9123456), ElementsAre("net_key_metric=0.9123.pt"));
  EXPECT_EQ(iteration_of(folder / "net_key_metric=0.9123.pt"), 3);
  EXPECT_THAT(saves, ElementsAre("net_key_metric=0.5000.pt", "net_key_metric=0.9123.pt"));
}

// Better: what is no number is passed over, as the warning says. Metrics are numbers here, so that NaN stands for it.
TEST(MonaiCases, WhatIsNoNumberIsNotSavedRow28) {
  const TempFolder folder;
  RecordingLogger logger;
  KeyMetricCheckpointer saver(key_metric_in(folder), HostContext{&logger});
  saver.open({});
  EXPECT_THAT(saver.save_objects(one_at(1), epoch_point(1, 1, kNan)), IsEmpty());
  EXPECT_THAT(names_in(folder.path()), IsEmpty());
  EXPECT_THAT(logger.warnings(), SizeIs(1));
  saver.save_objects(one_at(2), epoch_point(2, 2, 0.5));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("net_key_metric=0.5000.pt"));
}

// Better: what is no number cannot push out the best.
TEST(MonaiCases, WhatIsNoNumberDoesNotCostTheBestModelRow29) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder);
  options.key_metric_negative_sign = true;
  KeyMetricCheckpointer saver(options);
  saver.open({});
  const auto after = [&](int64_t epoch, double metric) {
    saver.save_objects(one_at(epoch), epoch_point(epoch, epoch, metric));
    return names_in(folder.path());
  };
  EXPECT_THAT(after(1, 5.0), ElementsAre("net_key_metric=-5.pt"));
  EXPECT_THAT(after(2, kNan), ElementsAre("net_key_metric=-5.pt"));
  EXPECT_THAT(after(3, 3.0), ElementsAre("net_key_metric=-3.pt"));
  EXPECT_THAT(after(4, 0.5), ElementsAre("net_key_metric=-0.5000.pt"));
}

// Better: NaN does not stay for ever.
TEST(MonaiCases, NanNeverEntersRow31) {
  const TempFolder folder;
  RecordingLogger logger;
  KeyMetricCheckpointer saver(key_metric_in(folder), HostContext{&logger});
  Engine{saver, 1, one_at, [](int64_t iteration) { return iteration == 1 ? kNan : 0.25 * static_cast<double>(iteration); }}.run(3);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("net_key_metric=0.7500.pt"));
  EXPECT_THAT(logger.warnings(), SizeIs(1));
}

TEST(MonaiCases, IterationsAreCountedOverEpochsRow32) {
  const TempFolder folder;
  KeyMetricOptions options = interval_in(folder, 3);
  options.epoch_level = false;
  KeyMetricCheckpointer saver(options);
  Engine engine{saver, 4, one_at};
  engine.save_steps = 3;
  engine.run(2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("net_iteration=3.pt", "net_iteration=6.pt"));
  EXPECT_THAT(listed(saver.state(), "interval"), ElementsAre(Pair(3.0, "net_iteration=3.pt"), Pair(6.0, "net_iteration=6.pt")));
}

TEST(MonaiCases, TheLastEpochIsNotForcedIntoTheIntervalRow33) {
  const TempFolder folder;
  KeyMetricCheckpointer saver(interval_in(folder, 2));
  Engine{saver, 1, one_at}.run(5);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("net_epoch=2.pt", "net_epoch=4.pt"));
}

// Better: the number is the trainer's, whoever asks.
TEST(MonaiCases, TheFinalNumberIsTheTrainersRow35) {
  const TempFolder folder;
  KeyMetricCheckpointer saver(final_in(folder));
  saver.open({});
  for (const int64_t iteration : {100, 200, 300}) {
    saver.save_objects(one_at(iteration), forced(epoch_point(iteration / 100, iteration), Cause::kEnd));
    EXPECT_THAT(names_in(folder.path()), ElementsAre("net_final_iteration=" + std::to_string(iteration) + ".pt"));
  }
}

}  // namespace
}  // namespace marlin
