// Running something in a process of its own.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace marlin::testing::detail {

/// What came of a forked process.
struct Ending {
  bool returned = false;  ///< The body returned, or threw what is in `said`.
  std::string said;       ///< What the body returned.
  std::string how;        ///< If it did not return: "ended by SIGSEGV", "called exit(3)", "ended with code 3", "took longer than 60 s".
  bool late = false;      ///< It took longer than its time limit.
  int signal = 0;         ///< That ended it; 0: none.
  std::string output;     ///< The end of what it wrote to standard output and error.

  /// `how`, with the last line of the output, if there is one.
  [[nodiscard]] std::string last_words() const;
};

/// Something that has to be served while a process runs.
class Service {
 public:
  /// Descriptors to watch now.
  [[nodiscard]] virtual std::vector<int> descriptors() const = 0;
  /// One of them has something to read, or its other end was closed.
  virtual void ready(int descriptor) = 0;

 protected:
  ~Service() = default;
};

struct ForkOptions {
  std::chrono::milliseconds time_limit{0};  ///< 0: none.
  bool leader = false;                      ///< Of a process group, which ends with it: whatever it starts.
  Service* service = nullptr;
};

/// Runs `body` in a forked process, which ends at the latest with the caller's; output is caught, input is empty.
/// @throws Error kIo: no process can be made.
[[nodiscard]] Ending run_forked(const std::function<std::string()>& body, const ForkOptions& options = {});

}  // namespace marlin::testing::detail
