// Promise: a run with max_seconds stops while there is time to save, by what saves and steps were measured to cost.
#include "trainer/time_limit.h"

#include <gtest/gtest.h>

#include <limits>

namespace marlin {
namespace {

using Time = TimeLimit::Time;
using Work = TimeLimit::Work;

struct Fixture : ::testing::Test {
  Time now = Time() + std::chrono::hours(5);
  TimeLimit make(std::optional<double> max_seconds, size_t checkpointers = 1) {
    return {max_seconds, now, [this] { return now; }, checkpointers};
  }
  void pass(double seconds) { now += std::chrono::duration_cast<Time::duration>(std::chrono::duration<double>(seconds)); }
};
using TimeLimitTest = Fixture;

TEST_F(TimeLimitTest, WithoutOneItIsNeverUp) {
  const TimeLimit limit = make({});
  pass(1e9);
  EXPECT_FALSE(limit.enabled());
  EXPECT_FALSE(limit.is_up());
}

TEST_F(TimeLimitTest, LeavesRoomForAStepAndASave) {
  TimeLimit limit = make(100.0);
  limit.expect_saves(10.0);
  for (int step = 0; !limit.is_up(); ++step) {
    ASSERT_LT(step, 1000);
    pass(1.0);
    limit.note(Work::kStep, false);
  }
  EXPECT_GE(limit.seconds_left(), 11.0) << "another step and the save";
  EXPECT_LE(limit.seconds_left(), 14.0) << "but not much more";
}

TEST_F(TimeLimitTest, MeasuredSavesReplaceWhatWasExpected) {
  TimeLimit limit = make(100.0, 2);
  limit.expect_saves(20.0);
  EXPECT_DOUBLE_EQ(limit.save_seconds(), 20.0);
  limit.note_save(0, 30.0);
  EXPECT_DOUBLE_EQ(limit.save_seconds(), 40.0) << "slower at once";
  limit.note_save(0, 1.0);
  EXPECT_DOUBLE_EQ(limit.save_seconds(), 31.0) << "faster only by and by";
}

TEST_F(TimeLimitTest, ASaveInFlightHasToEndFirst) {
  TimeLimit limit = make(100.0);
  limit.expect_saves(10.0);
  pass(82.0);
  limit.resume();
  EXPECT_FALSE(limit.is_up());
  limit.note(Work::kStep, true);
  EXPECT_TRUE(limit.is_up());
}

TEST_F(TimeLimitTest, WhatIsNoStepDoesNotCountAsALongOne) {
  TimeLimit limit = make(100.0);
  pass(60.0);
  limit.resume();
  pass(1.0);
  limit.note(Work::kStep, false);
  EXPECT_FALSE(limit.is_up());
}

TEST_F(TimeLimitTest, ManyFastBatchesDoNotHideSlowSteps) {
  TimeLimit limit = make(1000.0);
  pass(10.0);
  limit.note(Work::kStep, false);
  for (int batch = 0; batch < 2000; ++batch) {
    pass(0.01);
    limit.note(Work::kValBatch, false);
  }
  pass(1000.0 - 30.0 - 15.0);
  EXPECT_TRUE(limit.is_up()) << "15 s are left, a step takes 10 and may take twice that";
}

TEST_F(TimeLimitTest, AnEndlessTimeIsNeverUp) {
  for (const double seconds : {1e10, 1e300, std::numeric_limits<double>::infinity()}) {
    TimeLimit limit = make(seconds);
    limit.resume();
    limit.note(Work::kStep, true);
    EXPECT_FALSE(limit.is_up()) << seconds;
  }
}

TEST_F(TimeLimitTest, OnceUpItStaysUp) {
  TimeLimit limit = make(100.0);
  limit.expect_saves(50.0);
  pass(60.0);
  EXPECT_TRUE(limit.is_up());
  for (int i = 0; i < 40; ++i) limit.note_save(0, 0.0);
  limit.resume();
  EXPECT_TRUE(limit.is_up());
}

}  // namespace
}  // namespace marlin
