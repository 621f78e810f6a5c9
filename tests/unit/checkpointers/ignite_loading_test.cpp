// Ignite's behaviour, row by row: loading. The number at a test's end is the row of the case table; a comment says where this project
// differs.
#include <gtest/gtest.h>

#include <stdexcept>

#include "ignite_support.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/checkpointers/load_objects.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
using ::testing::UnorderedElementsAre;
using testing::IgniteCases;
using testing::model_state;
using testing::one;
using testing::optimizer_state;
using testing::point;
using testing::RecordingLogger;
using testing::ThrowsError;
using testing::two;

// A state of any kind that keeps what it takes.
struct Taking {
  StateDict state;
  std::vector<std::string> objections;
  [[nodiscard]] LoadTarget target() {
    return state_target([this](const StateDict& given) { state = given; }, [this](const StateDict&) { return objections; });
  }
};

CommitRecord of_kind(const std::string& kind) {
  CommitRecord record;
  record.kind = kind;
  return record;
}

// ---- what a checkpointer saved

TEST_F(IgniteCases, TheLastIsAPathThatLoadsRow117) {
  const auto checkpointer = on_disk({.filename_prefix = "PREFIX"});
  checkpointer->save_objects(one(3.0), point(0, 1));
  EXPECT_THAT(checkpointer->last_checkpoint(), StartsWith(file("PREFIX")));
  const StateDict model = model_state(0.0);
  EXPECT_THAT(load_objects({{"model", tensors_target(model)}}, std::filesystem::path(checkpointer->last_checkpoint())), IsEmpty());
  EXPECT_TRUE(equal(model, model_state(3.0)));
}

TEST_F(IgniteCases, ReloadFindsAFileByItsPartsRow118) {
  const auto checkpointer = on_disk({.filename_prefix = "PREFIX", .n_saved = 2});
  checkpointer->save_objects(one(3.0), point(0, 1));
  checkpointer->save_objects(one(4.0), point(0, 2));
  const StateDict model = model_state(0.0);
  EXPECT_THAT(checkpointer->reload_objects({{"model", tensors_target(model)}}, {.name = "model", .global_step = 1}), IsEmpty());
  EXPECT_TRUE(equal(model, model_state(3.0)));
  EXPECT_THAT([&] { checkpointer->reload_objects({{"model", tensors_target(model)}}, {.name = "model", .global_step = 7}); },
              ThrowsError(Errc::kNotFound, HasSubstr("PREFIX_model_7.pt")));
}

TEST_F(IgniteCases, ReloadFindsAFileByItsScoreRow118) {
  const auto checkpointer = on_disk({.score_name = "acc"});
  checkpointer->save_objects(two(3.0), point(1, 1, 0.25, "acc"));
  const StateDict model = model_state(0.0);
  checkpointer->reload_objects({{"model", tensors_target(model)}}, {.score_name = "acc", .score = 0.25});
  EXPECT_TRUE(equal(model, model_state(3.0)));
}

// Ignite's wants a disk saver.
TEST_F(IgniteCases, ReloadWorksWithAnyStorageDiffersFromRow8) {
  const auto checkpointer = in_memory();
  checkpointer->save_objects(one(3.0), point(0, 1));
  const StateDict model = model_state(0.0);
  checkpointer->reload_objects({{"model", tensors_target(model)}}, {.name = "model", .global_step = 1});
  EXPECT_TRUE(equal(model, model_state(3.0)));
}

// ---- by name

