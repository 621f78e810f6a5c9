// The checkpointer of safetensors files: exact states, two files that are one checkpoint, the rules of DefaultCheckpointer.
#include "marlin/checkpointers/safetensors_checkpointer.h"

#include <gmock/gmock.h>
#include <torch/torch.h>

#include <bit>
#include <nlohmann/json.hpp>

#include "marlin/checkpointers/safetensors.h"
#include "marlin/sdk/text.h"
#include "recording_logger.h"
#include "safetensors_test_util.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
using test::point_at;
using test::rich_checkpoint;
using testing::content_of;
using testing::damage;
using testing::names_in;
using testing::RecordingLogger;
using testing::TempFolder;
using testing::ThrowsError;
using testing::write_file;
using From = LoadRequest::From;

class SafetensorsCheckpointerTest : public ::testing::Test {
 protected:
  SafetensorsCheckpointerTest() {
    options_.save_dir = folder_.text();
    options_.load_dir = folder_.text();
  }
  [[nodiscard]] std::unique_ptr<SafetensorsCheckpointer> make() { return std::make_unique<SafetensorsCheckpointer>(options_, HostContext{.logger = &logger_}); }
  void save(int64_t epoch) { make()->save(rich_checkpoint(epoch), point_at(epoch)); }
  [[nodiscard]] Checkpoint load(const std::string& path, Verify verify = Verify::kFull) { return make()->load({.from = From::kPath, .path = path, .verify = verify}); }
  [[nodiscard]] std::vector<std::string> saved() const { return names_in(folder_.path()); }
  [[nodiscard]] std::string file(const std::string& name) const { return (folder_ / name).string(); }
  [[nodiscard]] nlohmann::json json(const std::string& name) const { return nlohmann::json::parse(content_of(folder_ / name)); }

  TempFolder folder_;
  RecordingLogger logger_;
  SafetensorsCheckpointerOptions options_;
};

TEST_F(SafetensorsCheckpointerTest, AStateComesBackExactly) {
  const Checkpoint state = rich_checkpoint(4);
  EXPECT_THAT(make()->save(state, point_at(4)), ElementsAre(file("checkpoint_4.json")));
  EXPECT_THAT(saved(), ElementsAre("checkpoint_4.json", "checkpoint_4.safetensors"));
  for (const Verify verify : {Verify::kFull, Verify::kLazy, Verify::kOff}) {
    const Checkpoint found = load(file("checkpoint_4.json"), verify);
    EXPECT_TRUE(test::equal(found, state));
    EXPECT_EQ(found.source, file("checkpoint_4.json"));
    const StateDict& model = found.module_interface_state;
    EXPECT_TRUE(model.ordered_dict);
    ASSERT_NE(model.attributes, nullptr);
    EXPECT_TRUE(equal(*model.attributes, *state.module_interface_state.attributes));
    EXPECT_TRUE(model.attributes->at("_metadata").as_dict().ordered_dict);
    EXPECT_FALSE(found.trainer_state.ordered_dict);
  }
}

TEST_F(SafetensorsCheckpointerTest, EveryNanKeepsItsBits) {
  Checkpoint state;
  state.module_interface_state = {{"w", torch::ones({1})}};
  const uint64_t patterns[] = {0x7ff8000000000000, 0xfff8000000000000, 0x7ff0000000000001, 0x7ff8000000000abc};
  List numbers;
  for (const uint64_t bits : patterns) numbers.items.emplace_back(std::bit_cast<double>(bits));
  state.trainer_state = {{"nans", numbers}};
  make()->save(state, point_at(0));
  const Checkpoint found = load(folder_.text());
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(std::bit_cast<uint64_t>(found.trainer_state.at("nans").as_items()[i].as_double()), patterns[i]);
}

