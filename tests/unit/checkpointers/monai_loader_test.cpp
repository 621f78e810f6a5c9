// MONAI's CheckpointLoader, row by row. The number at a name's end is the row of the case table; a comment says where this project does
// better.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "marlin/checkpointers/key_metric_checkpointer.h"
#include "marlin/checkpointers/load_objects.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::ThrowsError;

// A net of such layers: how long each is, and what it is full of.
StateDict net_of(std::initializer_list<std::pair<int64_t, double>> layers) {
  StateDict net;
  int64_t place = 0;
  for (const auto& [size, value] : layers) net.set(std::to_string(place++) + ".weight", torch::full({size}, value));
  return net;
}

// Plain data of an optimizer over so many parameters.
StateDict optimizer_of(int64_t parameters, double lr) {
  List params;
  for (int64_t i = 0; i < parameters; ++i) params.items.emplace_back(i);
  return {{"state", StateDict{}}, {"param_groups", List{{StateDict{{"lr", lr}, {"params", params}}}}}};
}

// Something that takes such a dict as it is, and counts how often it did.
struct Optimizer {
  StateDict state;
  int updates = 0;

  [[nodiscard]] static size_t parameters(const StateDict& of) { return of.at("param_groups").as_items().at(0).as_dict().at("params").as_items().size(); }
  [[nodiscard]] LoadTarget target() {
    return state_target(
        [this](const StateDict& from) {
          state = from;
          ++updates;
        },
        [this](const StateDict& from) -> std::vector<std::string> {
          if (parameters(from) == parameters(state)) return {};
          return {"parameters: " + std::to_string(parameters(from)) + " in the file, " + std::to_string(parameters(state)) + " here"};
        });
  }
};

class MonaiLoaderCases : public ::testing::Test {
 protected:
  // The final file of a saver after `epochs` epochs of 8 steps.
  std::filesystem::path save(const StateDict& objects, int64_t epochs = 5) {
    KeyMetricOptions options;
    options.save_dir = folder_.text();
    options.save_final = true;
    KeyMetricCheckpointer saver(options);
    SavePoint point;
    point.index = point.epoch = epochs - 1;
    point.global_step = 8 * epochs;
    point.cause = Cause::kEnd;
    point.force = true;
    const std::vector<std::string> where = saver.save_objects(objects, point);
    EXPECT_THAT(where, SizeIs(1));
    return where.at(0);
  }
  [[nodiscard]] CheckpointLoader loader(const std::filesystem::path& file, LoadTargets::Named load_dict, bool strict = true, bool strict_shape = true) {
    CheckpointLoader::Options options;
    options.load_path = file;
    options.load_dict = std::move(load_dict);
    options.strict = strict;
    options.strict_shape = strict_shape;
    return CheckpointLoader(std::move(options), logger_);
  }

  TempFolder folder_;
  RecordingLogger logger_;
};

// ---- B. their tests of the loader

TEST_F(MonaiLoaderCases, WeightsComeBackRow12) {
  const auto file = save({{"net", net_of({{1, 0.1}})}, {"engine", StateDict{{"epoch", 5}}}});
  EXPECT_EQ(file.filename(), "checkpoint_final_iteration=40.pt");
  const StateDict net = net_of({{1, 0.2}});
  StateDict engine;
  EXPECT_THAT(loader(file, {{"net", tensors_target(net)}, {"engine", state_target([&](const StateDict& from) { engine = from; })}}).load(8), IsEmpty());
  EXPECT_TRUE(equal(net, net_of({{1, 0.1}})));
  EXPECT_EQ(engine.at("epoch").as_int(), 5);
  EXPECT_THAT(logger_.warnings(), IsEmpty());
}

TEST_F(MonaiLoaderCases, APartMayBeLoadedRow14) {
  const auto file = save({{"net", net_of({{1, 0.1}})}, {"opt", optimizer_of(1, 0.02)}});
  const StateDict net = net_of({{1, 0.2}});
  EXPECT_THAT(loader(file, {{"net", tensors_target(net)}}).load(), IsEmpty());
  EXPECT_TRUE(equal(net, net_of({{1, 0.1}})));
}

