#include "marlin/checkpointers/default_checkpointer.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "marlin/checkpointers/archive.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::content_of;
using testing::damage;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::ThrowsError;
using testing::write_file;
using From = LoadRequest::From;

Checkpoint state_at(int64_t epoch, int64_t global_step) {
  Checkpoint state;
  state.module_interface_state = {{"weight", torch::full({4, 3}, static_cast<double>(epoch))}};
  state.trainer_state = {{"last_epoch", epoch}};
  state.trainer_backend_state = {{"global_step_completed", global_step}, {"batches_completed", global_step}};
  return state;
}
Checkpoint state_at(int64_t epoch) { return state_at(epoch, (epoch + 1) * 10); }

SavePoint point_at(int64_t index, Unit unit = Unit::kEpoch, bool force = false) {
  SavePoint point;
  point.index = index;
  point.unit = unit;
  point.force = force;
  return point;
}

int64_t last_epoch(const Checkpoint& state) { return state.trainer_state.at("last_epoch").as_int(); }

class DefaultCheckpointerTest : public ::testing::Test {
 protected:
  DefaultCheckpointerTest() {
    options_.save_dir = (folder_ / "save").string();
    options_.load_dir = options_.save_dir;
  }
  [[nodiscard]] std::unique_ptr<DefaultCheckpointer> make() { return std::make_unique<DefaultCheckpointer>(options_, HostContext{&logger_}); }
  [[nodiscard]] std::vector<std::string> saved() const { return names_in(options_.save_dir); }
  [[nodiscard]] std::filesystem::path file(const std::string& name) const { return std::filesystem::path(options_.save_dir) / name; }
  void write(const std::string& name, const Checkpoint& state) { write_checkpoint(file(name), state, {}); }

  TempFolder folder_;
  RecordingLogger logger_;
  DefaultCheckpointerOptions options_;
};

// ---- saving

TEST_F(DefaultCheckpointerTest, DefaultsAreThoseOfTheDesign) {
  const DefaultCheckpointerOptions defaults;
  EXPECT_TRUE(defaults.checkpoint);
  EXPECT_EQ(defaults.period, 1);
  EXPECT_FALSE(defaults.delete_existing_checkpoints);
  EXPECT_EQ(defaults.save_dir, "checkpoints");
  EXPECT_EQ(defaults.model_state_save_dir, std::nullopt);
  EXPECT_EQ(defaults.load_dir, std::nullopt);
  EXPECT_EQ(defaults.load_filename, std::nullopt);
  EXPECT_EQ(defaults.file_prefix, "checkpoint");
  EXPECT_EQ(defaults.file_ext, "pt");
  EXPECT_EQ(defaults.log_level, "INFO");
  EXPECT_EQ(DefaultCheckpointer().name(), "default");
}

TEST_F(DefaultCheckpointerTest, SaysWhereItWroteAndReadsTheSameBack) {
  const auto checkpointer = make();
  EXPECT_THAT(checkpointer->save(state_at(3), 3), ElementsAre(file("checkpoint_3.pt").string()));
  EXPECT_THAT(saved(), ElementsAre("checkpoint_3.pt"));
  const Checkpoint read = checkpointer->load();
  EXPECT_EQ(read.source, file("checkpoint_3.pt").string());
  EXPECT_TRUE(equal(read.module_interface_state, state_at(3).module_interface_state));
  EXPECT_TRUE(equal(read.trainer_state, state_at(3).trainer_state));
  EXPECT_TRUE(equal(read.trainer_backend_state, state_at(3).trainer_backend_state));
}

TEST_F(DefaultCheckpointerTest, ModelFilesHoldTheBareStateAndKnowNoPeriod) {
  options_.period = 5;
  const auto checkpointer = make();
  EXPECT_FALSE(checkpointer->has_model(1));
  EXPECT_THAT(checkpointer->save_model(state_at(1).module_interface_state, 1), ElementsAre(file("checkpoint_model_1.pt").string()));
  EXPECT_TRUE(checkpointer->has_model(1));
  EXPECT_FALSE(checkpointer->has_model(2));
  EXPECT_TRUE(equal(read_archive(file("checkpoint_model_1.pt")).root, state_at(1).module_interface_state));
}

TEST_F(DefaultCheckpointerTest, ModelFilesGoToTheirOwnFolderOrNowhere) {
  options_.model_state_save_dir = (folder_ / "models").string();
  EXPECT_THAT(make()->save_model(state_at(1).module_interface_state, 1), SizeIs(1));
  EXPECT_THAT(saved(), IsEmpty());
  EXPECT_THAT(names_in(folder_ / "models"), ElementsAre("checkpoint_model_1.pt"));
  options_.model_state_save_dir = "";
  EXPECT_THAT(make()->save_model(state_at(1).module_interface_state, 1), IsEmpty());
  EXPECT_TRUE(make()->has_model(1)) << "nothing is missing where none is wanted";
}

