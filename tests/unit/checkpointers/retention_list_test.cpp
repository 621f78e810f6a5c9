// What a list of the best, or of the newest, keeps.
#include "marlin/checkpointers/retention_list.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::ThrowsError;
using Entry = RetentionList::Entry;
using Order = RetentionRules::Order;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

RetentionRules best(std::optional<int64_t> n, bool or_equal = false) { return {.order = Order::kScore, .n_saved = n, .greater_or_equal = or_equal}; }
RetentionRules newest(std::optional<int64_t> n) { return {.order = Order::kAge, .n_saved = n}; }

TEST(RetentionListTest, FewerThanOneIsRefusedByTheOptionsName) {
  EXPECT_THAT([] { RetentionList list(best(0)); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("n_saved"), HasSubstr("0"))));
  EXPECT_THAT([] { RetentionList list(newest(-3), "key_metric_n_saved"); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("key_metric_n_saved"), HasSubstr("-3"))));
}

TEST(RetentionListTest, AnEmptyListHasNothing) {
  RetentionList list(best(2));
  EXPECT_THAT(list.entries(), IsEmpty());
  EXPECT_EQ(list.last(), nullptr);
  EXPECT_EQ(list.best(), nullptr);
  EXPECT_EQ(list.find("a"), nullptr);
  EXPECT_FALSE(list.remove("a"));
}

TEST(RetentionListTest, ByScoreTheWorstLeaves) {
  RetentionList list(best(2));
  EXPECT_THAT(list.add(0.5, "a"), IsEmpty());
  EXPECT_THAT(list.add(0.9, "b"), IsEmpty());
  EXPECT_FALSE(list.wants(0.5)) << "as good is not better";
  EXPECT_FALSE(list.wants(0.4));
  EXPECT_TRUE(list.wants(0.6));
  EXPECT_THAT(list.add(0.6, "c"), ElementsAre("a"));
  EXPECT_THAT(list.entries(), ElementsAre(Entry{0.6, "c"}, Entry{0.9, "b"}));
  EXPECT_EQ(list.last()->name, "c");
  EXPECT_EQ(list.best()->name, "b");
}

TEST(RetentionListTest, AsGoodAsTheWorstEntersIfAsked) {
  RetentionList list(best(1, true));
  list.add(0.5, "a");
  EXPECT_TRUE(list.wants(0.5));
  EXPECT_FALSE(list.wants(0.4999));
  EXPECT_THAT(list.add(0.5, "b"), ElementsAre("a"));
}

TEST(RetentionListTest, OfEqualScoresTheOldestLeavesAndTheNewestIsBest) {
  RetentionList list(best(3));
  for (const char* name : {"a", "b", "c"}) list.add(1.0, name);
  EXPECT_EQ(list.best()->name, "c");
  EXPECT_THAT(list.add(2.0, "d"), ElementsAre("a"));
  EXPECT_THAT(list.add(2.0, "e"), ElementsAre("b"));
  EXPECT_THAT(list.entries(), ElementsAre(Entry{1.0, "c"}, Entry{2.0, "d"}, Entry{2.0, "e"}));
}

TEST(RetentionListTest, TheNewOneNeverLeaves) {
  RetentionList list(best(1));
  list.add(0.9, "a");
  EXPECT_THAT(list.add(0.1, "b"), ElementsAre("a")) << "unasked";
  EXPECT_THAT(list.entries(), ElementsAre(Entry{0.1, "b"}));
}

TEST(RetentionListTest, NaNIsNeverWanted) {
  for (const RetentionRules& rules : {best(2), best(std::nullopt), best(2, true)}) {
    RetentionList list(rules);
    EXPECT_FALSE(list.wants(kNan));
    list.add(0.5, "a");
    EXPECT_FALSE(list.wants(kNan));
  }
}

TEST(RetentionListTest, InfinitiesAreOrdered) {
  RetentionList list(best(2));
  EXPECT_TRUE(list.wants(-kInfinity));
  list.add(-kInfinity, "low");
  list.add(kInfinity, "high");
  EXPECT_THAT(list.add(0.0, "middle"), ElementsAre("low"));
  EXPECT_FALSE(list.wants(-kInfinity));
  EXPECT_TRUE(list.wants(kInfinity));
  EXPECT_EQ(list.best()->name, "high");
}

TEST(RetentionListTest, ByAgeTheOldestLeavesWhateverItsPriority) {
  RetentionList list(newest(2));
  list.add(100, "a");
  list.add(200, "b");
  EXPECT_TRUE(list.wants(10));
  EXPECT_THAT(list.add(10, "c"), ElementsAre("a"));
  EXPECT_THAT(list.entries(), ElementsAre(Entry{200, "b"}, Entry{10, "c"}));
  EXPECT_EQ(list.last()->name, "c");
}

TEST(RetentionListTest, WithoutALimitAllStay) {
  for (const RetentionRules& rules : {best(std::nullopt), newest(std::nullopt)}) {
    RetentionList list(rules);
    for (int i = 0; i < 50; ++i) {
      EXPECT_TRUE(list.wants(-i));
      EXPECT_THAT(list.add(-i, std::to_string(i)), IsEmpty());
    }
    EXPECT_THAT(list.entries(), SizeIs(50));
  }
}