TEST_F(SafetensorsCheckpointerTest, TheRecordSaysWhatItIsAndNamesItsTensors) {
  SavePoint point = point_at(4);
  point.metrics.set("val/loss", 0.25);
  point.metrics.set("val/accuracy", std::numeric_limits<double>::quiet_NaN());
  make()->save(rich_checkpoint(4), point);
  const nlohmann::json record = json("checkpoint_4.json");
  EXPECT_EQ(record["kind"], "full");
  EXPECT_EQ(record["unit"], "epoch");
  EXPECT_EQ(record["index"], 4);
  EXPECT_EQ(record["global_step"], 40);
  EXPECT_EQ(record["run_id"], "r1");
  EXPECT_EQ(record["metrics"], nlohmann::json::parse(R"({"val/loss": 0.25, "val/accuracy": "nan"})"));
  SafetensorsReader tensors(file("checkpoint_4.safetensors"));
  EXPECT_EQ(record["records"]["checkpoint_4.safetensors"]["size"], tensors.written().size_bytes);
  EXPECT_EQ(record["records"]["checkpoint_4.safetensors"]["xxh3_128"], tensors.written().xxh3_128);
  EXPECT_TRUE(tensors.tensor("module_interface_state.net.0.weight").equal(torch::full({3, 2}, 4.f)));
  EXPECT_TRUE(tensors.tensor("trainer_state.optimizers.0.state.0.exp_avg").equal(torch::ones({3, 2})));
  EXPECT_TRUE(tensors.tensor("trainer_state.a.b#2").equal(torch::zeros({2, 0}))) << "a key with a dot came first";
}

TEST_F(SafetensorsCheckpointerTest, AModelIsOneFileUnderItsOwnNames) {
  const StateDict model = {{"net.0.weight", torch::ones({2, 2})}, {"net.0.bias", torch::zeros({2})}};
  const auto checkpointer = make();
  EXPECT_FALSE(checkpointer->has_model(4));
  EXPECT_THAT(checkpointer->save_model(model, 4), ElementsAre(file("checkpoint_model_4.safetensors")));
  EXPECT_TRUE(checkpointer->has_model(4));
  SafetensorsReader reader(file("checkpoint_model_4.safetensors"));
  EXPECT_EQ(reader.metadata().front(), std::make_pair(std::string("format"), std::string("pt")));
  EXPECT_EQ(reader.state().size(), 2U);
  EXPECT_TRUE(reader.tensor("net.0.weight").equal(torch::ones({2, 2})));
  EXPECT_THAT([&] { checkpointer->save_model({{"w", torch::ones({1})}, {"count", 3}}, 5); }, ThrowsError(Errc::kUnsupported, HasSubstr("count: is no tensor (int)")));
  EXPECT_THAT([&] { static_cast<void>(load(file("checkpoint_model_4.safetensors"))); }, ThrowsError(Errc::kMismatch, HasSubstr("is no whole state: there is no checkpoint_model_4.json")));
  EXPECT_TRUE(load(folder_.text()).empty()) << "a model is no checkpoint";
}

TEST_F(SafetensorsCheckpointerTest, StepsHaveNamesOfTheirOwnAndTheHigherGlobalStepWins) {
  save(2);  // global step 20
  SavePoint point = point_at(3);
  point.unit = Unit::kStep;
  point.index = 25;
  Checkpoint step = rich_checkpoint(3);
  step.trainer_backend_state.set("global_step_completed", 25);
  make()->save(step, point);
  EXPECT_THAT(saved(), ElementsAre("checkpoint_2.json", "checkpoint_2.safetensors", "checkpoint_step_25.json", "checkpoint_step_25.safetensors"));
  EXPECT_EQ(load(folder_.text()).source, file("checkpoint_step_25.json"));
  save(3);
  EXPECT_EQ(load(folder_.text()).source, file("checkpoint_3.json"));
}

TEST_F(SafetensorsCheckpointerTest, EitherFileOfACheckpointMayBeNamed) {
  save(4);
  options_.load_filename = "checkpoint_4.safetensors";
  EXPECT_EQ(make()->load().source, file("checkpoint_4.json"));
  EXPECT_EQ(load(file("checkpoint_4.safetensors")).source, file("checkpoint_4.json"));
  std::filesystem::copy(file("checkpoint_4.safetensors"), file("checkpoint_4.7.safetensors"));
  EXPECT_THAT([&] { static_cast<void>(load(file("checkpoint_4.7.safetensors"))); }, ThrowsError(Errc::kMismatch, HasSubstr("checkpoint_4.json names another file")));
  EXPECT_THAT([&] { static_cast<void>(load(file("none.json"))); }, ThrowsError(Errc::kNotFound, HasSubstr("none.json")));
  EXPECT_THAT([&] { static_cast<void>(load(file("none.safetensors"))); }, ThrowsError(Errc::kNotFound, HasSubstr("none.safetensors")));
}

