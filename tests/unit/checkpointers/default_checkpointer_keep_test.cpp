// keep_last: what goes after a save, and what never does.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>

#include "faulty_file_system.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;
using testing::damage;
using testing::FaultyFileSystem;
using testing::FsOp;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::ThrowsError;
using testing::write_file;

Checkpoint state_at(int64_t index) {
  return {{{"weight", torch::full({50}, static_cast<double>(index))}}, {{"last_epoch", index}}, {{"global_step_completed", index}}, {}};
}

class KeepLastTest : public ::testing::Test {
 protected:
  KeepLastTest() {
    options_.save_dir = folder_.text();
    options_.load_dir = options_.save_dir;
    options_.keep_last = 2;
  }
  void save(int64_t index, Unit unit = Unit::kEpoch) {
    DefaultCheckpointer checkpointer(options_, HostContext{.logger = &logger_, .file_system = &fs_});
    SavePoint point;
    point.index = index;
    point.unit = unit;
    checkpointer.save(state_at(index), point);
  }
  void save_model(int64_t index) { DefaultCheckpointer(options_, HostContext{.logger = &logger_, .file_system = &fs_}).save_model(state_at(index).module_interface_state, index); }
  [[nodiscard]] std::vector<std::string> names() const { return names_in(folder_.path()); }

  TempFolder folder_;
  FaultyFileSystem fs_;
  RecordingLogger logger_;
  DefaultCheckpointerOptions options_;
};

TEST_F(KeepLastTest, ByDefaultAllStay) {
  EXPECT_EQ(DefaultCheckpointerOptions{}.keep_last, 0);
  options_.keep_last = 0;
  for (int64_t epoch = 0; epoch < 6; ++epoch) save(epoch);
  EXPECT_EQ(names().size(), 6U);
}

TEST_F(KeepLastTest, OneAndLessAreRefused) {
  options_.keep_last = 1;
  EXPECT_THAT([&] { save(0); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.keep_last: 1 is refused")));
  options_.keep_last = -1;
  EXPECT_THAT([&] { save(0); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.keep_last")));
}

TEST_F(KeepLastTest, TheNewestStayByNumber) {
  for (const int64_t epoch : {8, 9, 10, 11}) save(epoch);
  EXPECT_THAT(names(), UnorderedElementsAre("checkpoint_10.pt", "checkpoint_11.pt"));
  EXPECT_THAT(logger_.warnings(), IsEmpty());
}

TEST_F(KeepLastTest, EpochsAndStepsAreCountedApart) {
  for (const int64_t epoch : {1, 2, 3}) save(epoch);
  for (const int64_t step : {100, 200, 300}) save(step, Unit::kStep);
  EXPECT_THAT(names(), UnorderedElementsAre("checkpoint_2.pt", "checkpoint_3.pt", "checkpoint_step_200.pt", "checkpoint_step_300.pt"));
  save(4);
  EXPECT_THAT(names(), UnorderedElementsAre("checkpoint_3.pt", "checkpoint_4.pt", "checkpoint_step_200.pt", "checkpoint_step_300.pt"));
}

TEST_F(KeepLastTest, ModelsSuspectsAndForeignFilesStay) {
  write_file(folder_ / "checkpoint_suspect_1.pt", "x");
  write_file(folder_ / "checkpoint_best_1.pt", "x");
  write_file(folder_ / "other_1.pt", "x");
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    save(epoch);
    save_model(epoch);
  }
  EXPECT_THAT(names(), UnorderedElementsAre("checkpoint_2.pt", "checkpoint_3.pt", "checkpoint_model_0.pt", "checkpoint_model_1.pt", "checkpoint_model_2.pt",
                                            "checkpoint_model_3.pt", "checkpoint_suspect_1.pt", "checkpoint_best_1.pt", "other_1.pt"));
}

TEST_F(KeepLastTest, WhatWasJustWrittenStaysBesideHigherNumbers) {
  for (const int64_t epoch : {7, 8, 9}) save(epoch);
  save(3);  // a run that went on from an older one
  EXPECT_THAT(names(), UnorderedElementsAre("checkpoint_3.pt", "checkpoint_9.pt"));
  save(4);
  EXPECT_THAT(names(), UnorderedElementsAre("checkpoint_4.pt", "checkpoint_9.pt"));
}

TEST_F(KeepLastTest, FilesThatCannotBeOpenedDoNotCountAndStayWhileTheyAreNew) {
  for (const int64_t epoch : {1, 2}) save(epoch);
  write_file(folder_ / "checkpoint_3.pt", "torn by somebody else");
  save(4);
  EXPECT_THAT(names(), UnorderedElementsAre("checkpoint_2.pt", "checkpoint_3.pt", "checkpoint_4.pt")) << "two whole ones, and the torn one between";
  save(5);
  EXPECT_THAT(names(), UnorderedElementsAre("checkpoint_4.pt", "checkpoint_5.pt"));
}

TEST_F(KeepLastTest, NothingGoesBeforeTheNewOneIsDurable) {
  for (const int64_t epoch : {1, 2, 3}) save(epoch);
  const std::vector<FsOp> log = fs_.log();
  const auto removed = std::find(log.begin(), log.end(), FsOp::kRemove);
  ASSERT_NE(removed, log.end());
  EXPECT_EQ(*(removed - 1), FsOp::kSyncDirectory);
  EXPECT_EQ(*(removed - 2), FsOp::kRename);
  EXPECT_EQ(std::count(log.begin(), log.end(), FsOp::kRemove), 1);
}

TEST_F(KeepLastTest, AFailedSaveRemovesNothing) {
  for (const int64_t epoch : {1, 2}) save(epoch);
  fs_.fail_next(FsOp::kSync, EIO);
  EXPECT_THAT([&] { save(3); }, ThrowsError(Errc::kIo, HasSubstr("checkpoint_3.pt: Input/output error")));
  EXPECT_THAT(names(), UnorderedElementsAre("checkpoint_1.pt", "checkpoint_2.pt"));
}

TEST_F(KeepLastTest, WhatCannotBeRemovedIsAWarningAndGoesNextTime) {
  for (const int64_t epoch : {1, 2}) save(epoch);
  fs_.fail_next(FsOp::kRemove, EACCES);
  EXPECT_NO_THROW(save(3));
  EXPECT_THAT(logger_.warnings(), ElementsAre(HasSubstr("checkpoint_1.pt: Permission denied")));
  EXPECT_EQ(names().size(), 3U);
  save(4);
  EXPECT_THAT(names(), UnorderedElementsAre("checkpoint_3.pt", "checkpoint_4.pt"));
}

}  // namespace
}  // namespace marlin
