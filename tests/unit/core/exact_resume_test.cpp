// Promise: a run that was stopped and resumed is the run that never stopped, bit for bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/core/data/dataset_loader.h"
#include "marlin/core/data/tensor_loader.h"
#include "marlin/core/optim/fused.h"
#include "marlin/core/writers.h"
#include "recording_logger.h"
#include "temp_folder.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using testing::RecordingLogger;
using testing::TempFolder;
using Outcome = RunResult::Outcome;

constexpr int64_t kSteps = 23;          // of an epoch: 1437 samples in batches of 64, the last of 29
constexpr int64_t kValCalls = 17 + 17;  // of val_step, for micro-batches, of both loaders

struct DigitsData {
  at::Tensor images;  // float32 [N, 64], 0 to 1
  at::Tensor labels;  // int64 [N]
};

DigitsData read_digits() {
  std::ifstream file(MARLIN_SOURCE_DIR "/examples/digits/digits.csv");
  std::vector<float> values;
  for (std::string number; std::getline(file, number, values.size() % 65 == 64 ? '\n' : ',');) values.push_back(std::stof(number));
  const at::Tensor table = torch::tensor(values).view({-1, 65});
  return {table.narrow(1, 0, 64).div(16).contiguous(), table.select(1, 64).to(torch::kInt64)};
}

struct Recipe {
  std::optional<int64_t> workers = {};  // unset: batches from memory
  bool per_epoch_schedule = false;
  bool batch_norm = true;
};

// One image, moved by up to one pixel, with random numbers that belong to the sample.
struct MovedDigits {
  DigitsData data;
  [[nodiscard]] std::optional<size_t> size() const { return static_cast<size_t>(data.labels.size(0)); }
  torch::data::Example<> get(SampleContext& sample) const {
    const at::Tensor shift = torch::randint(0, 3, {2}, sample.generator(), torch::kInt64);
    const at::Tensor padded = torch::constant_pad_nd(data.images[sample.index()].view({8, 8}), {1, 1, 1, 1});
    return {padded.narrow(0, shift[0].item<int64_t>(), 8).narrow(1, shift[1].item<int64_t>(), 8).reshape({64}), data.labels[sample.index()]};
  }
};

// Dropout, augmentation, momentum, a schedule, batch norm; its validation draws random numbers, too.
class Digits final : public ModuleInterface {
 public:
  explicit Digits(Recipe recipe) : recipe_(recipe) {
    torch::set_num_threads(1);  // an image has 64 values
    torch::manual_seed(5);
    static const DigitsData all = read_digits();
    train_ = {all.images.narrow(0, 0, 1437), all.labels.narrow(0, 0, 1437)};
    val_ = {all.images.narrow(0, 1437, 360), all.labels.narrow(0, 1437, 360)};
    net_ = register_module("net", torch::nn::Sequential(torch::nn::Linear(64, 24)));
    if (recipe_.batch_norm) net_->push_back(torch::nn::BatchNorm1d(24));
    net_->push_back(torch::nn::ReLU());
    net_->push_back(torch::nn::Dropout(0.2));
    net_->push_back(torch::nn::Linear(24, 10));
  }

  std::function<void(int64_t)> in_train_step;    // after its forward; the global step
  std::function<void()> in_val_step;
  int begun = 0, validated = 0, epochs_ended = 0;  // callbacks

