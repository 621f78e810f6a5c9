// The ranks of --nproc N: copies of this program on this machine.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace marlin::launch {

struct LocalLaunchOptions {
  std::string program;                   ///< The program to start. Empty: this one.
  std::chrono::milliseconds grace = std::chrono::seconds(10);  ///< From a rank's failure until those that still run are killed. After a failure or a signal
                                                               ///< a reader may take as long for the next piece of output once all have ended.
  /// Exit codes that ranks agree on and end with each in its own time: done, a last save failed, stopped by max_seconds. Another code is a
  /// failure, except that of a rank that SIGTERM or SIGINT has stopped (143, 130).
  std::vector<int> common_codes = {0, 4, 5};
  int out = 1, err = 2;                  ///< Descriptors of the standard output and error.
};

/// Starts `nproc` copies of this program, with the same arguments except --nproc, and waits for their ends. find_ranks() tells each which it is:
/// RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR=127.0.0.1, MASTER_PORT, and MARLIN_LAUNCHER=local are set for it, and
/// OMP_NUM_THREADS to its share of the cores unless it is set. No one else is given that port while this runs; a rank binds it with SO_REUSEADDR (as
/// TCPStore does).
///
/// Output. Rank 0's standard output is this program's, unchanged. All else goes to the standard error, each line with "[rank 1] " before it.
/// Lines stay whole up to 1 MiB. On a terminal, a line that rank 0 redraws with carriage returns (a progress bar) stays below the lines of all;
/// elsewhere, and of the other ranks, only what such a line ends with is written. That standard output or error is closed ends no rank: what would go
/// there is dropped. Ranks read nothing: their standard input is /dev/null.
///
/// Signals. SIGTERM, SIGINT and SIGUSR1 are passed on to every rank. Each rank leads a process group of its own, so that a terminal's
/// Ctrl-C reaches it once, by way of this process; on Ctrl-Z ranks run on. Until a rank handles SIGUSR1 it ignores it. Ranks are killed when the thread
/// that called this ends in whatever way, also by SIGKILL.
///
/// What ranks start themselves gets none of these signals, but is killed with a rank that failed or that is killed, as far as it is in the rank's
/// process group. It outlives other ranks, but what it then writes to their output is lost (SIGPIPE).
///
/// A rank that ends with kPeerLostCode is no reason to look no further: the one that it lost is given the time of grace to end with a code of its own.
///
/// @param arguments the program's words, its name first.
/// @return 0: all ranks ended with 0. A rank failed: its exit code, or 128 + N if signal N killed it; the others were then sent SIGTERM, and
///   SIGKILL after the time of grace, and one line on the standard error says which failed first, and how. Otherwise the common code of the
///   ranks; should they disagree, the first in rank order that is not 0.
/// @throws Error kInvalidArgument: nproc < 1; kIo: a rank cannot be started (program and errno text). No rank is then left.
/// @note For a process with one thread, before it has children: signals are taken from the calling thread only, and SIGCHLD is consumed.
[[nodiscard]] int launch_local(int nproc, const std::vector<std::string>& arguments, const LocalLaunchOptions& options = {});

/// Command line words without `--nproc N` and `--nproc=N`.
[[nodiscard]] std::vector<std::string> without_nproc(const std::vector<std::string>& arguments);

}  // namespace marlin::launch
