// pymarlin's behaviour, row by row: trainer and backend. The number at a name's end is the row of the case table; a comment says
// where this project does better.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/torch.h>

#include <cstdio>

#include "marlin/core/backends/sp_backend.h"
#include "recording_checkpointer.h"
#include "temp_folder.h"
#include "throws_error.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::default_checkpointer;
using testing::names_in;
using testing::run_of;
using testing::save_in;
using testing::saving_trainer;
using testing::TempFolder;
using testing::ThrowsError;
using testing::TinyModule;
using testing::TinyOptions;
using testing::unsaved_trainer;

// ---- trainer

TEST(PymarlinCases, ModuleAndBackendAreKeptAsGivenRow14) {
  class Backend final : public SingleProcessBackend {
   public:
    explicit Backend(int& inits) : inits_(inits) {}
    void init(const BackendSetup& setup) override {
      ++inits_;
      SingleProcessBackend::init(setup);
    }

   private:
    int& inits_;
  };
  int inits = 0;
  auto module = std::make_shared<TinyModule>();
  DefaultCheckpointerOptions off;
  off.checkpoint = false;
  Trainer trainer(module, std::make_unique<Backend>(inits), default_checkpointer(off), run_of(1));
  trainer.train();
  EXPECT_EQ(&trainer.module(), module.get());
  EXPECT_EQ(inits, 1);
}

std::pair<std::vector<int64_t>, int64_t> micro_batches(int64_t samples, int64_t batch_size, std::optional<int64_t> limit) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = samples, .val = {{"default", 10}}});
  TrainerOptions options = run_of(1, batch_size);
  options.micro_batch_limit = limit;
  options.val_batch_size = 8;
  unsaved_trainer(module, options)->train();
  return {module->micro_sizes, module->requests.at(1).batch_size};
}

TEST(PymarlinCases, ABatchBelowTheLimitIsWholeRow15) {
  const auto [sizes, val] = micro_batches(6, 6, 1000);
  EXPECT_THAT(sizes, ElementsAre(6));
  EXPECT_EQ(val, 8);
}

TEST(PymarlinCases, TheLimitCutsBatchesRow16) {
  const auto [sizes, val] = micro_batches(6, 6, 3);
  EXPECT_THAT(sizes, ElementsAre(3, 3));
  EXPECT_EQ(val, 8);
}

// Better: pymarlin asks for the training loader six times; here each is asked for once a run.
TEST(PymarlinCases, ARunsCallsRow17AndD23) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 6, .val = {{"default", 8}}});
  TrainerOptions options = run_of(3, 6);
  options.val_batch_size = 8;
  unsaved_trainer(module, options)->train();
  EXPECT_THAT(module->requests, SizeIs(2));
  EXPECT_THAT(module->train_steps, SizeIs(3));
  EXPECT_THAT(module->val_steps, SizeIs(3));
  EXPECT_EQ(module->times("end_epoch"), 3u);
  EXPECT_EQ(module->times("end_val"), 3u);
  EXPECT_EQ(module->times("end_train"), 1u);
}

TEST(PymarlinCases, ValidateAloneRow18) {
  auto module = std::make_shared<TinyModule>();
  unsaved_trainer(module, run_of(3))->validate();
  EXPECT_EQ(module->times("end_val"), 1u);
  EXPECT_EQ(module->times("end_train"), 0u);
  EXPECT_THAT(module->train_steps, IsEmpty());
}

// Better: 25, not 26.
TEST(PymarlinCases, AHundredSamplesInBatchesOfFourAreTwentyFiveStepsRow19AndD12) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 100});
  TrainerOptions options = run_of(1, 4);
  options.micro_batch_limit = 1;
  EXPECT_EQ(unsaved_trainer(module, options)->train().global_step, 25);
  EXPECT_EQ(module->plans.at(0).steps_per_epoch, 25);
}