TEST_F(IgniteCases, NothingToLoadIsRefusedRow120) {
  EXPECT_THAT([] { load_objects(LoadTargets::Named{}, one()); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("load")));
  EXPECT_THAT([] { CheckpointLoader({.load_path = "x.pt"}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("load_dict")));
  Taking taking;
  EXPECT_THAT([&] { CheckpointLoader({.load_dict = {{"a", taking.target()}}}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("load_path")));
}

TEST_F(IgniteCases, AMissingNameIsNamedRow121) {
  const StateDict model = model_state(0.0);
  Taking other;
  EXPECT_THAT([&] { load_objects({{"model", tensors_target(model)}, {"another", other.target()}}, StateDict{}); },
              ThrowsError(Errc::kMismatch, AllOf(HasSubstr("'model'"), HasSubstr("'another'"))));
}

TEST_F(IgniteCases, AnObjectIsLoadedByNameRow122) {
  const StateDict model = model_state(0.0);
  EXPECT_THAT(load_objects({{"model", tensors_target(model)}}, one(3.0)), IsEmpty());
  EXPECT_TRUE(equal(model, model_state(3.0)));
}

TEST_F(IgniteCases, NestedListsAndDictsAreLoadedLeafByLeafRow123) {
  const StateDict a = model_state(0.0), b = model_state(0.0), c = model_state(0.0);
  Taking d;
  const LoadTargets::Named targets{
      {"models", LoadTargets::Listed{tensors_target(a), LoadTargets::Named{{"deep", tensors_target(b)}, {"list", LoadTargets::Listed{tensors_target(c)}}}}},
      {"others", LoadTargets::Named{{"d", d.target()}}}};
  const StateDict states{
      {"models", List{{Value(model_state(1.0)), Value(StateDict{{"deep", model_state(2.0)}, {"list", List{{Value(model_state(3.0))}}}})}}},
      {"others", StateDict{{"d", optimizer_state(0.5)}}}};
  load_objects(targets, states);
  EXPECT_TRUE(equal(a, model_state(1.0)));
  EXPECT_TRUE(equal(b, model_state(2.0)));
  EXPECT_TRUE(equal(c, model_state(3.0)));
  EXPECT_TRUE(equal(d.state, optimizer_state(0.5)));
}

TEST_F(IgniteCases, APathAnArchiveAndADictLoadRow124) {
  on_disk()->save_objects(one(3.0), point(1, 1));
  const std::filesystem::path path = folder / "model_1.pt";
  for (int how = 0; how < 3; ++how) {
    const StateDict model = model_state(0.0);
    const LoadTargets::Named targets{{"model", tensors_target(model)}};
    if (how == 0) load_objects(targets, path);
    if (how == 1) load_objects(targets, read_archive(path));
    if (how == 2) load_objects(targets, read_archive(path).root);
    EXPECT_TRUE(equal(model, model_state(3.0))) << how;
  }
  EXPECT_THAT([&] { load_objects({{"model", tensors_target(model_state())}}, folder / "model_2.pt"); }, ThrowsError(Errc::kNotFound, HasSubstr("model_2.pt")));
  testing::damage(path);
  EXPECT_THAT([&] { load_objects({{"model", tensors_target(model_state())}}, path); }, ThrowsError(Errc::kCorrupt, HasSubstr("model_1.pt")));
}

TEST_F(IgniteCases, APartOfSeveralIsLoadedRow125) {
  on_disk()->save_objects(two(3.0), point(1, 1));
  const StateDict model = model_state(0.0);
  load_objects({{"model", tensors_target(model)}}, folder / "checkpoint_1.pt");
  EXPECT_TRUE(equal(model, model_state(3.0)));
  Taking optimizer;
  load_objects({{"optimizer", optimizer.target()}}, folder / "checkpoint_1.pt");
  EXPECT_TRUE(equal(optimizer.state, optimizer_state()));
}

// ---- bare states

TEST_F(IgniteCases, ABareStateLoadsIntoASingleTargetRow126) {
  write_archive(folder / "bare.pt", model_state(3.0), of_kind("model"));
  const StateDict model = model_state(0.0);
  load_objects({{"model", tensors_target(model)}}, folder / "bare.pt");
  EXPECT_TRUE(equal(model, model_state(3.0)));
  Taking other;
  EXPECT_THAT([&] { load_objects({{"model", tensors_target(model)}, {"optimizer", other.target()}}, folder / "bare.pt"); },
              ThrowsError(Errc::kMismatch, HasSubstr("optimizer")));
}

TEST_F(IgniteCases, ABareStateWithoutARecordLoadsIntoASingleTargetRow126) {
  const StateDict model = model_state(0.0);
  load_objects({{"model", tensors_target(model)}}, Archive{model_state(3.0), std::nullopt, Verified::kChecksums});
  EXPECT_TRUE(equal(model, model_state(3.0)));
  load_objects({{"model", tensors_target(model)}}, Archive{one(4.0), std::nullopt, Verified::kChecksums});
  EXPECT_TRUE(equal(model, model_state(4.0))) << "the keys that are asked for are there";
}

TEST_F(IgniteCases, NotStrictPassesOverNamesRow128) {
  StateDict wider = model_state(3.0);
  wider.set("scale", torch::ones({1}));
  const StateDict other{{"weight", torch::zeros({1, 1})}, {"shift", torch::zeros({1})}};
  const LoadTargets::Named targets{{"model", tensors_target(other)}};
  EXPECT_THAT([&] { load_objects(targets, {{"model", wider}}); },
              ThrowsError(Errc::kMismatch, AllOf(HasSubstr("shift"), HasSubstr("scale"), HasSubstr("bias"))));
  EXPECT_EQ(other.at("weight").as_tensor().item<float>(), 0.0f) << "nothing has been changed";
  EXPECT_THAT(load_objects(targets, {{"model", wider}}, {.strict = false}), UnorderedElementsAre(HasSubstr("shift"), HasSubstr("scale"), HasSubstr("bias")));
  EXPECT_EQ(other.at("weight").as_tensor().item<float>(), 3.0f);
  EXPECT_EQ(other.at("shift").as_tensor().item<float>(), 0.0f);
}

TEST_F(IgniteCases, NamesThatDifferThroughoutChangeNothingIfNotStrictRow128) {
  write_archive(folder / "bare.pt", model_state(3.0), of_kind("model"));
  const StateDict other{{"scale", torch::zeros({1})}};
  EXPECT_NO_THROW(load_objects({{"model", tensors_target(other)}}, folder / "bare.pt", {.strict = false}));
  EXPECT_EQ(other.at("scale").as_tensor().item<float>(), 0.0f);
}

TEST_F(IgniteCases, AnObjectThatIsNoModuleLoadsAloneRow130) {
  for (const std::string name : {"optim", "trainer"}) {
    on_disk()->save_objects({{name, optimizer_state(0.25)}}, point(1, 1));
    Taking taking;
    load_objects({{name, taking.target()}}, folder / (name + "_1.pt"));
    EXPECT_TRUE(equal(taking.state, optimizer_state(0.25)));
  }
}

// Ignite takes the bare state's "weight" for the object, and fails.
TEST_F(IgniteCases, TheFileSaysHowItIsLaidOutDiffersFromRow165) {
  write_archive(folder / "bare.pt", model_state(3.0), of_kind("model"));
  const StateDict weight = model_state(0.0);
  load_objects({{"weight", tensors_target(weight)}}, folder / "bare.pt");
  EXPECT_TRUE(equal(weight, model_state(3.0)));
  on_disk()->save_objects({{"weight", model_state(4.0)}}, point(1, 1));
  load_objects({{"weight", tensors_target(weight)}}, folder / "weight_1.pt");
  EXPECT_TRUE(equal(weight, model_state(4.0)));
  EXPECT_THAT([&] { load_objects({{"model", tensors_target(weight)}}, folder / "weight_1.pt"); }, ThrowsError(Errc::kMismatch, HasSubstr("'model'")))
      << "a keyed file is never a bare state";
}

// ---- all or nothing

// Ignite has changed the first already.
TEST_F(IgniteCases, AllIsLookedAtFirstDiffersFromRow166) {
  const StateDict a = model_state(0.0), b{{"weight", torch::zeros({2, 2})}, {"bias", torch::zeros({1})}};
  Taking c;
  c.objections = {"another schedule"};
  const StateDict states{{"a", model_state(1.0)}, {"b", model_state(2.0)}, {"c", StateDict{}}};
  const LoadTargets::Named targets{{"a", tensors_target(a)}, {"b", tensors_target(b)}, {"c", c.target()}, {"d", tensors_target(a)}};
  EXPECT_THAT([&] { load_objects(targets, states); },
              ThrowsError(Errc::kMismatch, AllOf(HasSubstr("weight"), HasSubstr("[1, 1]"), HasSubstr("[2, 2]"), HasSubstr("another schedule"), HasSubstr("'d'"))));
  EXPECT_TRUE(equal(a, model_state(0.0)));
  EXPECT_EQ(b.at("bias").as_tensor().item<float>(), 0.0f);
}

TEST_F(IgniteCases, ListsAreOfOneLengthRow167) {
  const StateDict a = model_state(0.0), b = model_state(0.0);
  const StateDict three{{"models", List{{Value(model_state(1.0)), Value(model_state(2.0)), Value(model_state(3.0))}}}};
  EXPECT_THAT([&] { load_objects({{"models", LoadTargets::Listed{tensors_target(a), tensors_target(b)}}}, three); },
              ThrowsError(Errc::kMismatch, AllOf(HasSubstr("models"), HasSubstr("2"), HasSubstr("3"))));
  EXPECT_TRUE(equal(a, model_state(0.0)));
}

TEST_F(IgniteCases, KeysThatNobodyAsksForAreLeftAloneRow167) {
  const StateDict model = model_state(0.0);
  EXPECT_THAT(load_objects({{"model", tensors_target(model)}}, two(3.0)), IsEmpty()) << "not even reported";
  EXPECT_TRUE(equal(model, model_state(3.0)));
}

TEST_F(IgniteCases, OtherKindsOfStatesAreNamedRow167) {
  const StateDict a = model_state(0.0);
  EXPECT_THAT([&] { load_objects({{"models", LoadTargets::Listed{tensors_target(a)}}}, {{"models", model_state()}}); }, ThrowsError(Errc::kMismatch, HasSubstr("models")));
  EXPECT_THAT([&] { load_objects({{"model", tensors_target(a)}}, StateDict{{"model", 3}}); }, ThrowsError(Errc::kMismatch, HasSubstr("model")));
}

// ---- shapes and dtypes

TEST_F(IgniteCases, ValuesAreCopiedInAcrossDtypesRow188) {
  const at::Tensor weight = torch::zeros({1, 1}, torch::kDouble);
  const StateDict model{{"weight", weight}, {"bias", torch::zeros({1})}};
  load_objects({{"model", tensors_target(model)}}, one(3.0));
  EXPECT_EQ(weight.item<double>(), 3.0);
  EXPECT_EQ(weight.scalar_type(), torch::kDouble) << "into what lives, wherever it is";
}

TEST_F(IgniteCases, ShapesMayBePassedOver) {
  const StateDict other{{"weight", torch::zeros({2, 2})}, {"bias", torch::zeros({1})}};
  const LoadTargets::Named targets{{"model", tensors_target(other)}};
  EXPECT_THAT([&] { load_objects(targets, one(3.0), {.strict = false}); }, ThrowsError(Errc::kMismatch, HasSubstr("weight"))) << "strict is of names";
  EXPECT_THAT(load_objects(targets, one(3.0), {.strict_shape = false}), ElementsAre(AllOf(HasSubstr("weight"), HasSubstr("[1, 1]"), HasSubstr("[2, 2]"))));
  EXPECT_EQ(other.at("bias").as_tensor().item<float>(), -3.0f);
  EXPECT_TRUE(torch::equal(other.at("weight").as_tensor(), torch::zeros({2, 2})));
}

// ---- the loader

TEST_F(IgniteCases, ALoaderLoadsOnceAndSaysWhatItPassedOver) {
  on_disk()->save_objects(one(3.0), point(1, 1));
  const StateDict other{{"weight", torch::zeros({2, 2})}, {"bias", torch::zeros({1})}};
  CheckpointLoader loader({.load_path = folder / "model_1.pt", .load_dict = {{"model", tensors_target(other)}}, .name = "start", .strict_shape = false}, logger);
  EXPECT_THAT(loader.load(), ElementsAre(HasSubstr("weight")));
  EXPECT_EQ(other.at("bias").as_tensor().item<float>(), -3.0f);
  EXPECT_THAT(logger.warnings(), Not(IsEmpty()));
  for (const std::string& line : logger.warnings()) EXPECT_THAT(line, HasSubstr("start"));
}

}  // namespace
}  // namespace marlin
