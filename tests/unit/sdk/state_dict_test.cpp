#include "marlin/sdk/state_dict.h"

#include <gmock/gmock.h>
#include <torch/torch.h>

#include <cmath>

#include "marlin/sdk/error.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;

TEST(StateDictTest, KeepsTheOrderInWhichKeysCame) {
  StateDict state;
  state.set("b", 1);
  state.set(int64_t{7}, "seven");
  state.set("a", 2);
  state.set("b", 3);  // replaced where it is
  std::vector<std::string> keys;
  for (const auto& entry : state) keys.push_back(to_string(entry.key));
  EXPECT_EQ(keys, (std::vector<std::string>{"b", "7", "a"}));
  EXPECT_EQ(state.at("b").as_int(), 3);
}

TEST(StateDictTest, TellsNumbersAsKeysFromTheirTexts) {
  StateDict state;
  state.set(int64_t{0}, "number");
  state.set("0", "text");
  EXPECT_EQ(state.size(), 2U);
  EXPECT_EQ(state.at(int64_t{0}).as_string(), "number");
}

TEST(StateDictTest, FindsEveryKeyAfterOneWasErased) {
  StateDict state;
  for (int64_t i = 0; i < 100; ++i) state.set(i, i * i);
  EXPECT_TRUE(state.erase(int64_t{40}));
  EXPECT_FALSE(state.erase(int64_t{40}));
  for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(state.contains(i), i != 40) << i;
  EXPECT_EQ(state.at(int64_t{99}).as_int(), 99 * 99);
}

TEST(StateDictTest, SaysWhatItFoundInsteadOfWhatWasAskedFor) {
  const StateDict state = {{"n", 1}};
  EXPECT_THAT([&] { (void)state.at("n").as_string(); }, ThrowsError(Errc::kMismatch, HasSubstr("expected string, found int")));
  EXPECT_THAT([&] { (void)state.at("m"); }, ThrowsError(Errc::kNotFound, HasSubstr("no entry 'm'")));
}

TEST(StateDictTest, EqualComparesBitsKindsAndOrder) {
  const at::Tensor tensor = torch::tensor({1.0F, NAN});
  const StateDict state = {{"t", tensor}, {"x", 0.0}};
  EXPECT_TRUE(equal(state, StateDict{{"t", tensor.clone()}, {"x", 0.0}})) << "two NaN of the same bits are equal";
  EXPECT_FALSE(equal(state, StateDict{{"t", tensor}, {"x", -0.0}}));
  EXPECT_FALSE(equal(state, StateDict{{"x", 0.0}, {"t", tensor}})) << "another order";
  EXPECT_FALSE(equal(state, StateDict{{"t", tensor.to(torch::kDouble)}, {"x", 0.0}}));
  EXPECT_FALSE(equal(Value(1), Value(1.0)));
  EXPECT_FALSE(equal(Value(List{{1, 2}}), Value(Tuple{{1, 2}})));
}

TEST(StateDictTest, ACloneSharesNoMemoryButKeepsSharingWithinItself) {
  at::Tensor base = torch::arange(6, torch::kFloat).view({2, 3});
  StateDict state = {{"base", base}, {"row", base[1]}, {"list", List{{base.t()}}}};
  const StateDict copy = clone(state);
  ASSERT_TRUE(equal(state, copy));
  EXPECT_TRUE(copy.at("row").as_tensor().is_alias_of(copy.at("base").as_tensor()));
  EXPECT_TRUE(copy.at("list").as_items()[0].as_tensor().is_alias_of(copy.at("base").as_tensor()));
  base.zero_();
  EXPECT_EQ(copy.at("base").as_tensor()[1][2].item<float>(), 5.0F);
}

}  // namespace
}  // namespace marlin