// Better than row 21: a second run over the first one's files is refused, and starts anew only when it is told to.
TEST(PymarlinCases, ThreeEpochsLeaveThreeFilesRow20AndAnotherRunIsRefusedRow21) {
  const TempFolder folder;
  DefaultCheckpointerOptions options = save_in((folder / "save").string());
  options.model_state_save_dir = (folder / "models").string();
  options.load_dir = (folder / "load").string();
  options.file_prefix = "test";
  options.file_ext = "tar";
  std::filesystem::create_directory(folder / "load");
  const auto run = [&](int64_t epochs, const char* resume) {
    TrainerOptions trainer = run_of(epochs);
    trainer.resume = resume;
    auto module = std::make_shared<TinyModule>();
    Trainer(module, nullptr, default_checkpointer(options), trainer).train();
    return module->times("end_epoch");
  };
  EXPECT_EQ(run(3, "never"), 3u);
  EXPECT_THAT(names_in(folder / "save"), ElementsAre("test_0.tar", "test_1.tar", "test_2.tar"));
  EXPECT_THAT(names_in(folder / "models"), ElementsAre("test_model_2.tar"));
  EXPECT_THAT([&] { run(4, "never"); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("test_0.tar")));
  EXPECT_THAT([&] { run(4, "must"); }, ::testing::Not(::testing::Throws<Error>())) << "load_dir is empty: it goes on from save_dir";
  EXPECT_THAT(names_in(folder / "models"), ElementsAre("test_model_2.tar", "test_model_3.tar"));
  options.delete_existing_checkpoints = true;
  EXPECT_EQ(run(4, "never"), 4u);
  EXPECT_THAT(names_in(folder / "save"), SizeIs(4));
  EXPECT_THAT(names_in(folder / "models"), ElementsAre("test_model_3.tar"));
}

// ---- backend

// A module of one number x with loss x * x.
class Square : public TinyModule {
 public:
  explicit Square(double value, TinyOptions options = {.num_samples = 10, .shuffle = false}) : TinyModule(std::move(options)) { x = register_parameter("x", torch::tensor(value)); }
  StepOutput train_step(const StepContext& step, Batch&) override {
    seen.push_back(step);
    return x.square();
  }
  StepOutput val_step(const StepContext& step, Batch&) override {
    seen.push_back(step);
    return {};
  }
  at::Tensor x;
  std::vector<StepContext> seen;
};

class Quiet final : public StepListener {
 public:
  bool on_train_step(const StepReport& step) override { return outputs.push_back(*step.outputs), true; }
  bool on_val_step(const StepReport&) override { return true; }
  std::vector<std::vector<at::Tensor>> outputs;  // of each step
};

struct BackendRig {
  explicit BackendRig(std::shared_ptr<TinyModule> trained, int64_t batch_size = 1, const std::function<void(BackendSetup&)>& change = {}) : module(std::move(trained)) {
    LoaderRequest request;
    request.batch_size = batch_size;
    loader = module->get_train_dataloader(request);
    setup.module = module.get();
    setup.optimizers = {std::make_shared<torch::optim::SGD>(module->parameters(), torch::optim::SGDOptions(0.1))};
    setup.max_train_steps_per_epoch = setup.max_val_steps_per_epoch = 1;
    setup.clip_grads = false;
    if (change) change(setup);
    backend.init(setup);
  }
  EpochResult train() { return backend.train(*loader, 0, 0, listener); }

  std::shared_ptr<TinyModule> module;
  std::unique_ptr<DataLoader> loader;
  BackendSetup setup;
  SingleProcessBackend backend;
  Quiet listener;
};

// Better: global_step is the number of steps completed, in train_step as everywhere; the gradient is still there after the step.
TEST(PymarlinCases, OneStepOfTheSquareRow23AndD20) {
  auto module = std::make_shared<Square>(1.0);
  BackendRig rig(module);
  double gradient = 0.0;
  std::vector<std::pair<int64_t, double>> ended;
  module->at_end_step = [&](const StepSummary& step) {
    gradient = module->x.grad().item<double>();
    ended.emplace_back(step.global_step, step.loss);
  };
  static_cast<void>(rig.train());
  ASSERT_THAT(module->seen, SizeIs(1));
  EXPECT_EQ(module->seen[0].stage, Stage::kTrain);
  EXPECT_EQ(module->seen[0].global_step, 0);
  EXPECT_EQ(module->seen[0].device, at::kCPU);
  EXPECT_EQ(gradient, 2.0);
  EXPECT_FLOAT_EQ(module->x.item<float>(), 0.8f);
  EXPECT_THAT(ended, ElementsAre(std::pair(1, 1.0)));
}

TEST(PymarlinCases, ValidationSeesTheStepsCompletedRow24) {
  auto module = std::make_shared<Square>(1.0);
  BackendRig rig(module);
  static_cast<void>(rig.backend.validate(*rig.loader, "default", 0, rig.listener));
  ASSERT_THAT(module->seen, SizeIs(1));
  EXPECT_EQ(module->seen[0].stage, Stage::kVal);
  EXPECT_EQ(module->seen[0].global_step, 0);
}