TEST_F(DefaultCheckpointerTest, IsDueByPeriodOrForceAndNeverWithTheSwitchOff) {
  options_.period = 3;
  const auto checkpointer = make();
  std::vector<int64_t> due;
  for (int64_t index = 0; index < 8; ++index) {
    if (checkpointer->due(point_at(index))) due.push_back(index);
  }
  EXPECT_THAT(due, ElementsAre(0, 3, 6));
  EXPECT_TRUE(checkpointer->due(point_at(4, Unit::kEpoch, true)));
  EXPECT_FALSE(checkpointer->due(point_at(3, Unit::kStep))) << "the period counts epochs";
  options_.checkpoint = false;
  EXPECT_FALSE(make()->due(point_at(3, Unit::kEpoch, true)));
  EXPECT_THAT(make()->save(state_at(3), point_at(3, Unit::kEpoch, true)), IsEmpty());
  EXPECT_THAT(make()->save_model(state_at(3).module_interface_state, 3), IsEmpty());
  EXPECT_FALSE(std::filesystem::exists(options_.save_dir)) << "not even the folder";
}

TEST_F(DefaultCheckpointerTest, TheTrainersCallDoesNotAskAgainWhetherItIsDue) {
  options_.period = 2;
  EXPECT_THAT(make()->save(state_at(1), point_at(1)), SizeIs(1));
  EXPECT_THAT(make()->save(state_at(1), 1), IsEmpty()) << "pymarlin's call asks";
}

