// MONAI's CheckpointSaver, row by row. The number at a name's end is the row of the case table; a comment says where this project does
// better. Their engine is a loop of save points here; rows that need a Trainer are in tests/unit/core/monai_trainer_test.cpp.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <torch/torch.h>

#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "faulty_file_system.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/key_metric_checkpointer.h"
#include "marlin/checkpointers/load_objects.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;
using ::testing::SizeIs;
using ::testing::StartsWith;
using testing::FaultyFileSystem;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::ThrowsError;
using testing::Unsynced;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

KeyMetricOptions in(const TempFolder& folder) {
  KeyMetricOptions options;
  options.save_dir = folder.text();
  return options;
}
KeyMetricOptions final_in(const TempFolder& folder) {
  KeyMetricOptions options = in(folder);
  options.save_final = true;
  return options;
}
KeyMetricOptions key_metric_in(const TempFolder& folder, int64_t n_saved = 1) {
  KeyMetricOptions options = in(folder);
  options.save_key_metric = true;
  options.key_metric_name = "val_loss";
  options.key_metric_n_saved = n_saved;
  return options;
}
KeyMetricOptions interval_in(const TempFolder& folder, int64_t every) {
  KeyMetricOptions options = in(folder);
  options.save_interval = every;
  return options;
}

// States that say at which iteration they were made.
StateDict net_at(int64_t iteration) { return {{"weight", torch::full({1}, static_cast<double>(iteration))}}; }
StateDict one_at(int64_t iteration) { return {{"net", net_at(iteration)}}; }
StateDict two_at(int64_t iteration) { return {{"net", net_at(iteration)}, {"opt", StateDict{{"lr", 0.02}, {"step", iteration}}}}; }

int64_t iteration_of(const std::filesystem::path& file) {
  return static_cast<int64_t>(read_archive(file).root.at("net").as_dict().at("weight").as_tensor().item<double>());
}

SavePoint epoch_point(int64_t epoch, int64_t iteration, std::optional<double> val_loss = {}) {
  SavePoint point;
  point.index = point.epoch = epoch - 1;
  point.global_step = iteration;
  if (val_loss) point.metrics.set("val_loss", *val_loss);
  return point;
}
SavePoint forced(SavePoint point, Cause cause) {
  point.cause = cause;
  point.force = true;
  return point;
}

// An engine over `items` items: the metric is a function of the iteration, and by default the iteration. run() goes on where it was.
struct Engine {
  KeyMetricCheckpointer& saver;
  int64_t items = 8;
  StateDict (*objects)(int64_t iteration) = two_at;
  std::function<double(int64_t)> metric = [](int64_t at) { return static_cast<double>(at); };
  int64_t save_steps = 0;  // a host gives the points of steps that are due
  int64_t epoch = 0, iteration = 0;

  void run(int64_t max_epochs) {
    if (iteration == 0) saver.open({});
    while (epoch < max_epochs) {
      for (int64_t item = 0; item < items; ++item) {
        ++iteration;
        if (save_steps == 0 || iteration % save_steps != 0) continue;
        SavePoint point = epoch_point(epoch + 1, iteration, metric(iteration));
        point.unit = Unit::kStep;
        point.index = iteration;
        saver.save_objects(objects(iteration), point);
      }
      ++epoch;
      saver.save_objects(objects(iteration), epoch_point(epoch, iteration, metric(iteration)));
    }
    saver.save_objects(objects(iteration), forced(epoch_point(epoch, iteration, metric(iteration)), Cause::kEnd));
  }
};

using Listed = std::vector<std::pair<double, std::string>>;

Listed listed(const StateDict& state, const std::string& part) {
  Listed result;
  for (const Value& entry : state.at(part).as_dict().at("_saved").as_items()) {
    const std::vector<Value>& pair = entry.as_items();
    EXPECT_THAT(pair, SizeIs(2));
    result.emplace_back(pair.at(0).as_double(), pair.at(1).as_string());
  }
  return result;
}

