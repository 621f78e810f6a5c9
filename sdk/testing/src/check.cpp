#include "marlin/testing/check.h"

#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iomanip>
#include <sstream>
#include <system_error>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "process.h"

namespace marlin::testing {
namespace {

namespace fs = std::filesystem;

// Goes with all that is in it.
class WorkFolder {
 public:
  WorkFolder() {
    std::string name = (fs::temp_directory_path() / "marlin_contract_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw Error(Errc::kIo, concat("cannot make the folder ", name, " for a check: ", std::strerror(errno)));
    path_ = fs::canonical(name);
  }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  ~WorkFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  [[nodiscard]] const fs::path& path() const noexcept { return path_; }

 private:
  fs::path path_;
};

constexpr char kPassed = 'p', kFailed = 'f', kNotRun = 'n';

// In the check's process: what came of it, after a letter that says whether it passed.
std::string outcome_of(const fs::path& folder, const std::function<std::string(const fs::path& folder)>& body) {
  try {
    fs::current_path(folder);
    return kPassed + body(folder);
  } catch (const NotRun& reason) {
    return kNotRun + std::string(reason.what());
  } catch (const std::exception& error) {
    return kFailed + std::string(error.what());
  } catch (...) {
    return kFailed + std::string("an exception that is no std::exception");
  }
}

}  // namespace

ContractCheck run_check(const std::string& name, std::chrono::milliseconds time_limit, const std::function<std::string(const fs::path& folder)>& body) {
  const WorkFolder folder;
  const auto began = std::chrono::steady_clock::now();
  const detail::Ending ending = detail::run_forked([&] { return outcome_of(folder.path(), body); }, {.time_limit = time_limit, .leader = true});
  ContractCheck result{.name = name, .status = CheckStatus::kFailed, .detail = {}, .seconds = 0, .late = false};
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  if (!ending.returned || ending.said.empty()) {
    result.detail = one_line(concat("the process ", ending.last_words()));
    result.late = ending.late;
    return result;
  }
  if (ending.said.front() == kPassed) result.status = CheckStatus::kPassed;
  if (ending.said.front() == kNotRun) result.status = CheckStatus::kNotRun;
  result.detail = one_line(ending.said.substr(1));
  return result;
}

std::string to_line(const ContractCheck& check) {
  std::ostringstream seconds;
  seconds << " (" << std::fixed << std::setprecision(1) << check.seconds << " s)";
  const std::string detail = check.detail.empty() ? "" : ": " + check.detail;
  switch (check.status) {
    case CheckStatus::kPassed: return concat("ok   ", check.name, detail, seconds.str());
    case CheckStatus::kFailed: return concat("FAIL ", check.name, detail, seconds.str());
    case CheckStatus::kNotRun: break;
  }
  return concat("skip ", check.name, ": ", check.detail);
}

std::string summary(const std::vector<ContractCheck>& checks) {
  const auto count = [&](CheckStatus status) { return std::ranges::count(checks, status, &ContractCheck::status); };
  return concat(checks.size(), checks.size() == 1 ? " check: " : " checks: ", count(CheckStatus::kPassed), " ok, ", count(CheckStatus::kFailed), " failed, ",
                count(CheckStatus::kNotRun), " not run");
}

bool any_failed(const std::vector<ContractCheck>& checks) noexcept {
  return std::ranges::any_of(checks, [](const ContractCheck& check) { return check.status == CheckStatus::kFailed; });
}

}  // namespace marlin::testing
