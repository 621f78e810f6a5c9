// Ignite's behaviour, row by row: names. The number at a test's end is the row of the case table; a comment says where this project
// differs.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ignite_support.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Optional;
using testing::by_score;
using testing::IgniteCases;
using testing::listed;
using testing::Listed;
using testing::model_state;
using testing::one;
using testing::optimizer_state;
using testing::point;
using testing::RecordingStorage;
using testing::ThrowsError;
using testing::two;

// ---- without a score

TEST_F(IgniteCases, NothingIsLastBeforeAnySaveRows14And19) {
  EXPECT_EQ(in_memory()->last_checkpoint(), "");
  EXPECT_EQ(on_disk()->last_checkpoint(), "");
  EXPECT_EQ(in_memory()->best_checkpoint(), "");
  EXPECT_THAT(files(), IsEmpty());
}

// Differs: the file holds {"model": state}, not the bare state.
TEST_F(IgniteCases, TheOnlyObjectNamesTheFileAndIsKeyedRow20) {
  const auto checkpointer = in_memory();
  EXPECT_THAT(checkpointer->save_objects(one(), point(0, 0)), ElementsAre("model_0.pt"));
  EXPECT_THAT(storage->calls, ElementsAre("put model_0.pt"));
  EXPECT_TRUE(equal(kept("model_0.pt").root, one()));
  EXPECT_EQ(kept("model_0.pt").record.score, std::nullopt) << "no score decided";
  EXPECT_EQ(kept("model_0.pt").record.global_step, 0);
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{0.0, "model_0.pt"}}));
}

TEST_F(IgniteCases, ASecondSaveRemovesTheFirstRow21) {
  const auto checkpointer = in_memory();
  checkpointer->save_objects(one(1.0), point(0, 0));
  EXPECT_THAT(checkpointer->save_objects(one(2.0), point(12, 1234)), ElementsAre("model_1234.pt"));
  EXPECT_THAT(storage->calls, ElementsAre("put model_0.pt", "put model_1234.pt", "remove model_0.pt")) << "the new one first: ignite removes first";
  EXPECT_TRUE(equal(kept("model_1234.pt").root, one(2.0)));
  EXPECT_EQ(kept("model_1234.pt").record.score, std::nullopt) << "no score decided";
  EXPECT_EQ(kept("model_1234.pt").record.global_step, 1234);
  EXPECT_EQ(checkpointer->last_checkpoint(), "model_1234.pt");
}

TEST_F(IgniteCases, SeveralObjectsAreACheckpointRow22) {
  const auto checkpointer = in_memory();
  checkpointer->save_objects(two(1.0), point(0, 0));
  EXPECT_TRUE(equal(kept("checkpoint_0.pt").root, {{"model", model_state(1.0)}, {"optimizer", optimizer_state()}}));
  checkpointer->save_objects(two(2.0), point(12, 1234));
  EXPECT_THAT(storage->calls, ElementsAre("put checkpoint_0.pt", "put checkpoint_1234.pt", "remove checkpoint_0.pt"));
  EXPECT_TRUE(equal(kept("checkpoint_1234.pt").root, two(2.0)));
  EXPECT_EQ(checkpointer->last_checkpoint(), "checkpoint_1234.pt");
}

// ---- {global_step}

BestKOptions by_epoch(const std::string& prefix = "") { return {.filename_prefix = prefix, .global_step = GlobalStepOf::kEpoch}; }

TEST_F(IgniteCases, TheStepMayCountEpochsRows31And32) {
  const auto checkpointer = in_memory(by_epoch());
  checkpointer->save_objects(one(), point(2, 1));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{2.0, "model_2.pt"}}));
  EXPECT_EQ(kept("model_2.pt").record.score, std::nullopt) << "no score decided";
  checkpointer->save_objects(one(), point(12, 1234));
  EXPECT_THAT(storage->calls, ElementsAre("put model_2.pt", "put model_12.pt", "remove model_2.pt"));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{12.0, "model_12.pt"}}));
  EXPECT_EQ(checkpointer->last_checkpoint(), "model_12.pt");
}

