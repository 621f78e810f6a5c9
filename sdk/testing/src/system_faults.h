// Stopping a process before the system calls with which it changes files.
//
// The process gives its kernel a filter (seccomp) that hands such calls to the process that made it, which lets each go on, fails it,
// or kills the caller instead. That needs no privileges and no help of the code that is watched: threads and programs that it starts
// are watched, too. Not seen is what is written through mmap or io_uring.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "process.h"

namespace marlin::testing::detail {

/// What is to happen to the calls that change files, counted from 1 while the gate is armed.
struct Faults {
  enum class Kind : uint8_t {
    kNone,      ///< They are only counted.
    kKill,      ///< The process is killed before call `at`.
    kDiskFull,  ///< From call `at` on, those that need space fail with ENOSPC.
  };
  Kind kind = Kind::kNone;
  int64_t at = 0;
};

/// In the watched process: between arm() and disarm() its calls count. It may be armed again meanwhile, which a listener hears of.
class Gate {
 public:
  explicit Gate(int control) : control_(control) {}
  void arm() const { tell('a'); }
  void disarm() const { tell('d'); }

 private:
  void tell(char what) const;
  int control_;
};

/// What a call does to what a power cut leaves.
enum class Effect : uint8_t {
  kNone,         ///< Nothing, or it changes names.
  kWrites,       ///< Changes the bytes of a file.
  kSyncs,        ///< Of a file, or a folder.
  kSyncsMapped,  ///< Of the file that is mapped at the first argument.
  kSyncsAll,     ///< Of all files, or of all on one file system.
};

/// A call that changes files, or has changes reach the disk.
struct FileCall {
  const char* name = "";     ///< "pwrite64"
  bool needs_space = false;  ///< A full disk fails it.
  Effect effect = Effect::kNone;
};

/// One that is about to be made, and waits meanwhile.
struct PendingCall {
  FileCall call;
  int64_t thread = 0;   ///< Its caller's, as /proc has it.
  int descriptor = -1;  ///< What it is about, unless that is a name or a place in memory.
  std::array<uint64_t, 6> arguments{};
};

/// Hears of the calls while the gate is armed.
class CallListener {
 public:
  virtual void armed() = 0;
  virtual void before(const PendingCall& call) = 0;
  virtual void disarmed() = 0;

 protected:
  ~CallListener() = default;
};

struct WatchedEnding {
  Ending ending;
  std::vector<FileCall> calls;  ///< While armed, in order.
  bool killed = false;          ///< By the plan, before the last of the calls.
  int64_t failed = 0;           ///< Calls that the plan failed.
};

/// Runs `body` in a forked process with these faults; the listener, if there is one, hears in the calling process.
/// @throws Error kUnsupported: the system refuses it; the text is the reason.
[[nodiscard]] WatchedEnding run_with_faults(const Faults& faults, const std::function<std::string(const Gate&)>& body, CallListener* listener = nullptr);

}  // namespace marlin::testing::detail
