#include "marlin/sdk/seam.h"

#include <gmock/gmock.h>

#include <new>
#include <stdexcept>
#include <thread>

#include "marlin/sdk/error.h"

namespace marlin {
namespace {

using Phase = Seam::Phase;
using Watch = Seam::Watch;

template <class Body>
Error error_of(const Seam& seam, Body body) {
  try {
    seam.call("save", Watch::kCall, [&] { body(); });
  } catch (const Error& error) {
    return error;
  }
  return {Errc::kInvalidArgument, "nothing was thrown"};
}

TEST(SeamTest, WhatACallReturnsComesThrough) {
  const Seam seam("plugin 'x'", true);
  EXPECT_EQ(seam.call("f", Watch::kNothing, [] { return 7; }), 7);
  int value = 0;
  int& same = seam.call("f", Watch::kCall, [&]() -> int& { return value; });
  EXPECT_EQ(&same, &value);
}

TEST(SeamTest, AnErrorOfAPluginKeepsItsCodeAndIsGivenPluginAndCall) {
  const Error error = error_of(Seam("plugin 'x' (/x.so)", true), [] { throw Error(Errc::kIo, "no room"); });
  EXPECT_EQ(error.code(), Errc::kIo);
  EXPECT_STREQ(error.what(), "plugin 'x' (/x.so): save failed: no room");
}

TEST(SeamTest, AnErrorOfABuiltInPartStaysAsItIs) {
  EXPECT_STREQ(error_of(Seam("checkpointer 'default'"), [] { throw Error(Errc::kIo, "no room"); }).what(), "no room");
}

TEST(SeamTest, AnErrorThatNamesThePluginIsNotGivenItsNameTwice) {
  const Seam outer("plugin 'x'", true);
  const Error error = error_of(outer, [&] { outer.call("inner", Watch::kNothing, [] { throw Error(Errc::kIo, "no room"); }); });
  EXPECT_STREQ(error.what(), "plugin 'x': inner failed: no room");
}

TEST(SeamTest, AnErrorOfWhatAPluginRunsForOthersStaysAsItIs) {
  const Seam seam("plugin 'x'", true);
  try {
    seam.call("train", Watch::kNothing, [] { throw Error(Errc::kTraining, "the loss is not finite"); }, Phase::kShared);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "the loss is not finite");
  }
}

TEST(SeamTest, OtherExceptionsBecomeErrorsOnOneLine) {
  const Seam seam("plugin 'x'", true);
  EXPECT_STREQ(error_of(seam, [] { throw std::runtime_error("two\nlines"); }).what(), "plugin 'x': save failed: two\\nlines");
  EXPECT_STREQ(error_of(seam, [] { throw std::bad_alloc(); }).what(), "plugin 'x': save failed: std::bad_alloc");
  EXPECT_STREQ(error_of(seam, [] { throw 7; }).what(), "plugin 'x': save failed with an exception of type int, which is no std::exception");
  EXPECT_EQ(error_of(seam, [] { throw 7; }).code(), Errc::kPlugin);
}

TEST(SeamTest, AnExceptionThatSaysNothingIsNamedByItsType) {
  const Seam plugin("plugin 'x'", true), built_in("checkpointer 'default'");
  EXPECT_STREQ(error_of(plugin, [] { throw std::runtime_error(""); }).what(), "plugin 'x': save failed with an exception of type std::runtime_error, which says nothing");
  const Error error = error_of(plugin, [] { throw Error(Errc::kIo, ""); });
  EXPECT_STREQ(error.what(), "plugin 'x': save failed with an exception of type marlin::Error, which says nothing");
  EXPECT_EQ(error.code(), Errc::kIo);
  EXPECT_STREQ(error_of(built_in, [] { throw Error(Errc::kIo, ""); }).what(), "checkpointer 'default': save failed with an exception of type marlin::Error, which says nothing");
}

TEST(SeamTest, TheInnermostCallOfAThreadIsKnownWhileItRuns) {
  const Seam outer("plugin 'outer'", true), inner("checkpointer 'inner'");
  EXPECT_EQ(Seam::innermost(), nullptr);
  outer.call("train", Watch::kNothing, [&] {
    inner.call("save", Watch::kNothing, [&] {
      const Seam::Frame* frame = Seam::innermost();
      ASSERT_NE(frame, nullptr);
      EXPECT_EQ(frame->seam, &inner);
      EXPECT_STREQ(frame->call, "save");
      EXPECT_EQ(frame->phase, Phase::kMaking);
      ASSERT_NE(frame->outer, nullptr);
      EXPECT_EQ(frame->outer->seam, &outer);
      std::thread([] { EXPECT_EQ(Seam::innermost(), nullptr) << "another thread is in no call"; }).join();
    }, Phase::kMaking);
    EXPECT_EQ(Seam::innermost()->seam, &outer);
  });
  EXPECT_THROW(outer.call("f", Watch::kCall, [] { throw 1; }), Error);
  EXPECT_EQ(Seam::innermost(), nullptr) << "a call that throws is over";
}

TEST(SeamTest, OnlyWatchedCallsOfPluginsAreSeenByTheWatch) {
  const Seam plugin("plugin 'x'", true), built_in("checkpointer 'default'");
  const auto running = [](const Seam& seam, Watch watch) { return seam.call("save", watch, [&] { return seam.running(); }); };
  ASSERT_TRUE(running(plugin, Watch::kCall).has_value());
  EXPECT_STREQ(running(plugin, Watch::kCall)->call, "save");
  EXPECT_GE(running(plugin, Watch::kCall)->elapsed.count(), 0);
  EXPECT_FALSE(running(plugin, Watch::kNothing).has_value());
  EXPECT_FALSE(running(built_in, Watch::kCall).has_value());
  EXPECT_FALSE(plugin.running().has_value());
}

}  // namespace
}  // namespace marlin