TEST_F(IgniteCases, AStepTransformIsAskedRows31And32) {
  const auto checkpointer = in_memory({}, {.global_step_transform = [](const SavePoint& at) { return at.epoch + 1; }});
  checkpointer->save_objects(one(), point(2, 1));
  checkpointer->save_objects(one(), point(12, 1234));
  EXPECT_THAT(storage->calls, ElementsAre("put model_2.pt", "put model_12.pt", "remove model_2.pt"));
}

TEST_F(IgniteCases, APrefixStandsFirstRow33) {
  const auto checkpointer = in_memory(by_epoch("dummytask"));
  checkpointer->save_objects(one(), point(2, 1));
  checkpointer->save_objects(one(), point(12, 1234));
  EXPECT_THAT(storage->calls, ElementsAre("put dummytask_model_2.pt", "put dummytask_model_12.pt", "remove dummytask_model_2.pt"));
}

TEST_F(IgniteCases, TheSameWithSeveralObjectsRow34) {
  for (const std::string prefix : {"", "dummytask"}) {
    storage = std::make_shared<RecordingStorage>();
    const auto checkpointer = in_memory(by_epoch(prefix));
    checkpointer->save_objects(two(), point(2, 1));
    checkpointer->save_objects(two(), point(12, 1234));
    const std::string start = prefix.empty() ? "" : prefix + "_";
    EXPECT_THAT(storage->calls, ElementsAre("put " + start + "checkpoint_2.pt", "put " + start + "checkpoint_12.pt", "remove " + start + "checkpoint_2.pt"));
    EXPECT_TRUE(equal(kept(start + "checkpoint_12.pt").root, two()));
  }
}

TEST_F(IgniteCases, WithinAnEpochTheStepCountsCompletedOnes) {
  const auto checkpointer = in_memory(by_epoch());
  SavePoint within = point(3, 25);
  within.unit = Unit::kStep;
  within.index = 25;
  checkpointer->save_objects(one(), within);
  EXPECT_THAT(storage->calls, ElementsAre("put model_2.pt")) << "the third runs, two are completed";
}

// ---- score

TEST_F(IgniteCases, AScoreHasFourDecimalsRow35) {
  const auto checkpointer = in_memory({}, {.score_function = by_score});
  checkpointer->save_objects(one(), point(1, 10, 0.77));
  checkpointer->save_objects(one(), point(2, 20, 0.78));
  EXPECT_THAT(storage->calls, ElementsAre("put model_0.7700.pt", "put model_0.7800.pt", "remove model_0.7700.pt"));
  EXPECT_THAT(kept("model_0.7800.pt").record.score, Optional(0.78));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{0.78, "model_0.7800.pt"}}));
  EXPECT_EQ(checkpointer->last_checkpoint(), "model_0.7800.pt");
}

TEST_F(IgniteCases, AScoreOfSeveralObjectsRow36) {
  const auto checkpointer = in_memory({}, {.score_function = by_score});
  checkpointer->save_objects(two(), point(1, 10, 0.77));
  checkpointer->save_objects(two(), point(2, 20, 0.78));
  EXPECT_THAT(storage->calls, ElementsAre("put checkpoint_0.7700.pt", "put checkpoint_0.7800.pt", "remove checkpoint_0.7700.pt"));
}

TEST_F(IgniteCases, AScoreHasANameRows37And38) {
  for (const bool several : {false, true}) {
    storage = std::make_shared<RecordingStorage>();
    const auto checkpointer = in_memory({.score_name = "loss"}, {.score_function = by_score});
    checkpointer->save_objects(several ? two() : one(), point(1, 10, -0.77));
    checkpointer->save_objects(several ? two() : one(), point(2, 20, -0.76));
    const std::string name = several ? "checkpoint" : "model";
    EXPECT_THAT(storage->calls, ElementsAre("put " + name + "_loss=-0.7700.pt", "put " + name + "_loss=-0.7600.pt", "remove " + name + "_loss=-0.7700.pt"));
  }
}