  OptimizersSchedulers get_optimizers_schedulers(const TrainingPlan& plan) override {
    auto optimizer = std::make_shared<optim::SGD>(parameters(), optim::SGDOptions(0.05).momentum(0.9).nesterov(true));
    std::shared_ptr<optim::LRScheduler> schedule;
    if (recipe_.per_epoch_schedule) schedule = std::make_shared<optim::StepLR>(*optimizer, 1, 0.5);
    else schedule = std::make_shared<optim::CosineAnnealingLR>(*optimizer, plan.total_steps());
    return {{optimizer}, {schedule}};
  }
  std::unique_ptr<DataLoader> get_train_dataloader(const LoaderRequest& request) override {
    if (!recipe_.workers) return std::make_unique<TensorLoader>(std::vector<at::Tensor>{train_.images, train_.labels}, request);
    DatasetLoaderOptions options;
    options.num_workers = *recipe_.workers;
    return make_dataset_loader(MovedDigits{train_}, request, options);
  }
  NamedLoaders get_val_dataloaders(const LoaderRequest& request) override {
    NamedLoaders loaders;
    for (const char* name : {"a", "b"}) loaders.add(name, std::make_unique<TensorLoader>(std::vector<at::Tensor>{val_.images, val_.labels}, request));
    return loaders;
  }
  StepOutput train_step(const StepContext& step, Batch& batch) override {
    const at::Tensor loss = torch::nn::functional::cross_entropy(net_->forward(batch.data() + 0.01 * torch::randn_like(batch.data())), batch.target());
    if (in_train_step) in_train_step(step.global_step);
    return {loss, {{"twice", 2 * loss.detach()}}};
  }
  StepOutput val_step(const StepContext&, Batch& batch) override {
    if (in_val_step) in_val_step();
    const at::Tensor scores = net_->forward(batch.data() + 0.01 * torch::randn_like(batch.data()));
    StepOutput output{torch::nn::functional::cross_entropy(scores, batch.target()), {{"noise", torch::rand({})}}};
    output.outputs = {scores};
    return output;
  }
  void on_begin_train_epoch(int64_t, int64_t) override {
    ++begun;
    static_cast<void>(torch::rand({3}));
  }
  void on_end_val_epoch(const std::string&, const EpochSummary& summary) override {
    ++validated;
    EXPECT_EQ(summary.outputs.at(0).size(0), 360);
  }
  void on_end_train_epoch(const EpochSummary&) override { ++epochs_ended; }

 private:
  Recipe recipe_;
  DigitsData train_, val_;
  torch::nn::Sequential net_ = nullptr;
};

struct Result {
  Checkpoint last;
  std::string metrics;
};

std::string text_of(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}

TrainerOptions options_of(int64_t epochs) {
  TrainerOptions options;
  options.epochs = epochs;
  options.train_batch_size = 64;
  options.micro_batch_limit = 24;  // 64: 22, 21, 21; 29: 15, 14
  options.log_steps = 5;
  options.resume = "auto";
  return options;
}

std::unique_ptr<Trainer> make_trainer(const std::shared_ptr<Digits>& module, const TempFolder& folder, const TrainerOptions& options, const SaveSchedule& schedule = {}, Logger& logger = null_logger()) {
  Checkpointers checkpointers = testing::default_checkpointer(testing::save_in((folder / "checkpoints").string()), &logger);
  checkpointers.front()->set_schedule(schedule);
  TrainerServices services;
  services.logger = &logger;
  services.writers.push_back(make_jsonl_writer(folder / "logs"));
  return std::make_unique<Trainer>(module, nullptr, std::move(checkpointers), options, std::move(services));
}

Result result_of(const TempFolder& folder, int64_t epochs) {
  Checkpoint last = read_checkpoint(folder / "checkpoints" / ("checkpoint_" + std::to_string(epochs - 1) + ".pt"));
  last.trainer_state.set("run_id", "any");
  return {std::move(last), text_of(folder / "logs" / "metrics.jsonl")};
}

void expect_equal(const Result& ours, const Result& straight) {
  EXPECT_TRUE(equal(ours.last.module_interface_state, straight.last.module_interface_state)) << "parameters and buffers";
  EXPECT_TRUE(equal(ours.last.trainer_backend_state, straight.last.trainer_backend_state));
  for (const auto& [key, value] : straight.last.trainer_state) {
    const Value* other = ours.last.trainer_state.find(key);
    EXPECT_TRUE(other != nullptr && equal(*other, value)) << to_string(key);
  }
  EXPECT_EQ(ours.metrics, straight.metrics);
}

Result straight_run(const Recipe& recipe, int64_t epochs) {
  const TempFolder folder;
  const auto module = std::make_shared<Digits>(recipe);
  EXPECT_EQ(make_trainer(module, folder, options_of(epochs))->train().outcome, Outcome::kDone);
  return result_of(folder, epochs);
}

// Runs until the module stops the trainer, then makes everything anew and goes on to the end.
Result resumed_run(const Recipe& recipe, int64_t epochs, const std::function<void(Digits&, Trainer&)>& prepare, const SaveSchedule& schedule = {}) {
  const TempFolder folder;
  {
    const auto module = std::make_shared<Digits>(recipe);
    const auto trainer = make_trainer(module, folder, options_of(epochs), schedule);
    prepare(*module, *trainer);
    const RunResult result = trainer->train();
    EXPECT_EQ(result.outcome, Outcome::kStopped);
  }
  const auto module = std::make_shared<Digits>(recipe);
  torch::manual_seed(99);  // another state than the one that is resumed
  EXPECT_EQ(make_trainer(module, folder, options_of(epochs), schedule)->train().outcome, Outcome::kDone);
  return result_of(folder, epochs);
}

