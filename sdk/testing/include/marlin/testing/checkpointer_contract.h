// The contract of AbstractCheckpointer, to be run against any implementation.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/host.h"
#include "marlin/sdk/metrics.h"
#include "marlin/testing/check.h"

namespace marlin::testing {

/// What is checked, and how hard.
///
/// Every check runs in processes of its own, forked from the caller's (see run_check()), with a fresh folder as working folder and
/// host's run_dir; whatever the code under test does there, a crash, exit() and an endless loop included, is one failed check with
/// its reason. So that forking is safe, the calling process must neither make a checkpointer nor run tensor operations itself (they
/// may start threads, which a forked process lacks), nor have threads that hold locks: run the checks first thing.
///
/// "round trip" wants values of every kind and tensors of the usual dtypes back, bit for bit; that tensors share storage, and strides,
/// need not be kept. Tensors of a rarer dtype (complex64, uint16, float8_e4m3fn, ...) are kept, or their save is refused by name.
///
/// "kill in the middle of a save" and "full disk" ask the kernel (seccomp, no privileges needed) to stop before every system call that
/// changes files, so they hold for any way to write but mmap and io_uring. Where the system refuses that, they are not run, and say so.
///
/// "power cut" watches the same calls: when save() has returned, every file that it made or changed in its folder must have been synced
/// after the last write (fsync, fdatasync, syncfs, sync, O_DSYNC), and the folder that holds its name after the name came there.
struct CheckpointerContract {
  /// Makes what is checked; called in the forked processes only, often several times in one. Its files belong into host.run_dir.
  std::function<std::unique_ptr<AbstractCheckpointer>(HostContext& host)> make;
  std::chrono::milliseconds time_limit = std::chrono::seconds(60);  ///< For one check. Range: >= 1 ms.
  std::optional<uint64_t> seed = {};  ///< Of random damage. Unset: another one each time; details say which it was.
  int64_t max_interruptions = 60;     ///< Kills, and full disks, at most; more calls than that: evenly chosen ones. Range: >= 1.
  int64_t max_flips = 24;             ///< Bytes that are changed in a file, one at a time: half evenly spaced, half at random. Range: >= 0.
  int64_t max_files = 8;              ///< Files of a save that are damaged, at most. Range: >= 1.
  /// What the save points of the checks carry; `index` grows from save to save. Unset: train/loss and val/loss, which fall with it,
  /// and val/accuracy, which grows, so that each is better than the one before.
  std::function<Metrics(int64_t index)> metrics = {};
};

/// The names of all checks, in the order in which they are run.
[[nodiscard]] std::vector<std::string> checkpointer_checks();

/// Runs one. Threads: none but the caller's. @throws Error kInvalidArgument: no such check, or a field is out of its range;
/// kIo: no folder or no process can be made.
[[nodiscard]] ContractCheck check_checkpointer(const CheckpointerContract& contract, const std::string& name);
/// Runs all. `listener` hears of each as it is done.
std::vector<ContractCheck> check_checkpointer(const CheckpointerContract& contract, const std::function<void(const ContractCheck&)>& listener = {});

/// For a main(): runs the checks of these names (none: all), and prints a line for each and the summary.
/// @return an exit code: 1 if any failed, else 0. @throws as check_checkpointer().
int report_checkpointer(const CheckpointerContract& contract, std::ostream& out, const std::vector<std::string>& names = {});

}  // namespace marlin::testing
