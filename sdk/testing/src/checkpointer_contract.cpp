#include "marlin/testing/checkpointer_contract.h"

#include <algorithm>
#include <iterator>
#include <ostream>
#include <random>

#include "checks.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::testing {
namespace {

using detail::Stage;

struct Check {
  const char* name;
  std::string (*run)(const Stage& stage);
};

constexpr Check kChecks[] = {
    {"round trip", &detail::check_round_trip},
    {"models", &detail::check_models},
    {"period and force", &detail::check_period_and_force},
    {"load of nothing", &detail::check_load_of_nothing},
    {"newest wins", &detail::check_newest_wins},
    {"kill in the middle of a save", &detail::check_kill},
    {"full disk", &detail::check_full_disk},
    {"power cut", &detail::check_power_cut},
    {"broken file", &detail::check_broken_file},
    {"exceptions", &detail::check_exceptions},
    {"two in one process", &detail::check_two_in_one_process},
    {"resume into a new process", &detail::check_new_process},
};

const Check& check_of(const std::string& name) {
  const auto* found = std::ranges::find_if(kChecks, [&](const Check& check) { return name == check.name; });
  if (found != std::end(kChecks)) return *found;
  const std::string close = nearest(name, checkpointer_checks());
  throw Error(Errc::kInvalidArgument, concat("no check '", one_line(name), "'", close.empty() ? concat("; there are: ", join(checkpointer_checks())) : concat("; did you mean '", close, "'?")));
}

void validate(const CheckpointerContract& contract) {
  const auto want = [](bool holds, const char* what) {
    if (!holds) throw Error(Errc::kInvalidArgument, concat("CheckpointerContract: ", what));
  };
  want(contract.make != nullptr, "make must be set");
  want(contract.time_limit.count() >= 1, "time_limit must be at least 1 ms");
  want(contract.max_interruptions >= 1, "max_interruptions must be at least 1");
  want(contract.max_flips >= 0, "max_flips must be at least 0");
  want(contract.max_files >= 1, "max_files must be at least 1");
}

}  // namespace

std::vector<std::string> checkpointer_checks() {
  std::vector<std::string> names;
  for (const Check& check : kChecks) names.emplace_back(check.name);
  return names;
}

ContractCheck check_checkpointer(const CheckpointerContract& contract, const std::string& name) {
  validate(contract);
  const Check& check = check_of(name);
  const uint64_t seed = contract.seed ? *contract.seed : std::random_device()();
  return run_check(name, contract.time_limit, [&](const std::filesystem::path& folder) { return check.run({contract, folder, seed}); });
}

std::vector<ContractCheck> check_checkpointer(const CheckpointerContract& contract, const std::function<void(const ContractCheck&)>& listener) {
  std::vector<ContractCheck> checks;
  for (const std::string& name : checkpointer_checks()) {
    checks.push_back(check_checkpointer(contract, name));
    if (listener) listener(checks.back());
  }
  return checks;
}

int report_checkpointer(const CheckpointerContract& contract, std::ostream& out, const std::vector<std::string>& names) {
  for (const std::string& name : names) (void)check_of(name);
  std::vector<ContractCheck> checks;
  for (const std::string& name : names.empty() ? checkpointer_checks() : names) {
    checks.push_back(check_checkpointer(contract, name));
    out << to_line(checks.back()) << std::endl;
  }
  out << summary(checks) << std::endl;
  return any_failed(checks) ? 1 : 0;
}

}  // namespace marlin::testing