TEST(PymarlinCases, AccumulationOfTwoIsOneStepRow25) {
  auto module = std::make_shared<Square>(1.0);
  BackendRig rig(module, 2, [](BackendSetup& setup) { setup.micro_batch_limit = 1; });
  static_cast<void>(rig.train());
  EXPECT_THAT(module->seen, SizeIs(2));
  EXPECT_EQ(rig.backend.global_step_completed(), 1);
  EXPECT_EQ(rig.backend.batches_completed(), 2);
  EXPECT_FLOAT_EQ(module->x.item<float>(), 0.8f);
}

TEST(PymarlinCases, ClippingBoundsTheGradientRow26) {
  for (int value = -10; value < 10; ++value) {
    auto module = std::make_shared<Square>(value);
    BackendRig rig(module, 1, [](BackendSetup& setup) { setup.clip_grads = true, setup.max_grad_norm = 1.0; });
    static_cast<void>(rig.train());
    const double gradient = module->x.grad().item<double>();
    EXPECT_NEAR(gradient, value == 0 ? 0.0 : value > 0 ? 1.0 : -1.0, 1e-5);
    EXPECT_LE(std::abs(gradient), 1.0);
  }
}

TEST(PymarlinCases, OutputsAreCollatedRow27) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 14, .shuffle = false});
  const std::vector<int64_t> rows = {4, 3, 4, 3};
  size_t calls = 0;
  module->instead_of_train_step = [&](const StepContext&, Batch& batch) {
    StepOutput output(module->predict(batch.data()).mean());
    output.outputs = {output.loss, torch::full({rows.at(calls), 3}, static_cast<double>(calls))};
    ++calls;
    return output;
  };
  BackendRig rig(module, 7, [](BackendSetup& setup) { setup.micro_batch_limit = 4, setup.max_train_steps_per_epoch = 2; });
  static_cast<void>(rig.train());
  EXPECT_EQ(calls, 4u);
  EXPECT_EQ(rig.backend.global_step_completed(), 2);
  ASSERT_EQ(rig.listener.outputs.size(), 2u);
  for (const auto& outputs : rig.listener.outputs) {
    EXPECT_EQ(outputs.at(0).sizes(), (std::vector<int64_t>{2}));
    EXPECT_EQ(outputs.at(1).sizes(), (std::vector<int64_t>{7, 3}));
  }
}

TEST(PymarlinCases, ANewBackendHasDoneNothingRow28) {
  const StateDict state = SingleProcessBackend().get_state();
  EXPECT_EQ(state.size(), 2u);
  EXPECT_EQ(state.at("global_step_completed").as_int(), 0);
  EXPECT_EQ(state.at("batches_completed").as_int(), 0);
}

TEST(PymarlinCases, ABackendTakesItsCountsRow29) {
  SingleProcessBackend backend;
  backend.update_state({{"global_step_completed", 1}, {"batches_completed", 2}});
  EXPECT_EQ(backend.global_step_completed(), 1);
  EXPECT_EQ(backend.batches_completed(), 2);
  EXPECT_THAT([&] { backend.update_state({{"global_step_completed", 5}}); }, ThrowsError(Errc::kNotFound, HasSubstr("batches_completed")));
  EXPECT_EQ(backend.global_step_completed(), 1) << "all or nothing";
}

// ---- probes

// Better: with nothing left nothing is written again, and on_end_train is not called again.
TEST(PymarlinCases, NothingLeftDoesNothingRow62) {
  const TempFolder folder;
  auto module = std::make_shared<TinyModule>();
  const auto trainer = saving_trainer(module, folder.text(), run_of(2));
  trainer->train();
  const auto written = std::filesystem::last_write_time(folder / "checkpoint_1.pt");
  EXPECT_EQ(trainer->train().outcome, RunResult::Outcome::kNothingToDo);
  EXPECT_EQ(module->times("end_train"), 1u);
  TrainerOptions options = run_of(2);
  options.resume = "must";
  auto resumed = std::make_shared<TinyModule>();
  EXPECT_EQ(saving_trainer(resumed, folder.text(), options)->train().outcome, RunResult::Outcome::kNothingToDo);
  EXPECT_THAT(resumed->log, IsEmpty());
  EXPECT_EQ(std::filesystem::last_write_time(folder / "checkpoint_1.pt"), written);
}

// Better: get_optimizers_schedulers is called once, with the epochs that remain.
TEST(PymarlinCases, ResetMakesOptimizersOnceForWhatRemainsRow63) {
  const TempFolder folder;
  saving_trainer(std::make_shared<TinyModule>(TinyOptions{.num_samples = 12, .adamw = true}), folder.text(), run_of(2))->train();
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 12, .adamw = true});
  TrainerOptions options = run_of(5);
  options.resume = "must";
  options.reset_optimizers_schedulers = true;
  saving_trainer(module, folder.text(), options)->train();
  ASSERT_THAT(module->plans, SizeIs(1));
  EXPECT_EQ(module->plans[0].steps_per_epoch, 3);
  EXPECT_EQ(module->plans[0].epochs, 3);
}

