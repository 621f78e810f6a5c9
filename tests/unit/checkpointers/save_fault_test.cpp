// Saving while the file system fails: every single call of a save, power cuts between any two, a disk that is full.
#include <gmock/gmock.h>
#include <sys/mount.h>
#include <torch/torch.h>

#include <cstring>

#include "faulty_file_system.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/sdk/text.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;
using testing::FaultyFileSystem;
using testing::FsOp;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::ThrowsError;
using testing::Unsynced;

Checkpoint state_at(int64_t epoch, int64_t num_floats) {
  Checkpoint state;
  state.module_interface_state = {{"weight", torch::full({num_floats}, static_cast<double>(epoch))}, {"bias", torch::full({3}, static_cast<double>(epoch))}};
  state.trainer_state = {{"last_epoch", epoch}};
  state.trainer_backend_state = {{"global_step_completed", epoch * 10}};
  return state;
}

// A folder in which epochs 1 and 2 were saved, and a save of epoch 3 under way; the files of 2 are the most that are kept.
class SavingRun {
 public:
  explicit SavingRun(int64_t num_floats = 100) : num_floats_(num_floats) {
    options_.save_dir = folder_.text();
    options_.load_dir = options_.save_dir;
    options_.keep_last = 2;
    for (const int64_t epoch : {1, 2}) checkpointer_.emplace(options_, HostContext{.logger = &logger, .file_system = &fs}).save(state_at(epoch, num_floats_), epoch);
    before_ = fs.log().size();
  }
  void save() { checkpointer_->save(state_at(3, num_floats_), 3); }
  /// The calls of save(), as far as it came.
  [[nodiscard]] std::vector<FsOp> calls() const {
    const std::vector<FsOp> log = fs.log();
    return {log.begin() + static_cast<ptrdiff_t>(before_), log.end()};
  }
  /// What a new process finds; -1: nothing. Its values are checked.
  [[nodiscard]] int64_t newest() {
    DefaultCheckpointer checkpointer(options_, HostContext{&logger});
    const Checkpoint found = checkpointer.load();
    if (found.empty()) return -1;
    const int64_t epoch = found.trainer_state.at("last_epoch").as_int();
    EXPECT_TRUE(equal(found.module_interface_state, state_at(epoch, num_floats_).module_interface_state));
    return epoch;
  }
  /// Whether a checkpoint under its own name is whole.
  [[nodiscard]] bool is_whole(int64_t epoch) const {
    try {
      return equal(read_checkpoint(folder_ / concat("checkpoint_", epoch, ".pt")).module_interface_state, state_at(epoch, num_floats_).module_interface_state);
    } catch (const Error&) {
      return false;
    }
  }
  [[nodiscard]] std::vector<std::string> names() const { return names_in(folder_.path()); }
  [[nodiscard]] std::string folder() const { return folder_.text(); }

  FaultyFileSystem fs;
  RecordingLogger logger;

 private:
  TempFolder folder_;
  DefaultCheckpointerOptions options_;
  int64_t num_floats_;
  std::optional<DefaultCheckpointer> checkpointer_;
  size_t before_ = 0;
};

// The folder and the file are what a message may name, and the system's word is in it.
void expect_told(const Error& error, const SavingRun& run, int number) {
  EXPECT_EQ(error.code(), Errc::kIo) << error.what();
  EXPECT_THAT(error.what(), HasSubstr(run.folder()));
  EXPECT_THAT(error.what(), HasSubstr(std::strerror(number)));
}

constexpr int64_t kSmall = 100, kForTwoThreads = 1'100'000;

class SaveFaultTest : public ::testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Sizes, SaveFaultTest, ::testing::Values(kSmall, kForTwoThreads), [](const auto& info) { return info.param == kSmall ? "Small" : "TwoThreads"; });

std::vector<FsOp> calls_of_a_save(int64_t num_floats) {
  SavingRun run(num_floats);
  run.save();
  EXPECT_EQ(run.newest(), 3);
  return run.calls();
}

TEST(SaveOrderTest, IsDataThenSyncThenRenameThenFolderThenEviction) {
  const std::vector<FsOp> expected = {FsOp::kMakeDirectories, FsOp::kFreeSpace, FsOp::kCreate, FsOp::kReserve, FsOp::kWrite, FsOp::kFlush, FsOp::kWrite,
                                      FsOp::kFlush, FsOp::kSync, FsOp::kClose, FsOp::kRename, FsOp::kSyncDirectory, FsOp::kRemove};
  EXPECT_EQ(calls_of_a_save(kSmall), expected);
}

