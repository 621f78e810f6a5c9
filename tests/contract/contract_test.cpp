// The implementations that keep the contract of AbstractCheckpointer, and what is promised of the checks themselves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "marlin/checkpointers/best_k_checkpointer.h"
#include "marlin/checkpointers/key_metric_checkpointer.h"
#include "marlin/checkpointers/safetensors_checkpointer.h"
#include "marlin/testing/checkpointer_contract.h"
#include "simple_checkpointer.h"
#include "throws_error.h"

namespace marlin::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

CheckpointerContract contract_of_default() {
  CheckpointerContract contract;
  contract.make = [](HostContext& host) { return std::make_unique<DefaultCheckpointer>(DefaultCheckpointerOptions{}, host); };
  return contract;
}

CheckpointerContract contract_of_safetensors() {
  CheckpointerContract contract;
  contract.make = [](HostContext& host) { return std::make_unique<SafetensorsCheckpointer>(SafetensorsCheckpointerOptions{}, host); };
  return contract;
}

// The metric grows from save to save, so each is the best so far, and the newest.
CheckpointerContract contract_of_best_k() {
  CheckpointerContract contract;
  contract.make = [](HostContext& host) {
    return std::make_unique<BestKCheckpointer>(BestKOptions{.n_saved = 3, .score_name = "val/accuracy", .keep_latest = KeepLatest::kYes}, BestKHooks{}, host);
  };
  return contract;
}

CheckpointerContract contract_of_key_metric() {
  CheckpointerContract contract;
  contract.make = [](HostContext& host) {
    return std::make_unique<KeyMetricCheckpointer>(KeyMetricOptions{.save_final = true, .save_key_metric = true, .key_metric_name = "val/accuracy", .save_interval = 1, .n_saved = 3}, host);
  };
  return contract;
}

CheckpointerContract contract_of_simple() {
  CheckpointerContract contract;
  contract.make = [](HostContext& host) { return std::make_unique<SimpleCheckpointer>(host); };
  return contract;
}

class CheckpointerContractTest : public ::testing::TestWithParam<std::string> {};

TEST_P(CheckpointerContractTest, DefaultCheckpointerKeepsIt) {
  const ContractCheck check = check_checkpointer(contract_of_default(), GetParam());
  EXPECT_EQ(check.status, CheckStatus::kPassed) << to_line(check);
}

TEST_P(CheckpointerContractTest, SafetensorsCheckpointerKeepsIt) {
  const ContractCheck check = check_checkpointer(contract_of_safetensors(), GetParam());
  EXPECT_EQ(check.status, CheckStatus::kPassed) << to_line(check);
}

// They write no model files; everything else is asked of them.
TEST_P(CheckpointerContractTest, BestKKeepsIt) {
  const ContractCheck check = check_checkpointer(contract_of_best_k(), GetParam());
  EXPECT_NE(check.status, CheckStatus::kFailed) << to_line(check);
}

TEST_P(CheckpointerContractTest, KeyMetricKeepsIt) {
  const ContractCheck check = check_checkpointer(contract_of_key_metric(), GetParam());
  EXPECT_NE(check.status, CheckStatus::kFailed) << to_line(check);
}

TEST_P(CheckpointerContractTest, ThePatternOfTheWrongOnesKeepsIt) {
  const ContractCheck check = check_checkpointer(contract_of_simple(), GetParam());
  EXPECT_EQ(check.status, CheckStatus::kPassed) << to_line(check);
}

INSTANTIATE_TEST_SUITE_P(Every, CheckpointerContractTest, ::testing::ValuesIn(checkpointer_checks()), [](const auto& info) {
  std::string name = info.param;
  std::ranges::replace(name, ' ', '_');
  return name;
});

TEST(ContractReportTest, NamesChecksCountsThemAndEndsWithACode) {
  std::ostringstream out;
  EXPECT_EQ(report_checkpointer(contract_of_simple(), out, {"round trip", "models"}), 0);
  EXPECT_THAT(out.str(), MatchesRegex("ok   round trip \\([0-9.]+ s\\)\nok   models \\([0-9.]+ s\\)\n2 checks: 2 ok, 0 failed, 0 not run\n"));
  CheckpointerContract failing = contract_of_simple();
  failing.make = [](HostContext&) -> std::unique_ptr<AbstractCheckpointer> { throw Error(Errc::kInvalidArgument, "no such\nfolder"); };
  out.str("");
  EXPECT_EQ(report_checkpointer(failing, out, {"models"}), 1);
  EXPECT_THAT(out.str(), MatchesRegex("FAIL models: making the checkpointer failed: no such.nfolder \\([0-9.]+ s\\)\n1 check: 0 ok, 1 failed, 0 not run\n"));
}

TEST(ContractReportTest, WhatCannotBeCheckedIsRefused) {
  const auto call = [](const CheckpointerContract& contract, const char* name) { return [=] { (void)check_checkpointer(contract, name); }; };
  EXPECT_THAT(call(contract_of_simple(), "rund trip"), ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("no check 'rund trip'"), HasSubstr("did you mean 'round trip'?"))));
  EXPECT_THAT(call({}, "models"), ThrowsError(Errc::kInvalidArgument, HasSubstr("make must be set")));
  CheckpointerContract contract = contract_of_simple();
  contract.max_interruptions = 0;
  EXPECT_THAT(call(contract, "models"), ThrowsError(Errc::kInvalidArgument, HasSubstr("max_interruptions")));
}

// A process whose system calls are watched cannot have them watched by another one: the kernel refuses it.
TEST(ContractReportTest, WhereTheSystemRefusesToWatchItIsSaidRatherThanPassed) {
  const ContractCheck check = run_check("in a process that is watched", std::chrono::seconds(60), [](const std::filesystem::path&) {
    sock_filter allow_all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    const sock_fprog program{1, allow_all};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program) < 0) {
      throw NotRun("not run: no process can be watched here");
    }
    return concat(to_line(check_checkpointer(contract_of_simple(), "full disk")), "; ", to_line(check_checkpointer(contract_of_simple(), "models")));
  });
  EXPECT_EQ(check.status, CheckStatus::kPassed) << to_line(check);
  EXPECT_THAT(check.detail, MatchesRegex("skip full disk: not run: this system does not let a process watch the system calls of another \\(seccomp: .*\\); ok   models .*"));
}

// Which dtypes the writer refuses, so that other programs read its files.
TEST(ContractReportTest, WhatAFormatRefusesIsSaid) {
  const ContractCheck check = check_checkpointer(contract_of_safetensors(), "round trip");
  EXPECT_EQ(check.status, CheckStatus::kPassed) << to_line(check);
  EXPECT_EQ(check.detail, "refuses complex64, complex128, complex32, float8_e5m2fnuz, float8_e4m3fnuz");
}

TEST(ContractReportTest, FewerInterruptionsThanCallsAreSaid) {
  CheckpointerContract contract = contract_of_simple();
  contract.max_interruptions = 2;
  contract.seed = 7;
  contract.max_flips = 2;
  EXPECT_THAT(check_checkpointer(contract, "kill in the middle of a save").detail, MatchesRegex("killed at 2 of [0-9]+ calls that change files"));
  EXPECT_THAT(check_checkpointer(contract, "broken file").detail, MatchesRegex("1 file of a save, damaged in [0-9]+ ways \\(seed 7\\)"));
}

}  // namespace
}  // namespace marlin::testing
