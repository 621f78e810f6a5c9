// Damage, kills and failures of the file system, over checkpoints of two files: what is read is what was saved, or it is told.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <random>
#include <thread>

#include "archive/hash.h"
#include "archive_test_util.h"
#include "faulty_file_system.h"
#include "marlin/checkpointers/safetensors_checkpointer.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "recording_logger.h"
#include "safetensors_test_util.h"
#include "temp_folder.h"

namespace marlin {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::StartsWith;
using test::point_at;
using test::rich_checkpoint;
using testing::content_of;
using testing::FaultyFileSystem;
using testing::FsOp;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::Unsynced;

SafetensorsCheckpointerOptions options_for(const TempFolder& folder) { return {.save_dir = folder.text(), .load_dir = folder.text()}; }

// ---- damage

class SafetensorsDamageTest : public ::testing::Test {
 protected:
  SafetensorsDamageTest() {
    state_.module_interface_state = {{"w", torch::arange(6.).reshape({2, 3})}, {"steps", torch::tensor(7)}};
    state_.trainer_state = {{"last_epoch", 4}, {"lr", 0.1}, {"names", List{{"a", nullptr, Tuple{{true, 2}}}}}};
    state_.trainer_backend_state = {{"global_step_completed", 40}};
    SafetensorsCheckpointer(options_for(folder_)).save(state_, point_at(4));
  }
  /// Reads it; what is read must be what was written. True: it is told as corrupt.
  bool is_told() const {
    try {
      EXPECT_TRUE(test::equal(SafetensorsCheckpointer(options_for(folder_)).load({.from = LoadRequest::From::kPath, .path = record()}), state_)) << "a changed file was taken for whole";
      return false;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::kCorrupt) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << "a message is one line: " << error.what();
      EXPECT_EQ(std::string(error.what()).rfind(folder_.text() + "/checkpoint_4.", 0), 0U) << "a message begins with the file: " << error.what();
      return true;
    }
  }
  [[nodiscard]] std::string record() const { return (folder_ / "checkpoint_4.json").string(); }
  [[nodiscard]] std::vector<std::filesystem::path> files() const { return {folder_ / "checkpoint_4.json", folder_ / "checkpoint_4.safetensors"}; }

  TempFolder folder_;
  Checkpoint state_;
};

TEST_F(SafetensorsDamageTest, EveryFlippedByteOfEitherFileIsTold) {
  for (const std::filesystem::path& file : files()) {
    const std::string whole = content_of(file);
    for (size_t at = 0; at < whole.size(); ++at) {
      const bool is_record = file.extension() == ".json";  // nothing but its own hash stands before what it says
      std::vector<int> masks = {0xff, 1 << (at % 8)};
      if (is_record) masks = {0xff, 1, 2, 4, 8, 16, 32, 64, 128};
      for (const int mask : masks) {
        std::string changed = whole;
        changed[at] = static_cast<char>(changed[at] ^ mask);
        test::replace_file(file, changed);
        ASSERT_TRUE(is_told()) << file.filename() << ", byte " << at << ", mask " << mask;
        if (HasFailure()) FAIL() << file.filename() << ", byte " << at;
      }
    }
    test::replace_file(file, whole);
    ASSERT_FALSE(is_told());
  }
}

TEST_F(SafetensorsDamageTest, EitherFileCutAtAnyLengthIsTold) {
  for (const std::filesystem::path& file : files()) {
    const std::string whole = content_of(file);
    for (size_t size = 0; size < whole.size(); ++size) {
      test::replace_file(file, whole.substr(0, size));
      ASSERT_TRUE(is_told()) << file.filename() << " cut to " << size;
      if (HasFailure()) FAIL() << file.filename() << " cut to " << size;
    }
    test::replace_file(file, whole + " ");
    ASSERT_TRUE(is_told()) << "with a byte more";
    test::replace_file(file, whole);
  }
}

