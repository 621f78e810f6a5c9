// Files of every format version and files that Python wrote, in tests/golden. They are never made anew: what could be read once
// can be read for ever.
#include <gmock/gmock.h>
#include <torch/torch.h>

#include "marlin/checkpointers/archive_reader.h"
#include "marlin/checkpointers/default_checkpointer.h"
#include "temp_folder.h"

namespace marlin {
namespace {

std::filesystem::path golden(const std::string& name) { return std::filesystem::path(MARLIN_SOURCE_DIR) / "tests/golden" / name; }

const at::Tensor& tensor(const StateDict& state, const Key& key) { return state.at(key).as_tensor(); }

// ---- format version 1

Checkpoint version_1_state() {
  StateDict model = {{"fc.weight", torch::arange(12.f).reshape({3, 4})}, {"fc.bias", torch::arange(3.f)}, {"steps", torch::tensor(int64_t{7})}};
  model.ordered_dict = true;
  model.attributes = std::make_shared<const StateDict>(StateDict{{"_metadata", StateDict{{"", StateDict{{"version", 1}}}}}});
  const at::Tensor shared = torch::arange(20, at::kInt);
  const StateDict optimizer = {{"state", StateDict{{0, StateDict{{"exp_avg", torch::full({3, 4}, 0.5f)}}}}}, {"param_groups", List{{StateDict{{"lr", 0.25}, {"betas", Tuple{{0.9, 0.999}}}}}}}};
  const StateDict trainer = {{"last_epoch", 4}, {"optimizers", List{{optimizer}}}, {"whole", shared}, {"part", shared.slice(0, 3, 15, 4)}, {"none", nullptr}, {"yes", true}, {"text", "gr\u00fc\u00df"},
                             {"empty", torch::empty({0})}, {"half", torch::arange(5).to(at::kBFloat16)}, {"float8", torch::arange(5).to(at::kFloat8_e4m3fn)}};
  return {model, trainer, {{"global_step_completed", 400}, {"batches_completed", int64_t{1} << 40}}, {}};
}

SavePoint version_1_point() {
  SavePoint point{.index = 4, .epoch = 4, .global_step = 400, .run_id = "golden"};
  point.metrics.set("val/accuracy", 0.5);
  return point;
}

// v1_full.pt is what this writes, made once by the first version.
TEST(GoldenTest, TheSameStateWrittenTodayReadsLikeTheGoldenFile) {
  const testing::TempFolder folder;
  write_checkpoint(folder / "today.pt", version_1_state(), version_1_point());
  const Checkpoint today = read_checkpoint(folder / "today.pt");
  const Checkpoint golden_file = read_checkpoint(golden("v1_full.pt"));
  EXPECT_TRUE(equal(today.module_interface_state, golden_file.module_interface_state));
  EXPECT_TRUE(equal(today.trainer_state, golden_file.trainer_state));
  EXPECT_TRUE(equal(today.trainer_backend_state, golden_file.trainer_backend_state));
}

TEST(GoldenTest, Version1IsRead) {
  const Checkpoint expected = version_1_state();
  for (const Verify verify : {Verify::kFull, Verify::kLazy, Verify::kOff}) {
    const Checkpoint read = read_checkpoint(golden("v1_full.pt"), verify);
    EXPECT_TRUE(equal(read.module_interface_state, expected.module_interface_state));
    EXPECT_TRUE(equal(read.trainer_state, expected.trainer_state));
    EXPECT_TRUE(equal(read.trainer_backend_state, expected.trainer_backend_state));
    EXPECT_TRUE(read.module_interface_state.ordered_dict);
    EXPECT_EQ(read.module_interface_state.attributes->at("_metadata").as_dict().at("").as_dict().at("version").as_int(), 1);
    EXPECT_TRUE(tensor(read.trainer_state, "part").is_alias_of(tensor(read.trainer_state, "whole")));
  }
  const ArchiveReader reader(golden("v1_full.pt"));
  EXPECT_EQ(reader.verified(), Verified::kHashes);
  ASSERT_TRUE(reader.record());
  EXPECT_EQ(reader.record()->format_version, 1);
  EXPECT_EQ(reader.record()->kind, "full");
  EXPECT_EQ(reader.record()->unit, "epoch");
  EXPECT_EQ(reader.record()->index, 4);
  EXPECT_EQ(reader.record()->global_step, 400);
  EXPECT_EQ(reader.record()->run_id, "golden");
  EXPECT_EQ(reader.record()->metrics.at("val/accuracy"), 0.5);
}

// ---- Python, torch 2.15: make_python_files.py says what is in them

TEST(GoldenTest, AModuleStateOfPythonIsRead) {
  const Archive read = read_archive(golden("python_2.15_model.pt"));
  EXPECT_EQ(read.verified, Verified::kChecksums);
  EXPECT_FALSE(read.record);
  const StateDict& model = read.root;
  EXPECT_TRUE(model.ordered_dict);
  ASSERT_EQ(model.size(), 7U);
  EXPECT_TRUE(tensor(model, "fc.weight").equal(torch::arange(12.f).reshape({3, 4})));
  EXPECT_TRUE(tensor(model, "fc.bias").equal(torch::arange(3.f) + 10));
  EXPECT_TRUE(tensor(model, "norm.weight").equal(torch::arange(3.f) + 20));
  EXPECT_TRUE(tensor(model, "norm.bias").equal(torch::arange(3.f) + 30));
  EXPECT_TRUE(tensor(model, "norm.running_mean").equal(torch::zeros({3})));
  EXPECT_EQ(tensor(model, "norm.num_batches_tracked").item<int64_t>(), 0);
  ASSERT_NE(model.attributes, nullptr);
  EXPECT_EQ(model.attributes->at("_metadata").as_dict().at("norm").as_dict().at("version").as_int(), 2);
}

TEST(GoldenTest, AnOptimizerAndASchedulerOfPythonAreRead) {
  const StateDict root = read_archive(golden("python_2.15_training.pt")).root;
  EXPECT_EQ(root.at("epoch").as_int(), 3);
  EXPECT_EQ(root.at("note").as_string(), "gr\u00fc\u00df");
  EXPECT_EQ(root.at("betas").get_if<Tuple>()->items[1].as_double(), 0.25);
  const StateDict& optimizer = root.at("optimizer").as_dict();
  const StateDict& first = optimizer.at("state").as_dict().at(0).as_dict();
  EXPECT_EQ(tensor(first, "step").item<float>(), 3.f);
  EXPECT_TRUE(tensor(first, "exp_avg").allclose(torch::full({3, 4}, 0.4255f), 0, 1e-4));
  const std::vector<Value>& groups = optimizer.at("param_groups").as_items();
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].as_dict().at("lr").as_double(), 0.0625);
  EXPECT_EQ(groups[1].as_dict().at("lr").as_double(), 0.125);
  EXPECT_TRUE(groups[0].as_dict().at("foreach").is_null());
  EXPECT_EQ(groups[1].as_dict().at("params").as_items()[1].as_int(), 3);
  EXPECT_EQ(root.at("scheduler").as_dict().at("milestones").as_dict().at(2).as_int(), 2);
  EXPECT_NEAR(tensor(root.at("model").as_dict(), "fc.weight")[2][3].item<float>(), 10.4023, 1e-3);
}