TEST_F(DefaultCheckpointerTest, RefusesOptionsOutOfRangeNamingThem) {
  const auto with = [&](auto change) {
    return [this, change] {
      DefaultCheckpointerOptions options = options_;
      change(options);
      DefaultCheckpointer checkpointer(options);
    };
  };
  EXPECT_THAT(with([](auto& o) { o.period = 0; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.period")));
  EXPECT_THAT(with([](auto& o) { o.save_dir = ""; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.save_dir")));
  EXPECT_THAT(with([](auto& o) { o.log_level = "LOUD"; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.log_level")));
  EXPECT_THAT(with([](auto& o) { o.file_prefix = "x_model"; }), ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.file_prefix")));
  EXPECT_THAT([&] { make()->save(state_at(0), -1); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("index must be at least 0")));
  EXPECT_THAT([&] { make()->save_model({}, -1); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("index must be at least 0")));
}

TEST_F(DefaultCheckpointerTest, AFailedSaveLeavesWhatWasThere) {
  const auto checkpointer = make();
  checkpointer->save(state_at(1), 1);
  const std::string before = content_of(file("checkpoint_1.pt"));
  Checkpoint unwritable = state_at(1);
  unwritable.module_interface_state.set("bad", torch::zeros({2}, torch::kMeta));
  EXPECT_THAT([&] { checkpointer->save(unwritable, 1); }, ThrowsError(Errc::kUnsupported, HasSubstr("bad")));
  EXPECT_EQ(content_of(file("checkpoint_1.pt")), before);
  EXPECT_THAT(saved(), ElementsAre("checkpoint_1.pt")) << "and no temporary file";
}

TEST_F(DefaultCheckpointerTest, AFolderThatCannotBeWrittenIsFoundOutAtTheStart) {
  write_file(folder_ / "file", "x");
  for (const char* below : {"file", "file/below", "file/below/more"}) {
    options_.save_dir = (folder_ / below).string();
    EXPECT_THAT([&] { make()->open({}); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("checkpointer.save_dir"), HasSubstr("/file' is not a folder"))));
    EXPECT_THAT([&] { make()->save(state_at(0), 0); }, ThrowsError(Errc::kIo, HasSubstr((folder_ / "file").string())));
  }
  options_.save_dir = (folder_ / "save").string();
  options_.model_state_save_dir = (folder_ / "file").string();
  EXPECT_THAT([&] { make()->open({}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.model_state_save_dir")));
  options_.save_dir = (folder_ / "not made").string();
  options_.checkpoint = false;
  EXPECT_NO_THROW(make()->open({})) << "nothing will be written";
  EXPECT_FALSE(std::filesystem::exists(options_.save_dir));
}

TEST_F(DefaultCheckpointerTest, OpeningMakesTheFolderAndLeavesNothingInIt) {
  make()->open({});
  EXPECT_TRUE(std::filesystem::is_directory(options_.save_dir));
  EXPECT_THAT(saved(), IsEmpty());
}

// Even for root nothing can be made there.
TEST_F(DefaultCheckpointerTest, WhatTheSystemRefusesIsTold) {
  options_.save_dir = "/proc/self/marlin";
  EXPECT_THAT([&] { make()->open({}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("cannot write to '/proc/self/marlin'")));
  EXPECT_THAT([&] { make()->save(state_at(0), 0); }, ThrowsError(Errc::kIo, HasSubstr("cannot make folder /proc/self/marlin: ")));
  options_.save_dir = "/proc/self";
  EXPECT_THAT([&] { make()->open({}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("cannot write to '/proc/self'")));
  EXPECT_THAT([&] { make()->save(state_at(0), 0); }, ThrowsError(Errc::kIo, HasSubstr("cannot write /proc/self/")));
}

// ---- which one is loaded

TEST_F(DefaultCheckpointerTest, NewestIsTheHighestNumberOfAWholeNameInThatFolderAlone) {
  options_.save_dir = (folder_ / "run_2099").string();
  options_.load_dir = options_.save_dir;
  write("checkpoint_9.pt", state_at(9));
  write("checkpoint_10.pt", state_at(10));
  // Each of these would beat it in a search of names by their digits.
  write("checkpoint_model_99.pt", state_at(99));
  write("checkpointing_98.pt", state_at(98));
  write("checkpoint_best_97.pt", state_at(97));
  write("checkpoint_96.tmp.pt", state_at(96));
  write(".checkpoint_95.pt.host.1.2.tmp", state_at(95));
  write("checkpoint_94.opt", state_at(94));
  write("checkpoint_93.pt2", state_at(93));
  write("old/checkpoint_92.pt", state_at(92));
  write("checkpoint_best.pt", state_at(91));
  write("checkpoint_suspect_5000.pt", state_at(90));
  write("checkpoint_010.pt", state_at(89));
  write("checkpoint_-88.pt", state_at(88));
  std::filesystem::create_directory(file("checkpoint_87.pt"));
  EXPECT_EQ(last_epoch(make()->load()), 10);
  EXPECT_THAT(logger_.warnings(), IsEmpty());
}

TEST_F(DefaultCheckpointerTest, OfEpochAndStepFilesTheHigherGlobalStepOfTheStateCounts) {
  write("checkpoint_3.pt", state_at(3, 40));
  write("checkpoint_step_47.pt", state_at(3, 47));
  EXPECT_EQ(make()->load().source, file("checkpoint_step_47.pt").string());
  write("checkpoint_4.pt", state_at(4, 50));
  EXPECT_EQ(make()->load().source, file("checkpoint_4.pt").string());
  write("checkpoint_step_1000.pt", state_at(4, 49));
  EXPECT_EQ(make()->load().source, file("checkpoint_4.pt").string()) << "the state says, not the name";
  write("checkpoint_step_1001.pt", state_at(4, 50));
  EXPECT_EQ(make()->load().source, file("checkpoint_4.pt").string()) << "on a tie the epoch file";
}

TEST_F(DefaultCheckpointerTest, SavesAtStepsUnderTheStepsName) {
  EXPECT_THAT(make()->save(state_at(0, 7), point_at(7, Unit::kStep, true)), ElementsAre(file("checkpoint_step_7.pt").string()));
  EXPECT_EQ(make()->load().source, file("checkpoint_step_7.pt").string());
}

TEST_F(DefaultCheckpointerTest, ABrokenNewestIsPassedOverWithOneWarningAndLeftInPlace) {
  for (int64_t epoch = 0; epoch < 4; ++epoch) write("checkpoint_" + std::to_string(epoch) + ".pt", state_at(epoch));
  damage(file("checkpoint_3.pt"));
  write_file(file("checkpoint_2.pt"), "");
  const std::string broken = content_of(file("checkpoint_3.pt"));
  EXPECT_EQ(last_epoch(make()->load()), 1);
  ASSERT_THAT(logger_.warnings(), SizeIs(1));
  EXPECT_THAT(logger_.warnings()[0], HasSubstr("checkpoint_3.pt"));
  EXPECT_EQ(content_of(file("checkpoint_3.pt")), broken);
  options_.log_level = "ERROR";
  EXPECT_EQ(last_epoch(make()->load()), 1);
  EXPECT_THAT(logger_.warnings(), SizeIs(1)) << "log_level holds";
}

TEST_F(DefaultCheckpointerTest, ABrokenStepFileGivesWayToAnEpochFile) {
  write("checkpoint_1.pt", state_at(1, 20));
  write("checkpoint_step_27.pt", state_at(1, 27));
  damage(file("checkpoint_step_27.pt"));
  EXPECT_EQ(make()->load().source, file("checkpoint_1.pt").string());
  ASSERT_THAT(logger_.warnings(), SizeIs(1));
  EXPECT_THAT(logger_.warnings()[0], HasSubstr("checkpoint_step_27.pt"));
}

TEST_F(DefaultCheckpointerTest, SomeButNoneWholeIsAnErrorNotAFreshStart) {
  write("checkpoint_0.pt", state_at(0));
  write("checkpoint_1.pt", state_at(1));
  damage(file("checkpoint_0.pt"));
  damage(file("checkpoint_1.pt"));
  EXPECT_THAT([&] { (void)make()->load(); }, ThrowsError(Errc::kCorrupt, HasSubstr("checkpoint_1.pt")));
  EXPECT_THAT([&] { (void)make()->load({From::kAnywhere}); }, ThrowsError(Errc::kCorrupt, HasSubstr("checkpoint_1.pt")));
}

TEST_F(DefaultCheckpointerTest, ANamedFileThatIsMissingBrokenOrAModelIsAnError) {
  options_.load_filename = "checkpoint_7.pt";
  EXPECT_THAT([&] { (void)make()->load(); }, ThrowsError(Errc::kNotFound, HasSubstr("checkpoint_7.pt")));
  write("checkpoint_6.pt", state_at(6));
  write("checkpoint_7.pt", state_at(7));
  damage(file("checkpoint_7.pt"));
  EXPECT_THAT([&] { (void)make()->load(); }, ThrowsError(Errc::kCorrupt, HasSubstr("checkpoint_7.pt"))) << "nothing else is taken instead";
  write_model(file("checkpoint_model_6.pt"), state_at(6).module_interface_state, 6);
  options_.load_filename = "checkpoint_model_6.pt";
  EXPECT_THAT([&] { (void)make()->load(); }, ThrowsError(Errc::kMismatch, HasSubstr("--init_from")));
}

TEST_F(DefaultCheckpointerTest, ANameWithoutAFolderIsInSaveDir) {
  options_.load_dir.reset();
  options_.load_filename = "any name at all";
  write("any name at all", state_at(5));
  EXPECT_TRUE(make()->wants_load());
  EXPECT_EQ(last_epoch(make()->load()), 5);
}

TEST_F(DefaultCheckpointerTest, LooksWhereTheRequestSays) {
  options_.load_dir = (folder_ / "load").string();
  write("checkpoint_9.pt", state_at(9));
  EXPECT_TRUE(make()->load({From::kLoadDir}).empty()) << "not in save_dir";
  EXPECT_EQ(last_epoch(make()->load({From::kAnywhere})), 9) << "none in load_dir, so save_dir";
  write_checkpoint(folder_ / "load" / "checkpoint_2.pt", state_at(2), {});
  EXPECT_EQ(last_epoch(make()->load({From::kAnywhere})), 2) << "load_dir first";
  EXPECT_EQ(last_epoch(make()->load({From::kPath, file("checkpoint_9.pt").string()})), 9) << "a file";
  EXPECT_EQ(last_epoch(make()->load({From::kPath, options_.save_dir})), 9) << "a folder: its newest";
}

TEST_F(DefaultCheckpointerTest, NoneFoundIsEmptyUnlessItIsRequired) {
  for (const auto& load_dir : {std::optional<std::string>(), std::optional<std::string>(""), std::optional<std::string>("no such folder")}) {
    options_.load_dir = load_dir;
    for (const From from : {From::kLoadDir, From::kAnywhere}) {
      EXPECT_TRUE(make()->load({from}).empty());
      EXPECT_THAT([&] { (void)make()->load({from, "", true}); }, ThrowsError(Errc::kNotFound, HasSubstr("checkpoint_0.pt")));
    }
  }
  EXPECT_THAT([&] { (void)make()->load({From::kAnywhere, "", true}); }, ThrowsError(Errc::kNotFound, AllOf(HasSubstr(options_.save_dir), HasSubstr("no such folder"))));
  EXPECT_THAT([&] { (void)make()->load({From::kPath, folder_.text(), true}); }, ThrowsError(Errc::kNotFound, HasSubstr(folder_.text())));
  EXPECT_THAT([&] { (void)make()->load({From::kPath, (folder_ / "none/x.pt").string()}); }, ThrowsError(Errc::kNotFound, HasSubstr("none/x.pt")));
}

TEST_F(DefaultCheckpointerTest, LoadingIsNotHeldBackByTheMasterSwitch) {
  write("checkpoint_1.pt", state_at(1));
  options_.checkpoint = false;
  EXPECT_EQ(last_epoch(make()->load()), 1);
}

TEST_F(DefaultCheckpointerTest, WantsToLoadWhenToldWhat) {
  EXPECT_TRUE(make()->wants_load());
  options_.load_dir = "";
  EXPECT_FALSE(make()->wants_load());
  options_.load_dir.reset();
  EXPECT_FALSE(make()->wants_load());
}

}  // namespace
}  // namespace marlin
