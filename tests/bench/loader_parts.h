// What the parts of the case `loader` share.
#pragma once

namespace marlin::bench {

constexpr int kLoaderBlocks = 31;

/// Worker threads, against one, torch::data and Python's DataLoader; loader_workers.cpp. @return whether every bound holds.
bool judge_workers();

}  // namespace marlin::bench