TEST_F(SafetensorsCheckpointerTest, WhatCannotBeWrittenIsRefusedByNameAndNothingIsWritten) {
  const auto refuse = [&](const Value& value, const std::string& why) {
    Checkpoint state = rich_checkpoint(1);
    state.trainer_state.set("extra", StateDict{{"x", value}});
    EXPECT_THAT([&] { make()->save(state, point_at(1)); }, ThrowsError(Errc::kUnsupported, AllOf(HasSubstr("trainer_state.extra.x"), HasSubstr(why))));
    EXPECT_THAT(saved(), IsEmpty());
  };
  refuse(torch::ones({2}, at::kComplexDouble), "no dtype complex128");
  refuse(torch::quantize_per_tensor(torch::ones({2}), 0.1, 0, at::kQInt8), "quantised");
  refuse(torch::eye(2).to_sparse(), "layout Sparse");
  refuse("\xff", "not UTF-8");
  Value deep = List{};
  for (int i = 0; i < 70; ++i) deep = List{{deep}};
  refuse(deep, "nested deeper than 64");
}

// ---- the same number again

TEST_F(SafetensorsCheckpointerTest, ReplacingACheckpointLeavesTwoFiles) {
  save(4);
  Checkpoint other = rich_checkpoint(5);
  make()->save(other, point_at(4));
  EXPECT_THAT(saved(), ElementsAre("checkpoint_4.1.safetensors", "checkpoint_4.json"));
  EXPECT_TRUE(test::equal(load(file("checkpoint_4.json")), other));
  EXPECT_TRUE(test::equal(load(file("checkpoint_4.1.safetensors")), other));
  make()->save(rich_checkpoint(4), point_at(4));
  EXPECT_THAT(saved(), ElementsAre("checkpoint_4.json", "checkpoint_4.safetensors"));
  EXPECT_TRUE(test::equal(load(folder_.text()), rich_checkpoint(4)));
}

TEST_F(SafetensorsCheckpointerTest, TensorsThatNoRecordNamesAreRemovedWhenARunBegins) {
  save(4);
  for (const char* name : {"checkpoint_5.safetensors", "checkpoint_4.1.safetensors", "checkpoint_step_7.3.safetensors"}) std::filesystem::copy(file("checkpoint_4.safetensors"), file(name));
  for (const char* name : {"other_5.safetensors", "checkpoint_model_9.safetensors", "checkpoint_x.safetensors", "checkpoint_4.x.safetensors"}) write_file(file(name), "not its own, or a model");
  make()->open({.loaded_from = file("checkpoint_4.json"), .run_id = "r1"});
  EXPECT_THAT(saved(), ElementsAre("checkpoint_4.json", "checkpoint_4.safetensors", "checkpoint_4.x.safetensors", "checkpoint_model_9.safetensors", "checkpoint_x.safetensors", "other_5.safetensors"));
  EXPECT_THAT(logger_.lines(LogLevel::kInfo), Contains(HasSubstr("checkpoint_5.safetensors (left by a save that was cut short)")));
}

TEST_F(SafetensorsCheckpointerTest, WhatSomebodyElsePutThereUnderSuchANameStays) {
  write_safetensors(file("checkpoint_4.safetensors"), {{"w", torch::ones({2})}}, {{"format", "pt"}}, Hashes::kNone);
  write_file(folder_ / "checkpoint_5.safetensors", "no safetensors at all");
  const std::string before = content_of(folder_ / "checkpoint_4.safetensors");
  make()->open({});
  save(4);
  make()->open({.loaded_from = file("checkpoint_4.json")});
  EXPECT_EQ(content_of(folder_ / "checkpoint_4.safetensors"), before);
  EXPECT_THAT(saved(), ElementsAre("checkpoint_4.1.safetensors", "checkpoint_4.json", "checkpoint_4.safetensors", "checkpoint_5.safetensors"));
  EXPECT_TRUE(test::equal(load(file("checkpoint_4.json")), rich_checkpoint(4)));
}