TEST_F(IgniteCases, WholeNumbersHaveNoDecimalsRows39To41) {
  const auto epoch = [](const SavePoint& at) -> std::optional<double> { return static_cast<double>(at.epoch + 1); };
  for (const bool several : {false, true}) {
    const std::string name = several ? "checkpoint" : "model";
    storage = std::make_shared<RecordingStorage>();
    const auto unnamed = in_memory({}, {.score_function = epoch});
    unnamed->save_objects(several ? two() : one(), point(1, 10));
    unnamed->save_objects(several ? two() : one(), point(12, 1234));
    EXPECT_THAT(storage->calls, ElementsAre("put " + name + "_1.pt", "put " + name + "_12.pt", "remove " + name + "_1.pt"));
    storage = std::make_shared<RecordingStorage>();
    const auto named = in_memory({.score_name = "epoch"}, {.score_function = epoch});
    named->save_objects(several ? two() : one(), point(1, 10));
    named->save_objects(several ? two() : one(), point(12, 1234));
    EXPECT_THAT(storage->calls, ElementsAre("put " + name + "_epoch=1.pt", "put " + name + "_epoch=12.pt", "remove " + name + "_epoch=1.pt"));
  }
}

TEST_F(IgniteCases, StepAndScoreRow42) {
  const auto checkpointer = in_memory(by_epoch(), {.score_function = by_score});
  checkpointer->save_objects(one(), point(11, 110, 0.77));
  checkpointer->save_objects(one(), point(12, 120, 0.78));
  EXPECT_THAT(storage->calls, ElementsAre("put model_11_0.7700.pt", "put model_12_0.7800.pt", "remove model_11_0.7700.pt"));
}

TEST_F(IgniteCases, AScoreByNameNeedsNoFunctionRows43And44) {
  for (const bool function : {true, false}) {
    storage = std::make_shared<RecordingStorage>();
    BestKHooks hooks;
    if (function) hooks.score_function = get_default_score_fn("val_acc");
    const auto checkpointer = in_memory({.score_name = "val_acc", .global_step = GlobalStepOf::kEpoch}, hooks);
    checkpointer->save_objects(one(), point(11, 110, 0.77, "val_acc"));
    checkpointer->save_objects(one(), point(12, 120, 0.78, "val_acc"));
    EXPECT_THAT(storage->calls, ElementsAre("put model_11_val_acc=0.7700.pt", "put model_12_val_acc=0.7800.pt", "remove model_11_val_acc=0.7700.pt"));
  }
}

TEST_F(IgniteCases, AStepTransformStandsBesideAScoreRow42) {
  const auto checkpointer = in_memory({.score_name = "val_acc"}, {.global_step_transform = [](const SavePoint& at) { return at.epoch + 1; }});
  checkpointer->save_objects(one(), point(11, 110, 0.77, "val_acc"));
  EXPECT_THAT(storage->calls, ElementsAre("put model_11_val_acc=0.7700.pt"));
}

TEST_F(IgniteCases, InfinitiesHaveNamesRow135) {
  const auto checkpointer = in_memory({.n_saved = std::nullopt}, {.score_function = by_score});
  const double infinity = std::numeric_limits<double>::infinity();
  checkpointer->save_objects(one(), point(1, 1, infinity));
  checkpointer->save_objects(one(), point(2, 2, -infinity));
  EXPECT_THAT(storage->calls, ElementsAre("put model_inf.pt", "put model_-inf.pt"));
}

// Ignite names the slash's folder, which is not there; here the slash stands as '_'. A prefix is no metric, so it is refused.
TEST_F(IgniteCases, SlashesInScoreNamesStandAsUnderscoresDiffersFromRow158) {
  const auto checkpointer = on_disk({.score_name = "val/acc"});
  checkpointer->save_objects(one(), point(1, 1, 0.5, "val/acc"));
  EXPECT_THAT(files(), ElementsAre("model_val_acc=0.5000.pt"));
  EXPECT_THAT([&] { (void)on_disk({.filename_prefix = "best/x"}); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("filename_prefix"), HasSubstr("best/x"))));
  EXPECT_THAT([&] { (void)on_disk({.filename_pattern = "best/{name}_{global_step}.{ext}"}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("filename_pattern")));
  EXPECT_THAT(files(), ElementsAre("model_val_acc=0.5000.pt"));
}

