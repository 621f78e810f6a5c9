// Runs part of a test on several ranks.
#pragma once

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <vector>

#include "communicator_ranks.h"
#include "marlin/core/communicator.h"
#include "marlin/sdk/text.h"

namespace marlin::testing {

/// Runs `body` on that many connected ranks, each a forked process with one thread. What a rank expects and does not find, throws, or ends by, fails
/// the test.
inline void on_ranks(int world_size, const std::function<void(Communicator&)>& body) {
  const HeldPort port;
  const auto run = [&](int rank) {
    try {
      const std::unique_ptr<Communicator> communicator = distributed::connect(distributed::options_of(rank, world_size, port));
      const ::testing::ScopedTrace trace(__FILE__, __LINE__, concat("rank ", rank, " of ", world_size));
      try {
        body(*communicator);
      } catch (const std::exception& error) {
        communicator->fail(error.what());
        throw;
      }
    } catch (const std::exception& error) {
      ADD_FAILURE() << "rank " << rank << " of " << world_size << ": " << error.what();
    }
  };
  std::vector<pid_t> processes;
  std::fflush(nullptr);
  for (int rank = 0; rank < world_size; ++rank) {
    const pid_t process = fork();
    ASSERT_GE(process, 0);
    if (process == 0) {
      alarm(kPatience);  // whatever happens, it ends
      run(rank);
      std::fflush(nullptr);
      _exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    processes.push_back(process);
  }
  for (size_t rank = 0; rank < processes.size(); ++rank) {
    int status = 0;
    ASSERT_EQ(waitpid(processes[rank], &status, 0), processes[rank]);
    EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status) << " ended rank " << rank << " of " << world_size;
    EXPECT_FALSE(WIFEXITED(status) && WEXITSTATUS(status) != 0) << "rank " << rank << " of " << world_size << " failed, see above";
  }
}

}  // namespace marlin::testing