TEST_F(SafetensorsCheckpointerTest, ANameTooLongForItsTensorsIsAnErrorAndNotASearchWithoutEnd) {
  options_.file_prefix = std::string(244, 'x');  // with "_4.json" 251 bytes; with "_4.safetensors" more than a name may have
  EXPECT_THAT([&] { save(4); }, ThrowsError(Errc::kIo, HasSubstr("File name too long")));
}

TEST_F(SafetensorsCheckpointerTest, BesideARecordThatCannotBeReadNothingIsRemoved) {
  save(4);
  std::filesystem::copy(file("checkpoint_4.safetensors"), file("checkpoint_4.1.safetensors"));
  damage(file("checkpoint_4.json"));
  make()->open({.loaded_from = file("elsewhere.json")});
  EXPECT_THAT(saved(), ElementsAre("checkpoint_4.1.safetensors", "checkpoint_4.json", "checkpoint_4.safetensors"));
}

TEST_F(SafetensorsCheckpointerTest, WhatAKilledFirstSaveLeftIsNoCheckpoint) {
  save(0);
  std::filesystem::remove(file("checkpoint_0.json"));
  EXPECT_TRUE(load(folder_.text()).empty());
  make()->open({});
  EXPECT_THAT(saved(), IsEmpty());
}

// ---- the rules of DefaultCheckpointer

TEST_F(SafetensorsCheckpointerTest, AFreshStartIsRefusedWhereCheckpointsAre) {
  save(4);
  EXPECT_THAT([&] { make()->open({}); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("holds checkpoints of an earlier run (checkpoint_4.json)"), HasSubstr("--resume auto"))));
  options_.delete_existing_checkpoints = true;
  make()->save_model({{"w", torch::ones({1})}}, 4);
  make()->open({});
  EXPECT_THAT(saved(), IsEmpty());
}

TEST_F(SafetensorsCheckpointerTest, WhatARunThatStartsOverResumesFromGoesWithItsFirstSave) {
  save(4);
  options_.delete_existing_checkpoints = true;
  const auto checkpointer = make();
  checkpointer->open({.loaded_from = file("checkpoint_4.json"), .run_id = "r1"});
  EXPECT_THAT(saved(), ElementsAre("checkpoint_4.json", "checkpoint_4.safetensors"));
  checkpointer->save(rich_checkpoint(5), point_at(5));
  EXPECT_THAT(saved(), ElementsAre("checkpoint_5.json", "checkpoint_5.safetensors"));
}