void expect_refused(const KeyMetricOptions& options, const ::testing::Matcher<std::string>& text) {
  EXPECT_THAT([&] { KeyMetricCheckpointer checkpointer(options); }, ThrowsError(Errc::kInvalidArgument, text));
}

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

// ---- D. exceptions and resume

TEST(MonaiCases, AfterAnExceptionTheStateIsKeptAndNothingIsRemovedRow43) {
  const TempFolder folder;
  KeyMetricOptions options = final_in(folder);
  options.save_interval = 1;
  KeyMetricCheckpointer saver(options);
  Engine{saver, 2, one_at}.run(1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("net_epoch=1.pt", "net_final_iteration=2.pt"));
  int saves = 0;
  saver.on_saved([&](const SavedCheckpoint&) { ++saves; });
  SavePoint point = forced(epoch_point(2, 3), Cause::kException);
  point.unit = Unit::kStep;
  point.index = 3;
  saver.save_objects(one_at(3), point);
  EXPECT_EQ(saves, 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("net_epoch=1.pt", "net_final_iteration=2.pt", "net_final_iteration=3.pt"));
  EXPECT_EQ(read_archive(folder / "net_final_iteration=3.pt").record->cause, "exception");
  EXPECT_EQ(read_archive(folder / "net_final_iteration=2.pt").record->cause, "end");
}

TEST(MonaiCases, AStopKeepsTheFinalStateRow44) {
  const TempFolder folder;
  KeyMetricCheckpointer saver(final_in(folder));
  saver.open({});
  SavePoint point = forced(epoch_point(2, 3), Cause::kStop);
  point.unit = Unit::kStep;
  point.index = 3;
  EXPECT_THAT(saver.save_objects(one_at(3), point), ElementsAre((folder / "net_final_iteration=3.pt").string()));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("net_final_iteration=3.pt"));
}

// Better: a save that fails costs nothing, for the new file is there before the old one goes.
TEST(MonaiCases, AFailedSaveLeavesTheEarlierFinalFileRow45) {
  const TempFolder folder;
  KeyMetricCheckpointer saver(final_in(folder));
  saver.save_objects(one_at(2), forced(epoch_point(1, 2), Cause::kEnd));
  const StateDict unwritable = {{"net", StateDict{{"weight", at::Tensor()}}}};
  EXPECT_THROW(saver.save_objects(unwritable, forced(epoch_point(2, 4), Cause::kEnd)), Error);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("net_final_iteration=2.pt"));
  EXPECT_THAT(listed(saver.state(), "final"), ElementsAre(Pair(2.0, "net_final_iteration=2.pt")));
  EXPECT_EQ(iteration_of(saver.final_checkpoint()), 2);
}

TEST(MonaiCases, AStateWithoutAPartIsAWarningRow47) {
  const TempFolder folder;
  RecordingLogger logger;
  KeyMetricOptions options = key_metric_in(folder);
  options.save_final = true;
  KeyMetricCheckpointer saver(options, HostContext{&logger});
  Engine{saver}.run(2);
  const StateDict before = saver.state();
  StateDict state = saver.state();
  state.erase("key_metric");
  saver.load_state(state);
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("key_metric")));
  EXPECT_TRUE(equal(saver.state(), before)) << "that part keeps its list";
}

// Better: all three lists come back, not only the key metric's.
TEST(MonaiCases, TheStateHasAllThreeListsRow48) {
  const TempFolder folder;
  RecordingLogger logger;
  KeyMetricOptions options = key_metric_in(folder, 2);
  options.save_final = true;
  options.save_interval = 1;
  options.n_saved = 2;
  KeyMetricCheckpointer first(options);
  Engine{first, 4}.run(3);
  KeyMetricCheckpointer second(options, HostContext{&logger});
  second.load_state(first.state());
  EXPECT_THAT(logger.warnings(), IsEmpty());
  EXPECT_TRUE(equal(second.state(), first.state()));
  EXPECT_EQ(second.final_checkpoint(), first.final_checkpoint());
  EXPECT_EQ(second.best_checkpoint(), first.best_checkpoint());
  EXPECT_EQ(second.last_interval_checkpoint(), first.last_interval_checkpoint());

  // And all three go on.
  Engine engine{second, 4};
  engine.epoch = 3;
  engine.iteration = 12;
  engine.run(4);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("checkpoint_epoch=3.pt", "checkpoint_epoch=4.pt", "checkpoint_final_iteration=16.pt", "checkpoint_key_metric=12.pt", "checkpoint_key_metric=16.pt"));
}

