#include "marlin/sdk/checkpointer.h"

#include <gmock/gmock.h>

#include <stdexcept>

#include "marlin/sdk/error.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::ThrowsError;
using ::testing::IsEmpty;

// Counts what reaches the hooks.
class Counting : public AbstractCheckpointer {
 public:
  int saves = 0, models = 0, closes = 0;
  bool wanted = true;

 protected:
  bool is_due(const SavePoint&) const override { return wanted; }
  std::vector<std::string> do_save(const Checkpoint&, const SavePoint& point) override {
    ++saves;
    return {"place " + std::to_string(point.index)};
  }
  std::vector<std::string> do_save_model(const StateDict&, int64_t) override {
    ++models;
    return {"model"};
  }
  Checkpoint do_load(const LoadRequest&) override { return {}; }
  void do_close() override { ++closes; }
};

struct OfItsOwn {};

class Throwing : public AbstractCheckpointer {
 protected:
  std::vector<std::string> do_save(const Checkpoint&, const SavePoint&) override { throw OfItsOwn{}; }
  std::vector<std::string> do_save_model(const StateDict&, int64_t) override { throw std::runtime_error("disk on fire"); }
  Checkpoint do_load(const LoadRequest&) override { throw Error(Errc::kCorrupt, "broken file"); }
};

TEST(AbstractCheckpointerTest, IsDueByPeriodAndForceBeatsThePeriod) {
  Counting checkpointer;
  checkpointer.set_schedule({true, 3});
  EXPECT_THAT(checkpointer.save({}, 0), ElementsAre("place 0"));
  EXPECT_THAT(checkpointer.save({}, 1), IsEmpty());
  EXPECT_THAT(checkpointer.save({}, 1, /*force=*/true), ElementsAre("place 1"));
  EXPECT_THAT(checkpointer.save({}, 3), ElementsAre("place 3"));
  EXPECT_EQ(checkpointer.saves, 3);
}

TEST(AbstractCheckpointerTest, TheMasterSwitchBeatsForce) {
  Counting checkpointer;
  checkpointer.set_schedule({false, 1});
  EXPECT_THAT(checkpointer.save({}, 0, true), IsEmpty());
  EXPECT_THAT(checkpointer.save({}, SavePoint{.force = true}), IsEmpty());
  EXPECT_THAT(checkpointer.save_model({}, 0), IsEmpty());
  EXPECT_EQ(checkpointer.saves + checkpointer.models, 0);
}

TEST(AbstractCheckpointerTest, TheHookIsAskedOnlyWhenThePeriodAgrees) {
  Counting checkpointer;
  checkpointer.wanted = false;
  EXPECT_FALSE(checkpointer.due({.index = 0}));
  EXPECT_TRUE(checkpointer.due({.index = 0, .force = true}));
}

TEST(AbstractCheckpointerTest, ASaveThatWasAskedForByPointDoesNotAskAgain) {
  Counting checkpointer;
  checkpointer.set_schedule({true, 5});
  EXPECT_THAT(checkpointer.save({}, SavePoint{.index = 2}), ElementsAre("place 2"));
}

TEST(AbstractCheckpointerTest, RefusesAPeriodBelowOneAndKeepsTheOldOne) {
  Counting checkpointer;
  EXPECT_THAT([&] { checkpointer.set_schedule({true, 0}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("period: must be at least 1")));
  EXPECT_THAT([&] { checkpointer.set_schedule({true, -2}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("-2")));
  EXPECT_EQ(checkpointer.schedule().period, 1);
}

TEST(AbstractCheckpointerTest, RefusesANegativeIndex) {
  Counting checkpointer;
  EXPECT_THAT([&] { (void)checkpointer.save({}, -1); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("at least 0, got -1")));
  EXPECT_THAT([&] { (void)checkpointer.save_model({}, -1); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("-1")));
}

TEST(AbstractCheckpointerTest, TurnsWhateverAHookThrowsIntoAnErrorThatNamesItAndTheCall) {
  Throwing checkpointer;
  checkpointer.set_name("mine");
  EXPECT_THAT([&] { (void)checkpointer.save({}, 0); }, ThrowsError(Errc::kPlugin, AllOf(HasSubstr("'mine'"), HasSubstr("save failed with an exception of type marlin::(anonymous namespace)::OfItsOwn, which is no std::exception"))));
  EXPECT_THAT([&] { (void)checkpointer.save_model({}, 0); }, ThrowsError(Errc::kPlugin, HasSubstr("save_model failed: disk on fire")));
  EXPECT_THAT([&] { (void)checkpointer.load(); }, ThrowsError(Errc::kCorrupt, HasSubstr("broken file"))) << "an Error of ours keeps its code";
}

TEST(AbstractCheckpointerTest, ClosesOnce) {
  Counting checkpointer;
  checkpointer.close();
  checkpointer.close();
  EXPECT_EQ(checkpointer.closes, 1);
}

}  // namespace
}  // namespace marlin
