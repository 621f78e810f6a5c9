#include "marlin/core/optim/lr_scheduler.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "throws_error.h"

namespace marlin::optim {
namespace {

using ::testing::HasSubstr;
using marlin::testing::ThrowsError;
using Rates = std::vector<double>;

// Two groups, of rates 0.1 and 0.02.
torch::optim::SGD optimizer_of_two_groups() {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (const double lr : {0.1, 0.02}) {
    groups.emplace_back(std::vector<at::Tensor>{torch::zeros({1}, torch::requires_grad())}, std::make_unique<torch::optim::SGDOptions>(lr));
  }
  return torch::optim::SGD(groups, torch::optim::SGDOptions(1.0));
}

// The rates that Python had for counts 0 to 6, made with torch 2.15.0:
//   o = torch.optim.SGD([{"params": [p0], "lr": 0.1}, {"params": [p1], "lr": 0.02}]); s = <schedule>(o)
//   print(s.get_last_lr()); for _ in range(6): o.step(); s.step(); print(s.get_last_lr())
// Python multiplies from step to step, so its last digits differ from the closed forms.
template <class Make>
void expect_rates(const Rates& first, const Rates& second, const Make& make) {
  auto optimizer = optimizer_of_two_groups();
  const auto schedule = make(optimizer);
  for (size_t count = 0; count < first.size(); ++count) {
    if (count > 0) schedule->step();
    EXPECT_EQ(schedule->last_epoch(), static_cast<int64_t>(count));
    EXPECT_NEAR(optimizer.param_groups()[0].options().get_lr(), first[count], 1e-15) << "count " << count;
    EXPECT_NEAR(optimizer.param_groups()[1].options().get_lr(), second[count], 1e-15) << "count " << count;
    EXPECT_EQ(schedule->get_last_lr()[1], optimizer.param_groups()[1].options().get_lr());
  }
}

TEST(LRSchedulerTest, LambdaHasPythonsRates) {
  expect_rates({0.1, 0.05, 0.03333333333333333, 0.025, 0.020000000000000004, 0.016666666666666666, 0.014285714285714285},
               {0.02, 0.01, 0.006666666666666666, 0.005, 0.004, 0.003333333333333333, 0.002857142857142857}, [](auto& optimizer) {
                 return std::make_unique<LambdaLR>(optimizer, [](int64_t count) { return 1.0 / static_cast<double>(1 + count); });
               });
}

TEST(LRSchedulerTest, StepHasPythonsRates) {
  expect_rates({0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125}, {0.02, 0.02, 0.01, 0.01, 0.005, 0.005, 0.0025},
               [](auto& optimizer) { return std::make_unique<StepLR>(optimizer, 2, 0.5); });
}

TEST(LRSchedulerTest, LinearHasPythonsRates) {
  expect_rates({0.025, 0.05, 0.07500000000000001, 0.1, 0.1, 0.1, 0.1},
               {0.005, 0.01, 0.015, 0.019999999999999997, 0.019999999999999997, 0.019999999999999997, 0.019999999999999997},
               [](auto& optimizer) { return std::make_unique<LinearLR>(optimizer, 0.25, 1.0, 3); });
}

TEST(LRSchedulerTest, CosineHasPythonsRates) {
  expect_rates({0.1, 0.08681980515339464, 0.05500000000000001, 0.023180194846605363, 0.01, 0.023180194846605363, 0.05500000000000002},
               {0.02, 0.01853553390593274, 0.015, 0.011464466094067262, 0.01, 0.011464466094067262, 0.015},
               [](auto& optimizer) { return std::make_unique<CosineAnnealingLR>(optimizer, 4, 0.01); });
}

TEST(LRSchedulerTest, LinearEndsExactlyWhereItSays) {
  for (const int64_t total : {1, 3, 7, 1000}) {
    auto optimizer = optimizer_of_two_groups();
    LinearLR schedule(optimizer, 1.0, 0.0, total);
    for (int64_t i = 0; i < total; ++i) {
      EXPECT_GT(schedule.get_last_lr()[0], 0.0);
      schedule.step();
    }
    EXPECT_EQ(schedule.get_last_lr(), (Rates{0.0, 0.0}));
    schedule.step();
    EXPECT_EQ(schedule.get_last_lr(), (Rates{0.0, 0.0})) << "and stays there";
  }
  auto optimizer = optimizer_of_two_groups();
  LinearLR warmup(optimizer, 1.0 / 3.0, 1.0, 5);
  for (int i = 0; i < 5; ++i) warmup.step();
  EXPECT_EQ(warmup.get_last_lr(), (Rates{0.1, 0.02}));
}

TEST(LRSchedulerTest, CosineEndsAtItsLowestRateForAGroupOfAnyRate) {
  auto optimizer = optimizer_of_two_groups();
  optimizer.param_groups()[1].options().set_lr(0.0);
  CosineAnnealingLR schedule(optimizer, 10, 1e-3);
  EXPECT_EQ(schedule.get_last_lr(), (Rates{0.1, 0.0}));
  for (int i = 0; i < 10; ++i) schedule.step();
  EXPECT_EQ(schedule.get_last_lr(), (Rates{1e-3, 1e-3}));
}

TEST(LRSchedulerTest, AFreshScheduleGoesOnFromAState) {
  auto optimizer = optimizer_of_two_groups();
  CosineAnnealingLR schedule(optimizer, 10);
  for (int i = 0; i < 4; ++i) schedule.step();
  const StateDict state = schedule.get_state();
  EXPECT_EQ(state.at("last_epoch").as_int(), 4);
  EXPECT_EQ(state.at("_step_count").as_int(), 5);
  EXPECT_EQ(state.at("base_lrs").as_items().at(1).as_double(), 0.02);
  EXPECT_EQ(state.at("_last_lr").as_items().at(0).as_double(), schedule.get_last_lr()[0]);

  auto fresh_optimizer = optimizer_of_two_groups();
  fresh_optimizer.param_groups()[0].options().set_lr(7.0);  // the state's base rates hold, not this one
  CosineAnnealingLR fresh(fresh_optimizer, 10);
  fresh.update_state(state);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(fresh.get_last_lr(), schedule.get_last_lr()) << "bit for bit";
    EXPECT_EQ(fresh_optimizer.param_groups()[0].options().get_lr(), schedule.get_last_lr()[0]);
    fresh.step();
    schedule.step();
  }
}

TEST(LRSchedulerTest, TakesPythonsState) {
  auto optimizer = optimizer_of_two_groups();
  StepLR schedule(optimizer, 2, 0.5);
  // StepLR(o, 2, 0.5).state_dict() after six steps.
  schedule.update_state({{"step_size", 2}, {"gamma", 0.5}, {"base_lrs", List{{torch::tensor(0.1, torch::kDouble), 0.02}}}, {"last_epoch", 6},
                         {"_step_count", 7}, {"_is_initial", false}, {"_get_lr_called_within_step", false}, {"_last_lr", List{{0.0125, 0.0025}}}});
  EXPECT_EQ(schedule.get_last_lr(), (Rates{0.0125, 0.0025}));
}

TEST(LRSchedulerTest, AStateThatDoesNotFitChangesNothing) {
  auto optimizer = optimizer_of_two_groups();
  StepLR schedule(optimizer, 1, 0.5);
  schedule.step();
  const StateDict before = schedule.get_state();
  StateDict one_group = before, no_count = before, negative = before, text = before;
  one_group.set("base_lrs", List{{0.1}});
  no_count.erase("last_epoch");
  negative.set("last_epoch", -1);
  text.set("base_lrs", List{{0.1, "fast"}});
  EXPECT_THAT([&] { schedule.update_state(one_group); }, ThrowsError(Errc::kMismatch, HasSubstr("1 parameter groups, the optimizer has 2")));
  EXPECT_THAT([&] { schedule.update_state(no_count); }, ThrowsError(Errc::kMismatch, HasSubstr("no 'last_epoch'")));
  EXPECT_THAT([&] { schedule.update_state(negative); }, ThrowsError(Errc::kMismatch, HasSubstr("at least 0, found -1")));
  EXPECT_THAT([&] { schedule.update_state(text); }, ThrowsError(Errc::kMismatch, HasSubstr("expected float, found string")));
  for (const StateDict& state : {one_group, no_count, negative, text}) EXPECT_EQ(schedule.differences(state).size(), 1u);
  EXPECT_TRUE(schedule.differences(before).empty());
  EXPECT_TRUE(equal(schedule.get_state(), before));
}

TEST(LRSchedulerTest, ArgumentsOutOfRangeAreRefused) {
  auto optimizer = optimizer_of_two_groups();
  EXPECT_THAT([&] { StepLR(optimizer, 0); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("StepLR: step_size")));
  EXPECT_THAT([&] { LinearLR(optimizer, 1, 0, 0); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("LinearLR: total_iters")));
  EXPECT_THAT([&] { LinearLR(optimizer, -1, 0, 2); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("LinearLR: factors")));
  EXPECT_THAT([&] { CosineAnnealingLR(optimizer, -3); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("CosineAnnealingLR: T_max")));
  EXPECT_THAT([&] { LambdaLR(optimizer, nullptr); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("LambdaLR")));
  EXPECT_EQ(optimizer.param_groups()[0].options().get_lr(), 0.1) << "a schedule that was refused leaves the rate alone";
}

TEST(LRSchedulerTest, AGroupAddedLaterIsNoticed) {
  auto optimizer = optimizer_of_two_groups();
  StepLR schedule(optimizer, 1);
  optimizer.add_param_group(torch::optim::OptimizerParamGroup({torch::zeros({1}, torch::requires_grad())}));
  EXPECT_THAT([&] { schedule.step(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("3 parameter groups")));
}

TEST(LRSchedulerTest, SaysWhatItCounts) {
  auto optimizer = optimizer_of_two_groups();
  EXPECT_EQ(StepLR(optimizer, 1).per(), LRScheduler::Per::kEpoch);
  EXPECT_EQ(CosineAnnealingLR(optimizer, 1).per(), LRScheduler::Per::kStep);
  EXPECT_EQ(StepLR(optimizer, 1, 0.1, LRScheduler::Per::kStep).per(), LRScheduler::Per::kStep);
}

}  // namespace
}  // namespace marlin::optim