TEST_P(SaveFaultTest, WhicheverCallFailsWhatWasThereStaysWhole) {
  const auto num_calls = static_cast<int64_t>(calls_of_a_save(GetParam()).size());
  for (const int error : {ENOSPC, EIO}) {
    for (int64_t n = 0; n < num_calls; ++n) {
      SCOPED_TRACE(concat("call ", n, ", ", std::strerror(error)));
      SavingRun run(GetParam());
      run.fs.fail_call(n, error);
      bool told = false;
      try {
        run.save();
      } catch (const Error& failure) {
        told = true;
        expect_told(failure, run, error);
      }
      const std::vector<FsOp> calls = run.calls();
      const FsOp failed = calls.at(static_cast<size_t>(n));
      EXPECT_EQ(told, failed != FsOp::kRemove) << "that an old one cannot be removed is a warning";
      if (!told) {
        EXPECT_THAT(run.logger.warnings(), Contains(HasSubstr("checkpoint_1.pt")));
      }
      EXPECT_TRUE(run.is_whole(2));
      EXPECT_TRUE(run.is_whole(1)) << "nothing is removed for a save that failed";
      EXPECT_EQ(run.newest(), failed == FsOp::kSyncDirectory || failed == FsOp::kRemove ? 3 : 2);
      EXPECT_THAT(run.names(), Each(StartsWith("checkpoint_"))) << "no temporary file";
      if (HasFailure()) return;
    }
  }
}

TEST_P(SaveFaultTest, AnInterruptedCallIsTriedAgain) {
  const auto num_calls = static_cast<int64_t>(calls_of_a_save(GetParam()).size());
  for (int64_t n = 0; n < num_calls; ++n) {
    SavingRun run(GetParam());
    run.fs.fail_call(n, EINTR);
    ASSERT_NO_THROW(run.save()) << "call " << n;
    ASSERT_EQ(run.newest(), 3) << "call " << n;
    ASSERT_THAT(run.logger.warnings(), IsEmpty());
  }
}

TEST_P(SaveFaultTest, WheneverPowerIsCutTheLastOrTheOneBeforeIsThere) {
  const auto num_calls = static_cast<int64_t>(calls_of_a_save(GetParam()).size());
  for (const Unsynced unsynced : {Unsynced::kLost, Unsynced::kNamesStay, Unsynced::kHalfStays}) {
    for (int64_t n = 0; n <= num_calls; ++n) {
      SCOPED_TRACE(concat("power cut before call ", n, ", kind ", static_cast<int>(unsynced)));
      SavingRun run(GetParam());
      run.fs.cut_power_at(n);
      bool saved = true;
      try {
        run.save();
      } catch (const Error&) {
        saved = false;
      }
      run.fs.crash(unsynced);
      const int64_t newest = run.newest();
      EXPECT_TRUE(newest == 3 || (newest == 2 && !saved)) << "found " << newest << ", save had " << (saved ? "" : "not ") << "returned";
      EXPECT_TRUE(run.is_whole(2));
      EXPECT_THAT(run.logger.warnings(), Not(Contains(HasSubstr("broken")))) << "no torn file under a final name";
      if (HasFailure()) return;
    }
  }
}

TEST_P(SaveFaultTest, WhenTheSameNameIsWrittenAnewTheOldFileOrTheNewIsThere) {
  const auto num_calls = static_cast<int64_t>(calls_of_a_save(GetParam()).size());
  const TempFolder folder;
  for (const Unsynced unsynced : {Unsynced::kLost, Unsynced::kNamesStay, Unsynced::kHalfStays}) {
    for (int64_t n = 0; n < num_calls - 1; ++n) {  // without the eviction
      FaultyFileSystem fs;
      const std::filesystem::path file = folder / "checkpoint_1.pt";
      write_checkpoint(file, state_at(1, GetParam()), {}, Durability::kDurable, fs);
      fs.cut_power_at(n);
      EXPECT_ANY_THROW(write_checkpoint(file, state_at(2, GetParam()), {}, Durability::kDurable, fs)) << n;
      fs.crash(unsynced);
      const Checkpoint read = read_checkpoint(file);
      const int64_t epoch = read.trainer_state.at("last_epoch").as_int();
      ASSERT_TRUE(equal(read.module_interface_state, state_at(epoch, GetParam()).module_interface_state)) << n;
    }
  }
}