// Better: refused, not cut to the shorter list.
TEST(PymarlinCases, AnotherNumberOfOptimizersIsRefusedRow64AndD8) {
  const TempFolder folder;
  saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(1))->train();
  auto module = std::make_shared<TinyModule>();
  module->make_optimizers = [](TinyModule& of, const TrainingPlan&) {
    return OptimizersSchedulers{{std::make_shared<torch::optim::SGD>(std::vector<at::Tensor>{of.weight()}, torch::optim::SGDOptions(0.1)),
                                 std::make_shared<torch::optim::SGD>(std::vector<at::Tensor>{of.bias()}, torch::optim::SGDOptions(0.1))}};
  };
  TrainerOptions options = run_of(2);
  options.resume = "must";
  EXPECT_THAT([&] { saving_trainer(module, folder.text(), options)->train(); }, ThrowsError(Errc::kMismatch, HasSubstr("optimizers: 1 in the file, 2 in this run")));
}

TEST(PymarlinCases, WithoutSchedulersCheckpointsAreWrittenRow65AndD9) {
  const TempFolder folder;
  EXPECT_FALSE(saving_trainer(std::make_shared<TinyModule>(), folder.text(), run_of(1))->train().last_save_failed);
  EXPECT_THAT(read_checkpoint(folder / "checkpoint_0.pt").trainer_state.at("schedulers").as_items(), IsEmpty());
}

// Better: of every size the whole batch is used, in the fewest micro-batches.
TEST(PymarlinCases, TheTableOfBatchesRow66AndD11) {
  struct Row {
    int64_t batch, limit;
    std::vector<int64_t> sizes;
  };
  for (const Row& row : std::vector<Row>{{6, 1000, {6}}, {6, 3, {3, 3}}, {7, 4, {4, 3}}, {9, 2, {2, 2, 2, 2, 1}}, {12, 5, {4, 4, 4}}, {16, 3, {3, 3, 3, 3, 2, 2}},
                                         {100, 7, {7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6, 6, 6, 6, 6}}, {1000, 512, {500, 500}}}) {
    EXPECT_EQ(micro_batches(row.batch, row.batch, row.limit).first, row.sizes) << row.batch << " by " << row.limit;
  }
}

// D10: a step is one global batch; what is left over at an epoch's end is a step of its own, with its own loss.
TEST(PymarlinCases, NothingIsCarriedOverAnEpochsEndD10) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.num_samples = 6, .shuffle = false});
  std::vector<int64_t> samples;
  module->instead_of_train_step = [&](const StepContext& step, Batch& batch) {
    samples.push_back(batch.num_samples);
    EXPECT_TRUE(step.micro_batch > 0 || !(module->weight().grad().defined() && module->weight().grad().any().item<bool>()));
    return StepOutput(module->predict(batch.data()).square().mean());
  };
  TrainerOptions options = run_of(2);
  options.micro_batch_limit = 2;
  EXPECT_EQ(unsaved_trainer(module, options)->train().global_step, 4);
  EXPECT_THAT(samples, ElementsAre(2, 2, 2, 2, 2, 2));
  EXPECT_THAT(module->losses, SizeIs(4));
}

// D19: the order of an epoch and random numbers go on as they would have, whatever was drawn in between.
TEST(PymarlinCases, RandomNumbersGoOnAfterAResumeD19) {
  const auto module = [] { return std::make_shared<TinyModule>(TinyOptions{.num_samples = 12, .dropout = 0.5}); };
  const TempFolder folder, straight_folder;
  auto straight = module(), first = module(), resumed = module();
  torch::manual_seed(3);
  saving_trainer(straight, straight_folder.text(), run_of(2))->train();
  torch::manual_seed(3);
  saving_trainer(first, folder.text(), run_of(1))->train();
  torch::manual_seed(4);
  TrainerOptions options = run_of(2);
  options.resume = "must";
  saving_trainer(resumed, folder.text(), options)->train();
  EXPECT_TRUE(testing::same_parameters(*straight, *resumed));
}

