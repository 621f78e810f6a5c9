// Ranks that are connected, for the communicator's tests.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <random>
#include <string>
#include <vector>

#include "distributed/process_group.h"
#include "forked_ranks.h"

namespace marlin::distributed {

using namespace std::chrono_literals;
using marlin::testing::ForkedRanks;
using marlin::testing::Gate;
using marlin::testing::HeldPort;

inline ConnectOptions options_of(int rank, int size, const HeldPort& port, std::chrono::milliseconds timeout = 60s, bool shared_memory = false) {
  at::set_num_threads(1);
  ConnectOptions options;
  options.timeout = timeout;
  options.shared_memory = shared_memory;
  launch::Ranks& ranks = options.ranks;
  ranks.rank = ranks.local_rank = rank;
  ranks.world_size = ranks.local_world_size = size;
  ranks.master_addr = "127.0.0.1";
  ranks.master_port = port.number();
  ranks.launcher = launch::Launcher::kLocal;
  return options;
}

inline void all_reduce(Communicator& communicator, const at::Tensor& tensor) { communicator.all_reduce(tensor)->wait(); }

// All-reduces for ever.
inline void work(Communicator& communicator) {
  const at::Tensor tensor = at::ones({1000});
  while (true) all_reduce(communicator, tensor);
}

inline std::string bytes_of(size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

// Milliseconds from `begin` until a rank said something.
inline double milliseconds(const ForkedRanks::End& end, ForkedRanks::Clock::time_point begin) { return std::chrono::duration<double, std::milli>(end.when - begin).count(); }

}  // namespace marlin::distributed