TEST(SaveFaultsTest, ShortWritesAreContinued) {
  SavingRun run(30000);
  run.fs.limit_writes(1000);
  run.save();
  EXPECT_GT(run.calls().size(), 120U);
  EXPECT_EQ(run.newest(), 3);
}

TEST(SaveFaultsTest, TheFailureIsToldAndNotThatOfCleaningUp) {
  SavingRun run;
  run.fs.fail_next(FsOp::kWrite, EIO);
  run.fs.fail_next(FsOp::kRemove, EACCES);
  EXPECT_THAT([&] { run.save(); }, ThrowsError(Errc::kIo, HasSubstr("checkpoint_3.pt: Input/output error")));
  EXPECT_EQ(run.newest(), 2);
}

TEST(SaveFaultsTest, TooLittleSpaceIsFoundBeforeAnythingIsWritten) {
  SavingRun run(10000);
  run.fs.set_free_space(40000);
  EXPECT_THAT([&] { run.save(); }, ThrowsError(Errc::kIo, AllOf(HasSubstr("checkpoint_3.pt: No space left on device (the file needs 4"), HasSubstr(" bytes, 40000 are free)"))));
  EXPECT_THAT(run.calls(), Not(Contains(FsOp::kCreate)));
  run.fs.set_free_space(50000);
  run.fs.fail_next(FsOp::kReserve, ENOSPC);  // somebody else was faster
  EXPECT_THAT([&] { run.save(); }, ThrowsError(Errc::kIo, AllOf(HasSubstr("checkpoint_3.pt: No space left on device (the file needs 4"), HasSubstr(" bytes, 50000 are free)"))));
}

TEST(SaveFaultsTest, AFolderThatWasRemovedIsMadeAgain) {
  SavingRun run;
  std::filesystem::remove_all(run.folder());
  run.save();
  EXPECT_EQ(run.newest(), 3);
}

TEST(SaveFaultsTest, WithoutDurabilityNothingIsSynced) {
  const TempFolder folder;
  FaultyFileSystem fs;
  write_checkpoint(folder / "checkpoint_1.pt", state_at(1, kSmall), {}, Durability::kUnsynced, fs);
  EXPECT_THAT(fs.log(), Not(Contains(AnyOf(FsOp::kSync, FsOp::kFlush, FsOp::kSyncDirectory))));
  EXPECT_EQ(read_checkpoint(folder / "checkpoint_1.pt").trainer_state.at("last_epoch").as_int(), 1);
}

// A real one, of a MiB; for that the test must be allowed to mount.
class FullDiskTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::mount("tmpfs", folder_.path().c_str(), "tmpfs", 0, "size=1m") != 0) GTEST_SKIP() << "may not mount a tmpfs: " << std::strerror(errno);
    mounted_ = true;
    options_.save_dir = folder_.text();
    options_.load_dir = options_.save_dir;
  }
  void TearDown() override {
    if (mounted_) ::umount2(folder_.path().c_str(), MNT_DETACH);
  }
  [[nodiscard]] int64_t newest() const { return DefaultCheckpointer(options_).load().trainer_state.at("last_epoch").as_int(); }

  TempFolder folder_;
  DefaultCheckpointerOptions options_;
  bool mounted_ = false;
};

TEST_F(FullDiskTest, ASaveThatDoesNotFitLeavesTheLastOneAndNoRest) {
  DefaultCheckpointer checkpointer(options_);
  checkpointer.save(state_at(1, 50'000), 1);
  EXPECT_THAT([&] { checkpointer.save(state_at(2, 300'000), 2); }, ThrowsError(Errc::kIo, AllOf(HasSubstr("checkpoint_2.pt: No space left on device"), HasSubstr("the file needs 12"))));
  EXPECT_EQ(newest(), 1);
  EXPECT_THAT(names_in(folder_.path()), ::testing::ElementsAre("checkpoint_1.pt"));
  checkpointer.save(state_at(3, 50'000), 3);
  EXPECT_EQ(newest(), 3);
}

TEST_F(FullDiskTest, ADiskThatTurnedReadOnlyIsTold) {
  DefaultCheckpointer checkpointer(options_);
  checkpointer.save(state_at(1, 100), 1);
  if (::mount("tmpfs", folder_.path().c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, nullptr) != 0) GTEST_SKIP() << "may not remount: " << std::strerror(errno);
  EXPECT_THAT([&] { checkpointer.save(state_at(2, 100), 2); }, ThrowsError(Errc::kIo, HasSubstr("checkpoint_2.pt: Read-only file system")));
  EXPECT_EQ(newest(), 1);
}

}  // namespace
}  // namespace marlin