TEST(MonaiCases, AWrongStateChangesNothingRow48) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder, 2);
  KeyMetricCheckpointer saver(options);
  Engine{saver}.run(2);
  const StateDict before = saver.state();
  for (const Value& wrong : {Value(List{}), Value(StateDict{}), Value(StateDict{{"_saved", 1}}), Value(StateDict{{"_saved", List{{Tuple{{1.0, "a", "b"}}}}}})}) {
    EXPECT_THAT([&] { saver.load_state({{"key_metric", wrong}}); }, ThrowsError(Errc::kInvalidArgument, ::testing::_));
  }
  EXPECT_TRUE(equal(saver.state(), before));
}

// Better: the list holds the name that the file has.
TEST(MonaiCases, AListHoldsFixedNamesAsTheyAreRow49) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder);
  options.key_metric_filename = "best.pt";
  options.key_metric_save_state = true;
  KeyMetricCheckpointer saver(options);
  Engine{saver, 2, one_at}.run(2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("best.pt"));
  EXPECT_EQ(iteration_of(folder / "best.pt"), 4);
  EXPECT_THAT(listed(read_archive(folder / "best.pt").root.at("checkpointer").as_dict(), "key_metric"), ElementsAre(Pair(4.0, "best.pt")));
  EXPECT_THAT(listed(saver.state(), "key_metric"), ElementsAre(Pair(4.0, "best.pt")));
  EXPECT_EQ(saver.best_checkpoint(), (folder / "best.pt").string());
}

// Better: power may be cut at any moment of the exchange, and a best model is there.
TEST(MonaiCases, AFixedNameIsReplacedInOneStepRow50) {
  for (const Unsynced unsynced : {Unsynced::kLost, Unsynced::kNamesStay, Unsynced::kHalfStays}) {
    bool cut = true;
    for (int64_t call = 0; cut; ++call) {
      SCOPED_TRACE(call);
      ASSERT_LT(call, 200);
      const TempFolder folder;
      FaultyFileSystem file_system;
      KeyMetricOptions options = key_metric_in(folder);
      options.key_metric_filename = "model.pt";
      HostContext host;
      host.file_system = &file_system;
      KeyMetricCheckpointer saver(options, host);
      saver.save_objects(one_at(2), epoch_point(1, 2, 2.0));
      const int64_t calls = static_cast<int64_t>(file_system.log().size());
      file_system.cut_power_at(call);
      cut = false;
      try {
        saver.save_objects(one_at(4), epoch_point(2, 4, 4.0));
        cut = static_cast<int64_t>(file_system.log().size()) > calls + call;  // a failure that it may pass over
      } catch (const Error&) {
        cut = true;
      }
      file_system.crash(unsynced);
      ASSERT_THAT(names_in(folder.path()), Contains("model.pt"));
      EXPECT_THAT(iteration_of(folder / "model.pt"), ::testing::AnyOf(2, 4));
      if (!cut) {
        EXPECT_EQ(iteration_of(folder / "model.pt"), 4);
        EXPECT_THAT(names_in(folder.path()), ElementsAre("model.pt"));
      }
    }
  }
}

// Better: two parts cannot delete each other's file.
TEST(MonaiCases, OneFixedNameForTwoPartsIsRefusedRow51) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder);
  options.save_final = true;
  options.key_metric_filename = options.final_filename = "model.pt";
  expect_refused(options, AllOf(HasSubstr("final_filename"), HasSubstr("key_metric_filename")));
}

