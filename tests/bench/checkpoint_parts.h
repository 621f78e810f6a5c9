// What the parts of the case `checkpoint` share.
#pragma once

#include <marlin/sdk/checkpoint.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "bench.h"

namespace marlin::bench {

constexpr int kCheckpointBlocks = 31;

/// A folder of this run's own, gone at the end.
class Folder {
 public:
  explicit Folder(const std::filesystem::path& where);
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Waits until the disk has what earlier work wrote; else it would be written in the time of later blocks.
void settle();

/// How far the process's memory has gone above what it was when this was made. One at a time: the system keeps one peak a process.
class PeakMemory {
 public:
  PeakMemory();
  [[nodiscard]] double added_mib() const;

 private:
  int64_t before_;
};

/// The parts in files of their own. @return whether every bound holds.
/// Saving while training goes on; checkpoint_async.cpp.
bool judge_background_saves(const Folder& folder);
/// torch.save, torch.load, Ignite's DiskSaver and dcp.async_save, in a Python process; checkpoint_peers.cpp.
/// @param file holds `saved`. @param live tensors to load into.
bool judge_peers(const Folder& folder, const std::filesystem::path& file, const Checkpoint& saved, const StateDict& live);

}  // namespace marlin::bench