// One rule for every number. Ignite: acc=1.0000 by name, acc=1 by a function.
TEST_F(IgniteCases, AWholeMetricIsWrittenPlainlyDiffersFromRow171) {
  in_memory({.score_name = "acc"})->save_objects(one(), point(1, 1, 1.0, "acc"));
  in_memory({.score_name = "acc"}, {.score_function = get_default_score_fn("acc")})->save_objects(one(), point(1, 2, 2.0, "acc"));
  EXPECT_THAT(storage->calls, ElementsAre("put model_acc=1.pt", "put model_acc=2.pt"));
}

// Ignite writes -0.0000, 0.0000 and then -0.0000 again, under the same name.
TEST_F(IgniteCases, ScoresOfOneTextAreTwoFilesDiffersFromRow172) {
  const auto checkpointer = in_memory({.n_saved = std::nullopt}, {.score_function = by_score});
  checkpointer->save_objects(one(), point(1, 1, -0.0));
  checkpointer->save_objects(one(), point(2, 2, 0.00001));
  checkpointer->save_objects(one(), point(3, 3, -0.00001));
  EXPECT_THAT(storage->calls, ElementsAre("put model_0.pt", "put model_0.0000.pt", "put model_0.0000_3.pt"));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{-0.00001, "model_0.0000_3.pt"}, {-0.0, "model_0.pt"}, {0.00001, "model_0.0000.pt"}}));
}

// ---- patterns

struct PatternCase {
  int row;
  std::string given;    // B prefix "best", S score function, N score_name "acc", T step of the epoch
  std::string pattern;  // empty: the default
  std::string name;
};
void PrintTo(const PatternCase& row, std::ostream* stream) { *stream << row.row; }

class IgnitePatterns : public IgniteCases, public ::testing::WithParamInterface<PatternCase> {};

TEST_P(IgnitePatterns, NameOfRow) {
  const auto given = [](char what) { return GetParam().given.find(what) != std::string::npos; };
  BestKOptions options;
  BestKHooks hooks;
  if (given('B')) options.filename_prefix = "best";
  if (given('S')) hooks.score_function = by_score;
  if (given('N')) options.score_name = "acc";
  if (given('T')) options.global_step = GlobalStepOf::kEpoch;
  if (!GetParam().pattern.empty()) options.filename_pattern = GetParam().pattern;
  in_memory(options, hooks)->save_objects(one(), point(12, 203, 0.9999));
  EXPECT_THAT(storage->calls, ElementsAre("put " + GetParam().name));
  on_disk(options, hooks)->save_objects(one(), point(12, 203, 0.9999));
  EXPECT_THAT(files(), ElementsAre(GetParam().name));
}