void stop_at_step(Digits& module, Trainer& trainer, int64_t step) {
  module.in_train_step = [&trainer, step](int64_t global_step) { if (global_step + 1 == step) trainer.stop(); };
}

uint32_t seed() {
  const char* given = std::getenv("MARLIN_TEST_SEED");
  const uint32_t seed = given != nullptr ? static_cast<uint32_t>(std::atoi(given)) : std::random_device{}() % 1'000'000;
  std::printf("MARLIN_TEST_SEED=%u\n", seed);
  return seed;
}

class ExactResumeTest : public ::testing::TestWithParam<std::optional<int64_t>> {};

TEST_P(ExactResumeTest, StoppedAfterEachStepOfAnEpochItIsTheStraightRun) {
  const Recipe recipe{.workers = GetParam()};
  const Result straight = straight_run(recipe, 2);
  for (int64_t step = 1; step <= kSteps; ++step) {
    SCOPED_TRACE(step);
    expect_equal(resumed_run(recipe, 2, [&](Digits& module, Trainer& trainer) { stop_at_step(module, trainer, step); }), straight);
  }
}

TEST_P(ExactResumeTest, StoppedAfterRandomStepsOfThreeEpochsItIsTheStraightRun) {
  const Recipe recipe{.workers = GetParam(), .per_epoch_schedule = true};
  const Result straight = straight_run(recipe, 3);
  std::mt19937 random(seed());
  for (int i = 0; i < (std::getenv("MARLIN_TEST_LONG") != nullptr ? 40 : 6); ++i) {
    const int64_t step = std::uniform_int_distribution<int64_t>(1, 3 * kSteps)(random);
    SCOPED_TRACE(step);
    SaveSchedule schedule;
    schedule.period_steps = 7;  // saves in the background all the while
    expect_equal(resumed_run(recipe, 3, [&](Digits& module, Trainer& trainer) { stop_at_step(module, trainer, step); }, schedule), straight);
  }
}

INSTANTIATE_TEST_SUITE_P(Workers, ExactResumeTest, ::testing::Values(std::optional<int64_t>(), 0, 1, 3),
                         [](const auto& info) { return info.param ? "workers_" + std::to_string(*info.param) : std::string("in_memory"); });

TEST(ExactResumeTest, StoppedInEachBatchOfAValidationItIsTheStraightRun) {
  for (const bool per_epoch : {false, true}) {
    const Recipe recipe{.per_epoch_schedule = per_epoch};
    const Result straight = straight_run(recipe, 2);
    for (int64_t call = 1; call <= kValCalls; ++call) {
      SCOPED_TRACE(call);
      int64_t count = 0;
      expect_equal(resumed_run(recipe, 2, [&](Digits& module, Trainer& trainer) {
        module.in_val_step = [&] { if (++count == call) trainer.stop(); };
      }), straight);
    }
  }
}

TEST(ExactResumeTest, StoppedAgainAndAgainInOneTrainerItIsTheStraightRun) {
  const Result straight = straight_run({}, 2);
  const TempFolder folder;
  const auto module = std::make_shared<Digits>(Recipe{});
  const auto trainer = make_trainer(module, folder, options_of(2));
  int64_t calls = 0;  // of train_step or val_step, for a micro-batch; a loader's validation has 17, so that it comes to an end
  const auto stop_now_and_then = [&] { if (++calls % 20 == 0) trainer->stop(); };
  module->in_train_step = [&](int64_t) { stop_now_and_then(); };
  module->in_val_step = stop_now_and_then;
  int64_t runs = 0;
  while (trainer->train().outcome == Outcome::kStopped) ++runs;
  EXPECT_GT(runs, 8);
  EXPECT_EQ(module->validated, 4) << "each loader once an epoch";
  EXPECT_EQ(module->epochs_ended, 2);
  expect_equal(result_of(folder, 2), straight);
}

