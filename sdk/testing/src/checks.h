// The checks. Each runs in a process of its own that has not used a checkpointer or a tensor, so that it may fork further ones.
// @return the detail. @throws Broken: a promise was not kept; NotRun.
#pragma once

#include <string>

#include "subject.h"

namespace marlin::testing::detail {

[[nodiscard]] std::string check_round_trip(const Stage& stage);
[[nodiscard]] std::string check_models(const Stage& stage);
[[nodiscard]] std::string check_period_and_force(const Stage& stage);
[[nodiscard]] std::string check_load_of_nothing(const Stage& stage);
[[nodiscard]] std::string check_newest_wins(const Stage& stage);
[[nodiscard]] std::string check_kill(const Stage& stage);
[[nodiscard]] std::string check_full_disk(const Stage& stage);
[[nodiscard]] std::string check_power_cut(const Stage& stage);
[[nodiscard]] std::string check_broken_file(const Stage& stage);
[[nodiscard]] std::string check_exceptions(const Stage& stage);
[[nodiscard]] std::string check_two_in_one_process(const Stage& stage);
[[nodiscard]] std::string check_new_process(const Stage& stage);

}  // namespace marlin::testing::detail