TEST_F(SafetensorsDamageTest, ARecordThatLiesUnderARightHashIsRefused) {
  const std::string whole = content_of(record());
  const auto refused = [&](const std::string& from, const std::string& to) {
    const size_t at = whole.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    std::string changed = whole;
    changed.replace(at, from.size(), to);
    const size_t digits = changed.size() - std::string_view("\"\n}\n").size() - 32;
    test::replace_file(record(), changed.substr(0, digits) + archive::to_hex(archive::hash_of(std::string_view(changed).substr(0, digits))) + "\"\n}\n");
    EXPECT_TRUE(is_told()) << to;
  };
  refused("checkpoint_4.safetensors", "../checkpoint_4.safetensors");
  refused("checkpoint_4.safetensors", "..");
  refused("checkpoint_4.safetensors", "");
  refused("checkpoint_4.safetensors", "nosuch.safetensors");
  refused("\"size\": ", "\"size\": 1");
  refused("\"state\":", "\"states\":");
  refused("[\"last_epoch\",4]", "[\"last_epoch\"]");
  refused("[\"last_epoch\",4]", "[\"last_epoch\",4,4]");
  refused("[\"last_epoch\",4]", "[null,4]");
  refused("[\"last_epoch\",4]", "[1.5,4]");
  refused("[\"last_epoch\",4]", "[\"lr\",4]");
  refused("[\"last_epoch\",4]", "[\"last_epoch\",18446744073709551615]");
  refused("[\"last_epoch\",4]", "[\"last_epoch\",{}]");
  refused("[\"last_epoch\",4]", "[\"last_epoch\",{\"float\":\"none\",\"bits\":\"0\"}]");
  refused("[\"last_epoch\",4]", "[\"last_epoch\",{\"float\":\"nan\",\"bits\":\"x\"}]");
  refused("[\"last_epoch\",4]", "[\"last_epoch\",{\"tuple\":1}]");
  refused("[\"last_epoch\",4]", "[\"last_epoch\"," + std::string(70, '[') + std::string(70, ']') + "]");
  refused("[\"last_epoch\",4]", "[\"last_epoch\"," + std::string(100'000, '[') + std::string(100'000, ']') + "]");
}

// ---- failures and power cuts, while the checkpoint of the same number is replaced

// A folder in which epochs 3 and 4 were saved, and 4 is saved again as `rich_checkpoint(5)`.
class Replacing {
 public:
  Replacing() : checkpointer_(options_for(folder_), HostContext{.logger = &logger, .file_system = &fs}) {
    for (const int64_t epoch : {3, 4}) checkpointer_.save(rich_checkpoint(epoch), point_at(epoch));
    before_ = fs.log().size();
  }
  void save() { checkpointer_.save(rich_checkpoint(5), point_at(4)); }
  [[nodiscard]] size_t num_calls() const { return fs.log().size() - before_; }
  [[nodiscard]] FsOp call(size_t n) const { return fs.log().at(before_ + n); }
  /// Which state a new process finds, after it has opened the folder for writing, too: 4, or 5. Everything it reads is exact.
  [[nodiscard]] int64_t newest() {
    SafetensorsCheckpointer next(options_for(folder_), HostContext{.logger = &logger});
    Checkpoint found = next.load();
    next.open({.loaded_from = found.source, .run_id = "r1"});
    found = next.load();
    const int64_t marker = found.trainer_state.at("last_epoch").as_int();
    EXPECT_TRUE(test::equal(found, rich_checkpoint(marker)));
    EXPECT_TRUE(test::equal(next.load({.from = LoadRequest::From::kPath, .path = (folder_ / "checkpoint_3.json").string()}), rich_checkpoint(3)));
    std::vector<std::string> left = names();
    std::erase_if(left, [](const std::string& name) { return name.starts_with('.'); });  // a temporary file of this process is not stale
    EXPECT_EQ(left.size(), 4U) << "two checkpoints of two files";
    EXPECT_EQ(found.source, (folder_ / "checkpoint_4.json").string());
    return marker;
  }
  [[nodiscard]] std::vector<std::string> names() const { return names_in(folder_.path()); }

  FaultyFileSystem fs;
  RecordingLogger logger;

 private:
  TempFolder folder_;
  SafetensorsCheckpointer checkpointer_;
  size_t before_ = 0;
};

size_t calls_of_a_save() {
  Replacing run;
  run.save();
  const size_t calls = run.num_calls();
  EXPECT_EQ(run.newest(), 5);
  return calls;
}

TEST(SafetensorsFaultTest, OrderIsTensorsThenRecordThenTheOldTensors) {
  Replacing run;
  run.save();
  std::vector<FsOp> names;
  for (size_t n = 0; n < run.num_calls(); ++n) {
    if (const FsOp op = run.call(n); op == FsOp::kRename || op == FsOp::kSyncDirectory || op == FsOp::kRemove || op == FsOp::kSync) names.push_back(op);
  }
  EXPECT_THAT(names, ElementsAre(FsOp::kSync, FsOp::kRename, FsOp::kSyncDirectory, FsOp::kSync, FsOp::kRename, FsOp::kSyncDirectory, FsOp::kRemove));
}

TEST(SafetensorsFaultTest, WhicheverCallFailsTheOldOneOrTheNewIsWhole) {
  const size_t num_calls = calls_of_a_save();
  for (const int error : {ENOSPC, EIO}) {
    for (size_t n = 0; n < num_calls; ++n) {
      SCOPED_TRACE(concat("call ", n, ", ", std::strerror(error)));
      Replacing run;
      run.fs.fail_call(static_cast<int64_t>(n), error);
      bool told = false;
      try {
        run.save();
      } catch (const Error& failure) {
        told = true;
        EXPECT_EQ(failure.code(), Errc::kIo);
      }
      const FsOp failed = run.call(n);
      const bool clearing = failed == FsOp::kRemove || failed == FsOp::kList;
      EXPECT_EQ(told, !clearing) << "that the old tensors cannot be removed is a warning";
      EXPECT_EQ(run.logger.warnings().empty(), told);
      if (told) {
        EXPECT_THAT(run.names(), Each(StartsWith("checkpoint_"))) << "no temporary file";
      }
      const int64_t newest = run.newest();
      EXPECT_TRUE(newest == 5 ? !told || failed == FsOp::kSyncDirectory : told) << newest;
      if (HasFailure()) return;
    }
  }
}

TEST(SafetensorsFaultTest, WheneverItIsKilledOrPowerIsCutTheOldOneOrTheNewIsWhole) {
  const size_t num_calls = calls_of_a_save();
  // Nothing: the process ends, and what it did stays.
  for (const std::optional<Unsynced> unsynced : {std::optional<Unsynced>(), std::optional(Unsynced::kLost), std::optional(Unsynced::kNamesStay), std::optional(Unsynced::kHalfStays)}) {
    for (size_t n = 0; n <= num_calls; ++n) {
      SCOPED_TRACE(concat("the end before call ", n, ", kind ", unsynced ? static_cast<int>(*unsynced) : -1));
      Replacing run;
      run.fs.cut_power_at(static_cast<int64_t>(n));
      bool saved = true;
      try {
        run.save();
      } catch (const Error&) {
        saved = false;
      }
      if (unsynced) run.fs.crash(*unsynced);
      const int64_t newest = run.newest();
      EXPECT_TRUE(newest == 5 || !saved) << "found " << newest << ", but save had returned";
      if (HasFailure()) return;
    }
  }
}

// ---- kills

// Saves for ever, the last number twice as often as a new one, and says after each save what it saved. Never returns.
[[noreturn]] void save_for_ever(const TempFolder& folder, int64_t first, int told) {
  at::set_num_threads(1);  // the pool of the process that this one was forked from is not here
  try {
    SafetensorsCheckpointerOptions options = options_for(folder);
    options.keep_last = 3;
    SafetensorsCheckpointer checkpointer(options);
    for (int64_t marker = first;; ++marker) {
      checkpointer.save(rich_checkpoint(marker), point_at(marker / 3));
      if (::write(told, &marker, sizeof marker) != sizeof marker) ::_exit(2);
    }
  } catch (...) {
    ::_exit(3);
  }
}

// From the begin of a life to its second save, on this machine as it is now.
std::chrono::microseconds time_of_two_saves() {
  const TempFolder folder;
  int told[2];
  EXPECT_EQ(::pipe(told), 0);
  const auto begin = std::chrono::steady_clock::now();
  const pid_t child = ::fork();
  if (child == 0) save_for_ever(folder, 0, told[1]);
  ::close(told[1]);
  for (int64_t i = 0, marker = 0; i < 2; ++i) EXPECT_EQ(::read(told[0], &marker, sizeof marker), static_cast<ssize_t>(sizeof marker));
  const auto time = std::chrono::steady_clock::now() - begin;
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(told[0]);
  return std::chrono::duration_cast<std::chrono::microseconds>(time);
}

TEST(SafetensorsKillTest, EveryRestartFindsTheLastCheckpointOrTheOneBeforeAndSweepsTheRest) {
  std::mt19937_64 random(test::test_seed(9));
  const TempFolder folder;
  RecordingLogger logger;
  int64_t newest = -1;
  int with_rest = 0;
  const int rounds = test::repetitions(300);
  const auto longest = static_cast<uint64_t>(std::max<int64_t>(60'000, 2 * time_of_two_saves().count()));
  for (int i = 0; i < rounds; ++i) {
    SCOPED_TRACE(concat("round ", i));
    int told[2];
    ASSERT_EQ(::pipe(told), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) save_for_ever(folder, newest + 1, told[1]);
    ::close(told[1]);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % longest));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "it ended by itself: " << WEXITSTATUS(status);
    int64_t returned = newest;
    for (int64_t marker = 0; ::read(told[0], &marker, sizeof marker) == sizeof marker;) returned = marker;
    ::close(told[0]);

    const size_t files_before = names_in(folder.path()).size();
    SafetensorsCheckpointer checkpointer(options_for(folder), HostContext{.logger = &logger});
    const Checkpoint found = checkpointer.load();
    const int64_t marker = found.empty() ? -1 : found.trainer_state.at("last_epoch").as_int();
    ASSERT_TRUE(marker == returned || marker == returned + 1) << "saved " << returned << ", found " << marker;
    ASSERT_TRUE(logger.warnings().empty()) << logger.warnings().front();
    checkpointer.open({found.source});
    if (marker >= 0) {
      ASSERT_TRUE(test::equal(checkpointer.load(), rich_checkpoint(marker)));
    }
    std::vector<std::string> records, tensors;
    for (const std::string& name : names_in(folder.path())) (name.ends_with(".json") ? records : tensors).push_back(name);
    ASSERT_EQ(records.size(), tensors.size());
    ASSERT_THAT(tensors, Each(StartsWith("checkpoint_")));
    with_rest += records.size() + tensors.size() < files_before ? 1 : 0;
    newest = marker;
  }
  std::cout << newest + 1 << " checkpoints in " << rounds << " lives; " << with_rest << " left something to be swept\n";
  EXPECT_GT(newest, rounds / 10);
}

}  // namespace
}  // namespace marlin