TEST(RetentionListTest, AListedNameGetsTheNewPriority) {
  RetentionList list(best(2));
  list.add(0.5, "a");
  list.add(0.6, "b");
  EXPECT_THAT(list.add(0.7, "a"), IsEmpty());
  EXPECT_THAT(list.entries(), ElementsAre(Entry{0.6, "b"}, Entry{0.7, "a"}));
  EXPECT_EQ(list.last()->name, "a");
  RetentionList aged(newest(2));
  aged.add(1, "a");
  aged.add(2, "b");
  EXPECT_THAT(aged.add(1, "a"), IsEmpty());
  EXPECT_THAT(aged.add(3, "c"), ElementsAre("b")) << "a counts as newer";
}

TEST(RetentionListTest, WhatIsTakenOutIsGone) {
  RetentionList list(best(2));
  list.add(0.5, "a");
  list.add(0.6, "b");
  EXPECT_TRUE(list.remove("b"));
  EXPECT_FALSE(list.remove("b"));
  EXPECT_EQ(list.last(), nullptr) << "the one that entered last has left";
  EXPECT_EQ(list.best()->name, "a");
  EXPECT_TRUE(list.wants(0.1)) << "there is room";
  list.reset();
  EXPECT_THAT(list.entries(), IsEmpty());
  EXPECT_EQ(list.best(), nullptr);
}

TEST(RetentionListTest, AStateIsTakenAsItWas) {
  RetentionList list(best(3));
  list.add(0.5, "a");
  list.add(kInfinity, "b");
  list.add(0.6, "c");
  RetentionList other(best(3));
  other.load_state(list.state());
  EXPECT_EQ(other.entries(), list.entries());
  EXPECT_EQ(other.last()->name, "c");
  EXPECT_TRUE(equal(other.state(), list.state()));
}

TEST(RetentionListTest, IgnitesStateIsTaken) {
  RetentionList list(best(2));
  list.add(0.1, "before");
  list.load_state({{"_saved", List{{Tuple{{Value(3), Value("model_3.pt")}}, Tuple{{Value(0.5), Value("model_0.5000.pt")}}, Tuple{{Value(kNan), Value("model_nan.pt")}}}}}});
  EXPECT_THAT(list.entries(), ElementsAre(Entry{0.5, "model_0.5000.pt"}, Entry{3.0, "model_3.pt"})) << "NaN is left out, and all is in order";
}

TEST(RetentionListTest, TooManyLeaveWithTheNextOneLowestFirst) {
  RetentionList all(best(std::nullopt));
  for (const double score : {0.3, 0.1, 0.2, 0.4}) all.add(score, std::to_string(score).substr(0, 3));
  RetentionList list(best(2));
  list.load_state(all.state());
  EXPECT_THAT(list.entries(), SizeIs(4));
  EXPECT_THAT(list.add(0.5, "0.5"), ElementsAre("0.1", "0.2", "0.3"));
  EXPECT_THAT(list.entries(), ElementsAre(Entry{0.4, "0.4"}, Entry{0.5, "0.5"}));
}

TEST(RetentionListTest, AWrongStateChangesNothing) {
  RetentionList list(best(2));
  list.add(0.5, "a");
  const auto entries = [](Value entry) { return StateDict{{"_saved", List{{Value(Tuple{{Value(0.1), Value("b")}}), std::move(entry)}}}}; };
  for (const StateDict& state : {StateDict{}, StateDict{{"_saved", "text"}}, entries(Value()), entries(Tuple{{Value(1.0)}}), entries(Tuple{{Value(1.0), Value(2.0)}}),
                                 entries(Tuple{{Value("c"), Value("c")}}), entries(Tuple{{Value(1.0), Value("c"), Value(3)}})}) {
    EXPECT_THAT([&] { list.load_state(state); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("_saved")));
    EXPECT_THAT(list.entries(), ElementsAre(Entry{0.5, "a"}));
  }
}

TEST(RetentionListTest, TenThousandAreRight) {
  RetentionList list(best(100));
  int64_t entered = 0, left = 0;
  for (int64_t i = 0; i < 10000; ++i) {
    const double score = static_cast<double>(i * 7919 % 10007);  // all different
    if (!list.wants(score)) continue;
    ++entered;
    left += static_cast<int64_t>(list.add(score, std::to_string(i)).size());
  }
  ASSERT_THAT(list.entries(), SizeIs(100));
  EXPECT_EQ(entered - left, 100);
  std::vector<double> scores;
  for (int64_t i = 0; i < 10000; ++i) scores.push_back(static_cast<double>(i * 7919 % 10007));
  std::sort(scores.begin(), scores.end());
  for (size_t i = 0; i < 100; ++i) EXPECT_EQ(list.entries()[i].priority, scores[9900 + i]);
}

}  // namespace
}  // namespace marlin