TEST(MonaiCases, FixedNamesWithSeparatorsAreRefusedRow51) {
  const TempFolder folder;
  KeyMetricOptions options = final_in(folder);
  options.final_filename = "a/b.pt";
  expect_refused(options, HasSubstr("final_filename"));
  options = key_metric_in(folder);
  options.key_metric_filename = "../b.pt";
  expect_refused(options, HasSubstr("key_metric_filename"));
  options = final_in(folder);
  options.file_prefix = "a/b";
  expect_refused(options, HasSubstr("file_prefix"));
}

// Better: the list stands beside the only object, not in it.
TEST(MonaiCases, TheStateOfASingleObjectStaysAsItIsRow52) {
  const TempFolder folder;
  KeyMetricOptions options = key_metric_in(folder);
  options.key_metric_save_state = true;
  KeyMetricCheckpointer saver(options);
  Engine{saver, 8, one_at}.run(1);
  const StateDict root = read_archive(folder / "net_key_metric=8.pt").root;
  EXPECT_EQ(root.size(), 2u);
  EXPECT_TRUE(equal(root.at("net"), net_at(8)));
  EXPECT_TRUE(root.contains("checkpointer"));
  const StateDict live = net_at(0);
  EXPECT_THAT(load_objects({{"net", tensors_target(live)}}, folder / "net_key_metric=8.pt"), IsEmpty());
  EXPECT_TRUE(equal(live, net_at(8)));
  EXPECT_THAT([&] { saver.save_objects({{"checkpointer", net_at(9)}}, epoch_point(2, 9, 9.0)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer")));
}

class Umask {
 public:
  explicit Umask(mode_t mask) : before_(::umask(mask)) {}
  ~Umask() { ::umask(before_); }
  Umask(const Umask&) = delete;
  Umask& operator=(const Umask&) = delete;

 private:
  mode_t before_;
};

TEST(MonaiCases, TheUmaskDecidesOnPermissionsRow53) {
  for (const auto& [mask, mode] : {std::pair<mode_t, mode_t>{022, 0644}, {027, 0640}, {077, 0600}}) {
    const TempFolder folder;
    const Umask umask(mask);
    KeyMetricCheckpointer saver(final_in(folder));
    Engine{saver}.run(1);
    struct stat status = {};
    ASSERT_EQ(::stat((folder / "checkpoint_final_iteration=8.pt").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777u, mode);
  }
}

// Better: those of the key metric, too.
TEST(MonaiCases, EverySaveIsLoggedRow54) {
  const TempFolder folder;
  RecordingLogger logger;
  KeyMetricOptions options = key_metric_in(folder);
  options.save_final = true;
  options.save_interval = 1;
  KeyMetricCheckpointer saver(options, HostContext{&logger});
  Engine{saver}.run(1);
  const auto lines = logger.lines(LogLevel::kInfo);
  for (const char* name : {"checkpoint_key_metric=8.pt", "checkpoint_final_iteration=8.pt", "checkpoint_epoch=1.pt"}) EXPECT_THAT(lines, Contains(HasSubstr(name)));
}

TEST(MonaiCases, ItsNameStandsBeforeItsLinesRow55) {
  const TempFolder folder;
  RecordingLogger logger;
  KeyMetricOptions options = key_metric_in(folder);
  options.name = "saver";
  KeyMetricCheckpointer saver(options, HostContext{&logger});
  saver.open({});
  saver.save_objects(one_at(1), epoch_point(1, 1, kNan));
  saver.save_objects(one_at(2), epoch_point(2, 2, 0.5));
  EXPECT_THAT(logger.warnings(), AllOf(SizeIs(1), Each(StartsWith("saver"))));
  EXPECT_THAT(logger.lines(LogLevel::kInfo), AllOf(Not(IsEmpty()), Each(StartsWith("saver"))));
}

}  // namespace
}  // namespace marlin
