// One check in a process of its own, and how it is told of.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace marlin::testing {

enum class CheckStatus : uint8_t { kPassed, kFailed, kNotRun };

/// What came of one check.
struct ContractCheck {
  std::string name;
  CheckStatus status = CheckStatus::kNotRun;
  /// One line. Failed: what was promised and what was found. Not run: why, "not run: ..." or "not applicable: ...". Passed: how much
  /// was checked, if that varies.
  std::string detail;
  double seconds = 0.0;
  bool late = false;  ///< It failed because it took longer than its time limit.
};

/// For a check to throw that cannot be made here ("not run: ..."), or does not apply ("not applicable: ..."); what() says why.
struct NotRun : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Runs `body` in a forked process with a fresh folder, which is its working folder and goes afterwards. It passed if it returned (the
/// detail), and failed if it threw anything but NotRun, crashed, called exit() or took longer than the time limit; processes that it
/// left behind are ended with it. What it writes to standard output and error is caught, and the last line told of where it crashed.
///
/// So that forking is safe, the calling process must neither run tensor operations itself nor make anything that starts threads.
/// @throws Error kIo: no folder or no process can be made.
[[nodiscard]] ContractCheck run_check(const std::string& name, std::chrono::milliseconds time_limit,
                                      const std::function<std::string(const std::filesystem::path& folder)>& body);

/// "ok   round trip (0.4 s)", "FAIL broken file: ... (1.2 s)", "skip full disk: not run: ...", "skip broken file: not applicable: ...".
[[nodiscard]] std::string to_line(const ContractCheck& check);
/// "12 checks: 10 ok, 1 failed, 1 not run".
[[nodiscard]] std::string summary(const std::vector<ContractCheck>& checks);
/// Whether any failed.
[[nodiscard]] bool any_failed(const std::vector<ContractCheck>& checks) noexcept;

}  // namespace marlin::testing