TEST(ExactResumeTest, AfterAnExceptionTheSuspectStateGoesOnAsIfItHadNotBeenThrown) {
  const Recipe recipe{.batch_norm = false};  // its averages have moved on with the step that threw
  const Result straight = straight_run(recipe, 2);
  for (const int64_t step : {2, 11, 22, 23, 24, 40}) {
    SCOPED_TRACE(step);
    const TempFolder folder;
    auto module = std::make_shared<Digits>(recipe);
    module->in_train_step = [&](int64_t global_step) { if (global_step == step) throw std::runtime_error("a cable was pulled"); };
    EXPECT_THAT([&] { make_trainer(module, folder, options_of(2))->train(); }, ::testing::ThrowsMessage<std::runtime_error>("a cable was pulled"));
    module = std::make_shared<Digits>(recipe);
    torch::manual_seed(99);
    TrainerOptions options = options_of(2);
    const auto suspect = folder / "checkpoints" / ("checkpoint_suspect_" + std::to_string(step) + ".pt");
    ASSERT_TRUE(std::filesystem::exists(suspect));
    options.resume = suspect.string();
    EXPECT_EQ(make_trainer(module, folder, options)->train().outcome, Outcome::kDone);
    expect_equal(result_of(folder, 2), straight);
  }
}

TEST(ExactResumeTest, AfterAnExceptionTheLastGoodCheckpointGoesOnExactly) {
  const Recipe recipe{.workers = 3};
  const Result straight = straight_run(recipe, 2);
  SaveSchedule schedule;
  schedule.period_steps = 6;  // records come every 5 steps, so that one lies between checkpoint and exception
  for (const int64_t step : {11, 22, 35}) {
    SCOPED_TRACE(step);
    const TempFolder folder;
    auto module = std::make_shared<Digits>(recipe);
    module->in_train_step = [&](int64_t global_step) { if (global_step == step) throw std::runtime_error("a cable was pulled"); };
    EXPECT_THROW(make_trainer(module, folder, options_of(2), schedule)->train(), std::runtime_error);
    RecordingLogger logger;
    EXPECT_EQ(make_trainer(std::make_shared<Digits>(recipe), folder, options_of(2), schedule, logger)->train().outcome, Outcome::kDone);
    expect_equal(result_of(folder, 2), straight);
    EXPECT_THAT(logger.lines(LogLevel::kInfo), ::testing::Contains(::testing::HasSubstr("metrics.superseded.jsonl"))) << "what came after it was recorded already";
  }
}

TEST(ExactResumeTest, EndedByMaxStepsWithinAnEpochAndExtendedItIsTheStraightRun) {
  const Recipe recipe{.per_epoch_schedule = true};
  const Result straight = straight_run(recipe, 2);
  for (const int64_t steps : {1, 10, 23, 30}) {
    SCOPED_TRACE(steps);
    const TempFolder folder;
    TrainerOptions options = options_of(2);
    options.max_steps = steps;
    EXPECT_EQ(make_trainer(std::make_shared<Digits>(recipe), folder, options)->train().outcome, Outcome::kDone);
    RecordingLogger logger;
    EXPECT_EQ(make_trainer(std::make_shared<Digits>(recipe), folder, options_of(2), {}, logger)->train().outcome, Outcome::kDone);
    Result extended = result_of(folder, 2);
    expect_equal(extended, straight);
    EXPECT_THAT(logger.warnings(), ::testing::IsEmpty());
  }
}

TEST(ExactResumeTest, AnExtendedRunIsAsIfAskedForMoreFromItsStart) {
  const Recipe recipe{.per_epoch_schedule = true};
  const Result straight = straight_run(recipe, 3);
  const TempFolder folder;
  EXPECT_EQ(make_trainer(std::make_shared<Digits>(recipe), folder, options_of(1))->train().outcome, Outcome::kDone);
  RecordingLogger logger;
  EXPECT_EQ(make_trainer(std::make_shared<Digits>(recipe), folder, options_of(3), {}, logger)->train().outcome, Outcome::kDone);
  expect_equal(result_of(folder, 3), straight);
  EXPECT_THAT(logger.warnings(), ::testing::IsEmpty());
}

TEST(ExactResumeTest, AnExtendedRunSaysSoWhereItsScheduleWouldHaveBeenAnother) {
  const TempFolder folder;
  EXPECT_EQ(make_trainer(std::make_shared<Digits>(Recipe{}), folder, options_of(1))->train().outcome, Outcome::kDone);
  RecordingLogger logger;
  EXPECT_EQ(make_trainer(std::make_shared<Digits>(Recipe{}), folder, options_of(3), {}, logger)->train().outcome, Outcome::kDone);
  EXPECT_THAT(logger.warnings(), ::testing::ElementsAre(::testing::StartsWith("scheduler 0: the rate at this point was ")));
}

}  // namespace
}  // namespace marlin