TEST_F(MonaiLoaderCases, ASmallerNetTakesWhatItHasRow16) {
  const auto file = save({{"net", net_of({{1, 0.1}, {1, 0.2}})}});
  EXPECT_EQ(file.filename(), "net_final_iteration=40.pt");
  const StateDict net = net_of({{1, 0.5}});
  EXPECT_THAT([&] { (void)loader(file, {{"net", tensors_target(net)}}).load(); }, ThrowsError(Errc::kMismatch, HasSubstr("1.weight")));
  EXPECT_TRUE(equal(net, net_of({{1, 0.5}}))) << "nothing is changed by a refusal";
  EXPECT_THAT(loader(file, {{"net", tensors_target(net)}}, /*strict=*/false).load(), ElementsAre(HasSubstr("1.weight")));
  EXPECT_TRUE(equal(net, net_of({{1, 0.1}})));
  EXPECT_THAT(logger_.warnings(), ElementsAre(HasSubstr("1.weight")));
}

TEST_F(MonaiLoaderCases, ALargerNetTakesWhatThereIsRow17) {
  const auto file = save({{"net", net_of({{1, 0.1}})}});
  const StateDict net = net_of({{1, 0.2}, {1, 0.3}});
  EXPECT_THAT([&] { (void)loader(file, {{"net", tensors_target(net)}}).load(); }, ThrowsError(Errc::kMismatch, HasSubstr("1.weight")));
  EXPECT_TRUE(equal(net, net_of({{1, 0.2}, {1, 0.3}})));
  EXPECT_THAT(loader(file, {{"net", tensors_target(net)}}, /*strict=*/false).load(), ElementsAre(HasSubstr("1.weight")));
  EXPECT_TRUE(equal(net, net_of({{1, 0.1}, {1, 0.3}})));
}

TEST_F(MonaiLoaderCases, OtherShapesAndAnotherOptimizerAreLeftAloneRow18) {
  const auto file = save({{"net", net_of({{5, 0.1}})}, {"opt", optimizer_of(2, 0.02)}});
  const StateDict net = net_of({{1, 0.2}, {1, 0.3}});
  Optimizer optimizer{optimizer_of(1, 0.5)};
  const LoadReport report = loader(file, {{"net", tensors_target(net)}, {"opt", optimizer.target()}}, /*strict=*/false, /*strict_shape=*/false).load();
  EXPECT_TRUE(equal(net, net_of({{1, 0.2}, {1, 0.3}})));
  EXPECT_EQ(optimizer.updates, 0);
  EXPECT_TRUE(equal(optimizer.state, optimizer_of(1, 0.5)));
  EXPECT_THAT(report, ::testing::UnorderedElementsAre(AllOf(HasSubstr("0.weight"), HasSubstr("[5]"), HasSubstr("[1]")), HasSubstr("1.weight"), AllOf(HasSubstr("opt"), HasSubstr("2 in the file, 1 here"))));
  EXPECT_THAT(logger_.warnings(), Not(IsEmpty()));
}

// What fits is taken beside what is left alone.
TEST_F(MonaiLoaderCases, AnOptimizerThatFitsIsTakenWithoutStrictShapeRow18) {
  const auto file = save({{"net", net_of({{5, 0.1}})}, {"opt", optimizer_of(1, 0.02)}});
  const StateDict net = net_of({{1, 0.2}});
  Optimizer optimizer{optimizer_of(1, 0.5)};
  (void)loader(file, {{"net", tensors_target(net)}, {"opt", optimizer.target()}}, /*strict=*/false, /*strict_shape=*/false).load();
  EXPECT_EQ(optimizer.updates, 1);
  EXPECT_TRUE(equal(optimizer.state, optimizer_of(1, 0.02)));
}

// ---- C. its errors and edges

// Better: what fits is copied.
TEST_F(MonaiLoaderCases, WithoutStrictShapeWhatFitsIsCopiedRow36) {
  const StateDict saved = net_of({{1, 0.7}, {3, 0.7}}), before = net_of({{1, 0.25}, {5, 0.25}});
  for (const StateDict& objects : {StateDict{{"net", saved}}, StateDict{{"net", saved}, {"opt", optimizer_of(1, 0.02)}}}) {
    const auto file = save(objects);
    const StateDict net = clone(before);
    const LoadReport report = loader(file, {{"net", tensors_target(net)}}, /*strict=*/true, /*strict_shape=*/false).load();
    EXPECT_TRUE(equal(net, net_of({{1, 0.7}, {5, 0.25}})));
    EXPECT_THAT(report, ElementsAre(AllOf(HasSubstr("1.weight"), HasSubstr("[3]"), HasSubstr("[5]"))));
  }
}

