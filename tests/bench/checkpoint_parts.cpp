#include "checkpoint_parts.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <stdexcept>

namespace marlin::bench {

namespace fs = std::filesystem;

namespace {

int64_t peak_memory_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::strtoll(line.c_str() + 6, nullptr, 10) * 1024;
  }
  throw std::runtime_error("/proc/self/status names no peak of memory");
}

}  // namespace

Folder::Folder(const fs::path& where) {
  std::string name = (where / "marlin_bench_XXXXXX").string();
  require(::mkdtemp(name.data()) != nullptr, "a folder can be made in " + where.string());
  path_ = name;
}

Folder::~Folder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void settle() { ::sync(); }

// Writing 5 there sets the peak back to what is in use.
PeakMemory::PeakMemory() {
  std::ofstream("/proc/self/clear_refs") << "5";
  before_ = peak_memory_bytes();
}

double PeakMemory::added_mib() const { return static_cast<double>(peak_memory_bytes() - before_) / (1 << 20); }

}  // namespace marlin::bench