// Better: 0 is refused, not taken for "no limit".
TEST(PymarlinCases, NoStepsAnEpochAreRefusedRow67) {
  TrainerOptions options = run_of(1);
  options.max_train_steps_per_epoch = 0;
  EXPECT_THAT([&] { static_cast<void>(unsaved_trainer(std::make_shared<TinyModule>(), options)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("max_train_steps_per_epoch")));
  options.max_train_steps_per_epoch.reset();
  options.max_val_steps_per_epoch = 0;
  EXPECT_THAT([&] { static_cast<void>(unsaved_trainer(std::make_shared<TinyModule>(), options)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("max_val_steps_per_epoch")));
}

// Better: validate() returns what all loaders gave.
TEST(PymarlinCases, TwoValidationLoadersRow68AndD21) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.val = {{"a", 4}, {"b", 2}}});
  const Metrics metrics = unsaved_trainer(module, run_of(1))->validate();
  EXPECT_THAT(module->log, ElementsAre(HasSubstr("end_val a"), HasSubstr("end_val b")));
  EXPECT_NE(metrics.find("val/a/loss"), nullptr);
  EXPECT_NE(metrics.find("val/b/loss"), nullptr);
}

// Better: validation is left out; a missing training loader is refused with a sentence.
TEST(PymarlinCases, NoValidationLoaderIsNoErrorRow69AndD22) {
  EXPECT_EQ(unsaved_trainer(std::make_shared<TinyModule>(TinyOptions{.val = {}}), run_of(1))->train().epochs, 1);
  auto module = std::make_shared<TinyModule>();
  module->instead_of_train_loader = [](const LoaderRequest&) { return nullptr; };
  EXPECT_THAT([&] { unsaved_trainer(module, run_of(1))->train(); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("no training loader")));
}

// Better: the shape and what to do about it.
TEST(PymarlinCases, ALossVectorIsRefusedRow71) {
  auto module = std::make_shared<TinyModule>();
  module->instead_of_train_step = [&](const StepContext&, Batch& batch) { return StepOutput(module->predict(batch.data())); };
  EXPECT_THAT([&] { unsaved_trainer(module, run_of(1))->train(); },
              ThrowsError(Errc::kTraining, AllOf(HasSubstr("epoch 0, step 1"), HasSubstr("[4, 1]"), HasSubstr("scalar"))));
}

// D28: without outputs nothing is kept over an epoch.
TEST(PymarlinCases, OutputsAreKeptOnlyIfTheyAreReturnedD28) {
  auto module = std::make_shared<TinyModule>();
  unsaved_trainer(module, run_of(1))->train();
  EXPECT_THAT(module->train_summaries.at(0).outputs, IsEmpty());
  EXPECT_THAT(module->val_summaries.at(0).outputs, IsEmpty());
}

// What the digits program says and how it ends.
struct Said {
  int code = -1;
  std::string text;
};

Said digits(const std::string& flags) {
  const TempFolder folder;
  Said said;
  std::FILE* pipe = ::popen(("cd '" + folder.text() + "' && '" MARLIN_BINARY_DIR "/bin/digits' " + flags + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return said;
  char piece[4096];
  for (size_t size = 0; (size = std::fread(piece, 1, sizeof piece, pipe)) > 0;) said.text.append(piece, size);
  const int status = ::pclose(pipe);
  if (WIFEXITED(status)) said.code = WEXITSTATUS(status);
  return said;
}

// Better: the choices are listed.
TEST(PymarlinCases, AnUnknownBackendOrWriterIsRefusedWithTheChoicesRow79) {
  const Said backend = digits("--backend spp");
  EXPECT_EQ(backend.code, 2);
  EXPECT_THAT(backend.text, AllOf(HasSubstr("spp"), HasSubstr("built in: sp")));
  const Said writer = digits("--writers stdou");
  EXPECT_EQ(writer.code, 2);
  EXPECT_THAT(writer.text, AllOf(HasSubstr("stdou"), HasSubstr("built in: stdout, jsonl")));
}

// Better: exactly 0 at the end, since the count is exact.
TEST(PymarlinCases, ALinearDecayReachesZeroRow80AndD12) {
  auto module = std::make_shared<TinyModule>(TinyOptions{.adamw = true});
  std::vector<double> factors;
  module->at_end_step = [&](const StepSummary&) { factors.push_back(module->made.schedulers.at(0)->get_last_lr().at(0) / 0.1); };
  unsaved_trainer(module, run_of(2))->train();
  ASSERT_THAT(factors, SizeIs(4));
  EXPECT_DOUBLE_EQ(factors[0], 0.75);
  EXPECT_DOUBLE_EQ(factors[1], 0.5);
  EXPECT_DOUBLE_EQ(factors[2], 0.25);
  EXPECT_EQ(factors[3], 0.0);
}

}  // namespace
}  // namespace marlin
