// What the tests of wrong checkpointers have in common.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/testing/checkpointer_contract.h"
#include "temp_folder.h"

namespace marlin::testing {

inline void PrintTo(const ContractCheck& check, std::ostream* stream) { *stream << to_line(check); }

// What write_checkpoint() would write.
inline std::string bytes_of(const Checkpoint& checkpoint, const SavePoint& point) {
  const TempFolder folder;
  write_checkpoint(folder / "bytes", checkpoint, point, Durability::kUnsynced);
  return content_of(folder / "bytes");
}

// Has a file, or a folder, reach the disk. @return whether it did.
inline bool sync(const std::filesystem::path& path) {
  const int opened = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool good = opened >= 0 && ::fsync(opened) == 0;
  if (opened >= 0) ::close(opened);
  return good;
}

template <class Wrong>
CheckpointerContract contract_of() {
  CheckpointerContract contract;
  contract.make = [](HostContext& host) { return std::make_unique<Wrong>(host); };
  contract.max_interruptions = 10;
  contract.max_flips = 12;
  contract.seed = 1;
  return contract;
}

// Runs all checks. @return what failed.
template <class Wrong>
std::vector<ContractCheck> failures() {
  std::vector<ContractCheck> failed;
  for (ContractCheck& check : check_checkpointer(contract_of<Wrong>())) {
    if (check.status == CheckStatus::kFailed) failed.push_back(std::move(check));
  }
  return failed;
}

inline auto is(const char* name, const char* detail) {
  return ::testing::AllOf(::testing::Field("name", &ContractCheck::name, name), ::testing::Field("detail", &ContractCheck::detail, ::testing::HasSubstr(detail)));
}

}  // namespace marlin::testing