TEST_F(SafetensorsCheckpointerTest, ACheckpointOfAnotherRunIsNotMixedWith) {
  save(4);
  EXPECT_THAT([&] { make()->open({.loaded_from = "/elsewhere/checkpoint_2.json", .run_id = "r2"}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpoint_4.json is a checkpoint of another run than /elsewhere")));
}

TEST_F(SafetensorsCheckpointerTest, KeepLastRemovesPairsAndCountsWholeOnes) {
  options_.keep_last = 2;
  for (const int64_t epoch : {0, 1, 2}) save(epoch);
  EXPECT_THAT(saved(), ElementsAre("checkpoint_1.json", "checkpoint_1.safetensors", "checkpoint_2.json", "checkpoint_2.safetensors"));
  std::filesystem::resize_file(file("checkpoint_2.safetensors"), 100);
  save(3);
  EXPECT_THAT(saved(), Contains("checkpoint_1.json")) << "2 is broken, so 1 and 3 are the newest two";
  save(4);
  EXPECT_THAT(saved(), AllOf(Not(Contains("checkpoint_1.json")), Not(Contains("checkpoint_1.safetensors")), Contains("checkpoint_3.json")));
  options_.keep_last = 1;
  EXPECT_THAT([&] { static_cast<void>(make()); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("keep_last: 1 is refused")));
}

TEST_F(SafetensorsCheckpointerTest, ABrokenNewestIsNamedAndTheOneBeforeTaken) {
  for (const char* broken : {"checkpoint_5.json", "checkpoint_5.1.safetensors"}) {  // the second time the first name is taken
    save(4);
    save(5);
    damage(file(broken));
    const Checkpoint found = load(folder_.text());
    EXPECT_TRUE(test::equal(found, rich_checkpoint(4)));
    ASSERT_FALSE(logger_.warnings().empty());
    EXPECT_THAT(logger_.warnings().back(), AllOf(HasSubstr("a newer checkpoint is broken and was passed over: "), HasSubstr(broken)));
    EXPECT_THAT([&] { static_cast<void>(load(file("checkpoint_5.json"))); }, ThrowsError(Errc::kCorrupt, HasSubstr(broken)));
  }
  save(5);
  for (const std::string& name : saved()) {
    if (name.starts_with("checkpoint_5") && name.ends_with(".safetensors")) std::filesystem::remove(file(name));
  }
  EXPECT_TRUE(test::equal(load(folder_.text()), rich_checkpoint(4)));
  EXPECT_THAT(logger_.warnings().back(), HasSubstr("is missing"));
}

TEST_F(SafetensorsCheckpointerTest, TensorsOfAnotherSaveAreNotTaken) {
  save(4);
  save(5);
  std::filesystem::copy(file("checkpoint_5.safetensors"), file("checkpoint_4.safetensors"), std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT([&] { static_cast<void>(load(file("checkpoint_4.json"))); }, ThrowsError(Errc::kCorrupt, HasSubstr("is not the file that")));
}

TEST_F(SafetensorsCheckpointerTest, NoneToBeFoundIsAnErrorIfOneIsRequired) {
  EXPECT_TRUE(make()->load().empty());
  EXPECT_THAT([&] { static_cast<void>(make()->load({.required = true})); }, ThrowsError(Errc::kNotFound, HasSubstr("no file like checkpoint_0.json")));
}

TEST_F(SafetensorsCheckpointerTest, FoldersAreThoseOfTheRun) {
  options_ = {.save_dir = "save", .model_state_save_dir = "models"};
  SafetensorsCheckpointer checkpointer(options_, HostContext{.run_dir = folder_.path()});
  checkpointer.open({});
  checkpointer.save(rich_checkpoint(1), point_at(1));
  checkpointer.save_model({{"w", torch::ones({1})}}, 1);
  EXPECT_THAT(names_in(folder_ / "save"), ElementsAre("checkpoint_1.json", "checkpoint_1.safetensors"));
  EXPECT_THAT(names_in(folder_ / "models"), ElementsAre("checkpoint_model_1.safetensors"));
}

TEST_F(SafetensorsCheckpointerTest, OptionsAreThoseOfTheBuiltInCheckpointer) {
  std::vector<std::string> names;
  for (const OptionSpec& spec : option_table<SafetensorsCheckpointerOptions>()) names.push_back(spec.name);
  EXPECT_THAT(names, ElementsAre("save_dir", "model_state_save_dir", "file_prefix", "load_dir", "load_filename", "delete_existing_checkpoints", "keep_last", "keep", "log_level"));
  EXPECT_EQ(SafetensorsCheckpointer().name(), "safetensors");
  EXPECT_THAT([&] { SafetensorsCheckpointer({.file_prefix = "\xff"}); }, ThrowsError(Errc::kInvalidArgument, StartsWith("checkpointer.file_prefix: ")));
  EXPECT_THAT([&] { SafetensorsCheckpointer({.log_level = "LOUD"}); }, ThrowsError(Errc::kInvalidArgument, StartsWith("checkpointer.log_level: ")));
}

TEST_F(SafetensorsCheckpointerTest, APrefixMayHoldWhatJsonEscapes) {
  options_.file_prefix = "a \"b\"\n.7";
  save(4);
  EXPECT_TRUE(test::equal(load(folder_.text()), rich_checkpoint(4)));
}

}  // namespace
}  // namespace marlin
