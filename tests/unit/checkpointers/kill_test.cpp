// A process that is killed at any moment while it saves every few milliseconds: what starts after it finds a whole checkpoint.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <chrono>
#include <random>
#include <thread>

#include "archive_test_util.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "recording_logger.h"
#include "temp_folder.h"

namespace marlin {
namespace {

using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;

// Every fifth is large enough for two threads.
Checkpoint state_at(int64_t epoch) {
  Checkpoint state;
  const int64_t size = epoch % 5 == 4 ? 1'500'000 : 20'000;
  state.module_interface_state = {{"weight", torch::full({size}, static_cast<double>(epoch))}};
  state.trainer_state = {{"last_epoch", epoch}};
  state.trainer_backend_state = {{"global_step_completed", epoch}};
  return state;
}

DefaultCheckpointerOptions options_for(const TempFolder& folder) {
  DefaultCheckpointerOptions options;
  options.save_dir = folder.text();
  options.load_dir = folder.text();
  options.keep_last = 3;
  return options;
}

// What the killed process does: goes on from what is there, and says after each save which it was. Never returns.
[[noreturn]] void save_for_ever(const TempFolder& folder, int64_t first, int told) {
  at::set_num_threads(1);  // the pool of the process that this one was forked from is not here
  try {
    DefaultCheckpointer checkpointer(options_for(folder));
    for (int64_t epoch = first;; ++epoch) {
      checkpointer.save(state_at(epoch), epoch);
      if (::write(told, &epoch, sizeof epoch) != sizeof epoch) ::_exit(2);
    }
  } catch (...) {
    ::_exit(3);
  }
}

// The last epoch whose save had returned; `none` if there was none.
int64_t last_told(int pipe, int64_t none) {
  int64_t last = none;
  for (int64_t epoch = 0; ::read(pipe, &epoch, sizeof epoch) == sizeof epoch;) last = epoch;
  return last;
}

TEST(KillTest, EveryRestartFindsTheLastCheckpointOrTheOneBeforeAndSweepsTheRest) {
  std::mt19937_64 random(test::test_seed(9));
  const TempFolder folder;
  RecordingLogger logger;
  int64_t newest = -1;
  int with_rest = 0;
  const int rounds = test::repetitions(300);
  for (int i = 0; i < rounds; ++i) {
    int told[2];
    ASSERT_EQ(::pipe(told), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) save_for_ever(folder, newest + 1, told[1]);
    ::close(told[1]);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 60'000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "it ended by itself: " << WEXITSTATUS(status);
    const int64_t returned = last_told(told[0], newest);
    ::close(told[0]);

    const size_t files_before = names_in(folder.path()).size();
    DefaultCheckpointer checkpointer(options_for(folder), HostContext{&logger});
    const Checkpoint found = checkpointer.load();
    const int64_t epoch = found.empty() ? -1 : found.trainer_state.at("last_epoch").as_int();
    ASSERT_TRUE(epoch == returned || epoch == returned + 1) << "round " << i << ": saved " << returned << ", found " << epoch;
    ASSERT_TRUE(logger.warnings().empty()) << "round " << i << ": " << logger.warnings().front();
    if (epoch >= 0) {
      ASSERT_TRUE(equal(found.module_interface_state, state_at(epoch).module_interface_state)) << "round " << i;
      checkpointer.open({found.source});
    }
    const std::vector<std::string> names = names_in(folder.path());
    with_rest += names.size() < files_before ? 1 : 0;
    for (const std::string& name : names) ASSERT_TRUE(epoch < 0 || name.starts_with("checkpoint_")) << "round " << i << ": " << name;
    newest = epoch;
  }
  std::cout << newest + 1 << " checkpoints in " << rounds << " lives; " << with_rest << " left a temporary file\n";
  EXPECT_GT(newest, rounds / 10);
}

}  // namespace
}  // namespace marlin
