#include "marlin/checkpointers/names.h"

#include <gtest/gtest.h>

#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;
using Form = CheckpointNames::Form;

const CheckpointNames& names() {
  static const CheckpointNames kNames("checkpoint", "pt");
  return kNames;
}

TEST(CheckpointNamesTest, EachFormHasItsName) {
  EXPECT_EQ(names().name(Form::kEpoch, 0), "checkpoint_0.pt");
  EXPECT_EQ(names().name(Form::kStep, 115), "checkpoint_step_115.pt");
  EXPECT_EQ(names().name(Form::kSuspect, 7), "checkpoint_suspect_7.pt");
  EXPECT_EQ(names().name(Form::kModel, 4), "checkpoint_model_4.pt");
}

TEST(CheckpointNamesTest, WhatIsWrittenIsReadBack) {
  for (const char* prefix : {"checkpoint", "a", "model", "run_7", "step", "my.run", "x_model_y"}) {
    for (const char* extension : {"pt", "tar", "pt2", "a.b"}) {
      const CheckpointNames of(prefix, extension);
      for (const Form form : {Form::kEpoch, Form::kStep, Form::kSuspect, Form::kModel}) {
        for (const int64_t index : {int64_t{0}, int64_t{9}, int64_t{10}, INT64_MAX}) {
          const auto parsed = of.parse(of.name(form, index));
          ASSERT_TRUE(parsed) << of.name(form, index);
          EXPECT_EQ(parsed->form, form);
          EXPECT_EQ(parsed->index, index);
        }
      }
    }
  }
}

TEST(CheckpointNamesTest, OnlyAWholeNameCounts) {
  for (const char* other : {"checkpoint_.pt", "checkpoint_x.pt", "checkpoint_1", "checkpoint_1.pt2", "checkpoint_1.opt", "checkpoint_1pt", "xcheckpoint_1.pt",
                            "checkpoints_1.pt", "checkpointing_7.pt", "checkpoint_1.pt.tmp", "checkpoint_4.tmp.pt", "checkpoint_1 .pt", "checkpoint_1_2.pt",
                            "checkpoint_best.pt", "checkpoint_model_.pt", "checkpoint_model_model_1.pt", "checkpoint_step_.pt", "checkpoint__1.pt",
                            ".checkpoint_1.pt", "checkpoint.pt", "1.pt", "", ".pt", "checkpoint", "receipt"}) {
    EXPECT_FALSE(names().parse(other)) << other;
  }
}

TEST(CheckpointNamesTest, NumbersAreAsTheyAreWritten) {
  for (const char* other : {"checkpoint_-1.pt", "checkpoint_+1.pt", "checkpoint_01.pt", "checkpoint_00.pt", "checkpoint_1e3.pt", "checkpoint_0x1.pt",
                            "checkpoint_9223372036854775808.pt", "checkpoint_1.0.pt"}) {
    EXPECT_FALSE(names().parse(other)) << other;
  }
}

// The prefix of another checkpointer may be the beginning of this one's, and the other way round.
TEST(CheckpointNamesTest, PrefixesThatBeginAlikeDoNotMeet) {
  const CheckpointNames longer("checkpoint_best", "pt");
  for (const Form form : {Form::kEpoch, Form::kStep, Form::kSuspect, Form::kModel}) {
    EXPECT_FALSE(names().parse(longer.name(form, 3)));
    EXPECT_FALSE(longer.parse(names().name(form, 3)));
  }
}

TEST(CheckpointNamesTest, NamesThatCouldBeTakenForAnothersAreRefused) {
  for (const char* prefix : {"checkpoint_model", "checkpoint_step", "checkpoint_suspect", "_model"}) {
    EXPECT_THAT([&] { CheckpointNames(prefix, "pt"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("must not end in"))) << prefix;
  }
  EXPECT_THAT([] { CheckpointNames("", "pt"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.file_prefix")));
  EXPECT_THAT([] { CheckpointNames("a/b", "pt"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("path separator")));
  EXPECT_THAT([] { CheckpointNames("a\\b", "pt"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("path separator")));
  EXPECT_THAT([] { CheckpointNames(std::string("a\0b", 3), "pt"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.file_prefix")));
  EXPECT_THAT([] { CheckpointNames("a", ""); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer.file_ext")));
  EXPECT_THAT([] { CheckpointNames("a", "p/t"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("path separator")));
  EXPECT_THAT([] { CheckpointNames("a", ".pt"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("without the dot")));
}

}  // namespace
}  // namespace marlin