TEST(GoldenTest, TensorsOfPythonAreRead) {
  const StateDict root = read_archive(golden("python_2.15_tensors.pt")).root;
  const at::Tensor base = torch::arange(24.f).reshape({4, 6});
  EXPECT_TRUE(tensor(root, "base").equal(base));
  EXPECT_TRUE(tensor(root, "transposed").equal(base.t()));
  EXPECT_TRUE(tensor(root, "transposed").is_alias_of(tensor(root, "base")));
  EXPECT_TRUE(tensor(root, "row").equal(base[2]));
  EXPECT_EQ(tensor(root, "scalar").item<double>(), 3.5);
  EXPECT_EQ(tensor(root, "empty").sizes(), at::IntArrayRef({2, 0}));
  EXPECT_TRUE(tensor(root, "bool").equal(torch::tensor({true, false, true})));
  EXPECT_TRUE(tensor(root, "complex").equal(torch::complex(torch::arange(3.f), torch::ones(3))));
  EXPECT_TRUE(tensor(root, "parameter").equal(torch::ones(2)));
  for (const auto& [name, type] : {std::pair{"bfloat16", at::kBFloat16}, {"float8", at::kFloat8_e4m3fn}, {"uint16", at::kUInt16}}) {
    EXPECT_EQ(tensor(root, name).scalar_type(), type);
    EXPECT_TRUE(tensor(root, name).to(at::kFloat).equal(torch::arange(5.f))) << name;
  }
  EXPECT_EQ(root.at("size").get_if<Tuple>()->items[1].as_int(), 3);
  const std::vector<Value>& items = root.at(7).as_items();
  EXPECT_TRUE(items[0].is_null() && items[1].as_bool());
  EXPECT_EQ(items[3].as_int(), int64_t{1} << 40);
  EXPECT_EQ(items[4].as_double(), 0.1);
}

}  // namespace
}  // namespace marlin
