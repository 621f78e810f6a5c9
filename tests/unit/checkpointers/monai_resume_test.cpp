// MONAI's CheckpointSaver, row by row: exceptions, failures, and states that are restored.
#include "monai_support.h"

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
using testing::Engine;
using testing::epoch_point;
using testing::expect_refused;
using testing::final_in;
using testing::forced;
using testing::in;
using testing::iteration_of;
using testing::kNan;
using testing::key_metric_in;
using testing::listed;
using testing::net_at;
using testing::one_at;

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