TEST_F(MonaiLoaderCases, StrictIsAboutNamesAndNotShapesRow37) {
  const auto file = save({{"net", net_of({{1, 0.7}, {3, 0.7}})}});
  const StateDict net = net_of({{1, 0.25}, {5, 0.25}});
  EXPECT_THAT([&] { (void)loader(file, {{"net", tensors_target(net)}}, /*strict=*/false).load(); },
              ThrowsError(Errc::kMismatch, AllOf(HasSubstr("1.weight"), HasSubstr("[3]"), HasSubstr("[5]"))));
  EXPECT_TRUE(equal(net, net_of({{1, 0.25}, {5, 0.25}}))) << "the layer that fits is not touched, either";
}

TEST_F(MonaiLoaderCases, StrictShapeOffTakesStrictOffAndSaysSoRow38) {
  const auto file = save({{"net", net_of({{1, 0.1}, {1, 0.2}})}});
  const StateDict net = net_of({{1, 0.5}});
  const LoadReport report = loader(file, {{"net", tensors_target(net)}}, /*strict=*/true, /*strict_shape=*/false).load();
  EXPECT_THAT(report, ElementsAre(HasSubstr("1.weight")));
  EXPECT_TRUE(equal(net, net_of({{1, 0.1}})));
  EXPECT_THAT(logger_.warnings(), ::testing::Contains(AllOf(HasSubstr("strict_shape"), HasSubstr("strict"))));
}

// Better: what was passed over once is not forgotten.
TEST_F(MonaiLoaderCases, ALoaderLoadsAllOfItsTargetsEachTimeRow39) {
  const auto file = save({{"net", net_of({{5, 0.1}})}, {"opt", optimizer_of(1, 0.02)}});
  const StateDict net = net_of({{1, 0.2}});
  Optimizer optimizer{optimizer_of(1, 0.5)};
  CheckpointLoader twice = loader(file, {{"net", tensors_target(net)}, {"opt", optimizer.target()}}, /*strict=*/false, /*strict_shape=*/false);
  (void)twice.load();
  (void)twice.load();
  EXPECT_EQ(optimizer.updates, 2);
}

// Better: looked at before anything is changed.
TEST_F(MonaiLoaderCases, MoreEpochsThanTheRunHasAreRefusedRow40) {
  const auto file = save({{"net", net_of({{1, 0.1}})}}, /*epochs=*/5);
  const StateDict net = net_of({{1, 0.2}});
  EXPECT_THROW((void)loader(file, {{"net", tensors_target(net)}}).load(3), Error);
  EXPECT_TRUE(equal(net, net_of({{1, 0.2}})));
  for (const std::optional<int64_t> epochs : {std::optional<int64_t>(5), std::optional<int64_t>(8), std::optional<int64_t>()}) {
    const StateDict another = net_of({{1, 0.2}});
    (void)loader(file, {{"net", tensors_target(another)}}).load(epochs);
    EXPECT_TRUE(equal(another, net_of({{1, 0.1}})));
  }
}

TEST_F(MonaiLoaderCases, NoPathOrNothingToLoadIsRefusedRow42) {
  const StateDict net = net_of({{1, 0.2}});
  EXPECT_THAT([&] { (void)loader({}, {{"net", tensors_target(net)}}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("load_path")));
  EXPECT_THAT([&] { (void)loader("file.pt", {}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("load_dict")));
}

TEST_F(MonaiLoaderCases, AMissingFileOrNameIsSaidRow42) {
  const StateDict net = net_of({{1, 0.2}});
  EXPECT_THAT([&] { (void)loader(folder_ / "absent.pt", {{"net", tensors_target(net)}}).load(); }, ThrowsError(Errc::kNotFound, HasSubstr("absent.pt")));
  const auto file = save({{"net", net_of({{1, 0.1}})}});
  EXPECT_THAT([&] { (void)loader(file, {{"net", tensors_target(net)}, {"model", tensors_target(net)}}).load(); }, ThrowsError(Errc::kMismatch, HasSubstr("'model'")));
  EXPECT_TRUE(equal(net, net_of({{1, 0.2}})));
}

TEST_F(MonaiLoaderCases, TheLoadersNameStandsBeforeItsLinesRow55) {
  CheckpointLoader::Options options;
  options.load_path = save({{"net", net_of({{1, 0.1}, {1, 0.2}})}});
  const StateDict net = net_of({{1, 0.5}});
  options.load_dict = {{"net", tensors_target(net)}};
  options.name = "loader";
  options.strict = false;
  (void)CheckpointLoader(options, logger_).load();
  EXPECT_THAT(logger_.warnings(), AllOf(Not(IsEmpty()), ::testing::Each(::testing::StartsWith("loader"))));
}

}  // namespace
}  // namespace marlin