INSTANTIATE_TEST_SUITE_P(Rows54To75, IgnitePatterns,
                         ::testing::Values(PatternCase{54, "", "", "model_203.pt"}, PatternCase{55, "B", "", "best_model_203.pt"},
                                           PatternCase{56, "S", "", "model_0.9999.pt"}, PatternCase{57, "ST", "", "model_12_0.9999.pt"},
                                           PatternCase{58, "SN", "", "model_acc=0.9999.pt"}, PatternCase{59, "SNT", "", "model_12_acc=0.9999.pt"},
                                           PatternCase{60, "BS", "", "best_model_0.9999.pt"}, PatternCase{62, "BSN", "", "best_model_acc=0.9999.pt"},
                                           PatternCase{63, "BSNT", "", "best_model_12_acc=0.9999.pt"}, PatternCase{64, "", "{name}.{ext}", "model.pt"},
                                           PatternCase{65, "B", "chk-{name}--{global_step}.{ext}", "chk-model--203.pt"},
                                           PatternCase{66, "B", "chk-{filename_prefix}--{name}--{global_step}.{ext}", "chk-best--model--203.pt"},
                                           PatternCase{67, "S", "chk-{name}--{score}.{ext}", "chk-model--0.9999.pt"},
                                           PatternCase{69, "SN", "chk-{name}--{score_name}--{score}.{ext}", "chk-model--acc--0.9999.pt"},
                                           PatternCase{70, "SNT", "chk-{name}-{global_step}-{score_name}-{score}.{ext}", "chk-model-12-acc-0.9999.pt"},
                                           PatternCase{71, "BS", "{filename_prefix}-{name}-{score}.chk", "best-model-0.9999.chk"},
                                           PatternCase{73, "BSN", "{filename_prefix}-{name}-{score_name}-{score}.chk", "best-model-acc-0.9999.chk"},
                                           PatternCase{74, "BSNT", "{global_step}-{filename_prefix}-{name}-{score_name}-{score}", "12-best-model-acc-0.9999"},
                                           PatternCase{75, "BSNT", "SAVE-{name}-{score_name}-{score}.pth", "SAVE-model-acc-0.9999.pth"}),
                         [](const auto& tested) { return std::to_string(tested.param.row); });

// Ignite prints None for what is not there.
TEST_F(IgniteCases, APatternThatAsksForAScoreThereIsNoneOfIsRefusedDiffersFromRow76) {
  EXPECT_THAT([&] { (void)in_memory({.filename_pattern = "{global_step}-chk-{filename_prefix}-{name}-{score_name}-{score}.{ext}"}); },
              ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("filename_pattern"), HasSubstr("score"))));
  EXPECT_THAT([&] { (void)in_memory({.filename_pattern = "{name}-{score_name}-{score}.{ext}"}, {.score_function = by_score}); },
              ThrowsError(Errc::kInvalidArgument, HasSubstr("score_name")));
}

TEST_F(IgniteCases, AnUnknownPlaceholderIsRefusedAtConstructionRows77And175) {
  EXPECT_THAT([&] { (void)in_memory({.filename_pattern = "SAVE-{random_key}.{ext}"}); },
              ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("filename_pattern"), HasSubstr("random_key"))));
  EXPECT_THAT(storage->calls, IsEmpty());
}

TEST_F(IgniteCases, PlaceholdersHaveFormatsRow174) {
  in_memory({.filename_pattern = "{name}_{global_step:05d}.{ext}"})->save_objects(one(), point(1, 7));
  in_memory({.filename_pattern = "{name}_{score:.2f}.{ext}"}, {.score_function = by_score})->save_objects(one(), point(1, 7, 0.9999));
  EXPECT_THAT(storage->calls, ElementsAre("put model_00007.pt", "put model_1.00.pt"));
}

TEST(IgnitePatternSetup, PatternsOfTheFlagsRows78To85) {
  EXPECT_EQ(setup_filename_pattern(), "{filename_prefix}_{name}_{global_step}_{score_name}={score}.{ext}");
  EXPECT_EQ(setup_filename_pattern(false, true, true, true), "{name}_{global_step}_{score_name}={score}.{ext}");
  EXPECT_EQ(setup_filename_pattern(false, false, false, true), "{name}_{global_step}.{ext}");
  EXPECT_EQ(setup_filename_pattern(false, true, false, true), "{name}_{global_step}_{score}.{ext}");
  EXPECT_EQ(setup_filename_pattern(false, true, false, false), "{name}_{score}.{ext}");
  EXPECT_EQ(setup_filename_pattern(false, true, true, false), "{name}_{score_name}={score}.{ext}");
  EXPECT_THAT([] { (void)setup_filename_pattern(false, false, false, false); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("score")));
  EXPECT_THAT([] { (void)setup_filename_pattern(true, false, true, true); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("score")));
}

}  // namespace
}  // namespace marlin
