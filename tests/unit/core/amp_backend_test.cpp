#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "marlin/core/backends/grad_scaler.h"
#include "marlin/core/backends/sp_backend.h"
#include "throws_error.h"
#include "tiny_module.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::ThrowsError;
using testing::TinyModule;
using testing::TinyOptions;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(GradScalerTest, GrowsAfterStepsWithoutOverflowAndShrinksAfterOne) {
  GradScaler scaler({.init_scale = 8.0, .growth_factor = 4.0, .backoff_factor = 0.25, .growth_interval = 3});
  const auto after = [&](bool overflowed) { return scaler.update(overflowed), scaler.get_scale(); };
  EXPECT_EQ(after(false), 8.0);
  EXPECT_EQ(after(false), 8.0);
  EXPECT_EQ(after(false), 32.0);
  EXPECT_EQ(after(false), 32.0);
  EXPECT_EQ(after(true), 8.0);
  EXPECT_EQ(after(false), 8.0);
  EXPECT_EQ(after(false), 8.0) << "an overflow begins the count anew";
  EXPECT_EQ(after(false), 32.0);
}

TEST(GradScalerTest, TheScaleStaysAFiniteFloat) {
  GradScaler scaler({.init_scale = 2e38, .growth_interval = 1});
  scaler.update(false);
  EXPECT_EQ(scaler.get_scale(), static_cast<double>(2e38F));
}

TEST(GradScalerTest, UnscalesInPlaceAndTellsOfWhatIsNotFinite) {
  const GradScaler scaler({.init_scale = 4.0});
  const at::Tensor a = torch::tensor({4.0F, -8.0F}), b = torch::tensor({2.0, 6.0}, torch::kFloat64);
  EXPECT_TRUE(scaler.unscale({a, at::Tensor(), b}));
  EXPECT_TRUE(torch::equal(a, torch::tensor({1.0F, -2.0F})));
  EXPECT_TRUE(torch::equal(b, torch::tensor({0.5, 1.5}, torch::kFloat64)));
  EXPECT_FALSE(scaler.unscale({torch::tensor({1.0F}), torch::tensor({std::numeric_limits<float>::infinity()})}));
  EXPECT_FALSE(scaler.unscale({torch::tensor({std::numeric_limits<float>::quiet_NaN()})}));
  EXPECT_TRUE(scaler.unscale({}));
  EXPECT_THAT([&] { (void)scaler.unscale({torch::ones({2}, torch::kHalf)}); }, ThrowsError(Errc::kUnsupported, HasSubstr("keep parameters in float32")));
}

TEST(GradScalerTest, OptionsAndStatesOutOfRangeAreRefusedAndChangeNothing) {
  EXPECT_THAT([] { GradScaler({.growth_factor = 1.0}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("growth_factor is 1, and must be above 1")));
  EXPECT_THAT([] { GradScaler({.init_scale = kInfinity}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("init_scale")));
  GradScaler scaler({.init_scale = 16.0});
  StateDict state = scaler.get_state();
  state.set("scale", -1.0);
  EXPECT_THAT([&] { scaler.update_state(state); }, ThrowsError(Errc::kMismatch, HasSubstr("init_scale is -1")));
  state.set("scale", "much");
  EXPECT_THAT([&] { scaler.update_state(state); }, ThrowsError(Errc::kMismatch, HasSubstr("string")));
  EXPECT_EQ(scaler.get_scale(), 16.0);
}

class Listener final : public StepListener {
 public:
  bool on_train_step(const StepReport& step) override {
    skipped.push_back(step.skipped);
    if (!step.skipped) losses.push_back(step.loss);
    return true;
  }
  bool on_val_step(const StepReport&) override { return true; }
  std::vector<bool> skipped;
  std::vector<double> losses;
};

class CountingScheduler final : public optim::LRScheduler {
 public:
  explicit CountingScheduler(torch::optim::Optimizer& optimizer) : LRScheduler(optimizer, Per::kStep) {}
  mutable int64_t steps = 0;

 private:
  [[nodiscard]] double factor(int64_t count, size_t) const override { return steps = count, 1.0; }
};

// Batches of 2; what train_step makes of its loss can be changed by the number of its call.
struct Rig {
  explicit Rig(const AmpOptions& amp, int64_t num_samples = 8) : module(std::make_shared<TinyModule>(TinyOptions{.num_samples = num_samples})), backend(amp) {
    LoaderRequest request;
    request.batch_size = 2;
    loader = module->get_train_dataloader(request);
    loader->begin_epoch(0);
    setup.module = module.get();
    setup.optimizers = {std::make_shared<torch::optim::SGD>(module->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9))};
    module->instead_of_train_step = [this](const StepContext& step, Batch& batch) {
      at::Tensor loss = (module->predict(batch.data()) - batch.target()).square().mean();
      if (change) loss = change(calls++, loss);
      if (!by_hand) return StepOutput(loss);
      step.optimize(loss);
      return StepOutput(loss.detach());
    };
  }
  EpochResult train() {
    backend.init(setup);
    return backend.train(*loader, 0, 0, listener);
  }
  double scale() const { return backend.get_state().at("scaler").as_dict().at("scale").as_double(); }

  std::shared_ptr<TinyModule> module;
  std::unique_ptr<DataLoader> loader;
  BackendSetup setup;
  SingleProcessBackend backend;
  Listener listener;
  std::function<at::Tensor(int call, const at::Tensor& loss)> change;
  bool by_hand = false;
  int calls = 0;
};

AmpOptions with_scaler() {
  AmpOptions amp;
  amp.grad_scaler = "on";
  return amp;
}

TEST(AmpBackendTest, ForwardPassesRunInBfloat16AndParametersStayFloat) {
  Rig rig({});
  std::vector<at::ScalarType> seen;
  rig.module->instead_of_train_step = [&](const StepContext&, Batch& batch) {
    const at::Tensor prediction = rig.module->predict(batch.data());
    seen.push_back(prediction.scalar_type());
    return StepOutput((prediction - batch.target()).square().mean());
  };
  static_cast<void>(rig.train());
  ASSERT_EQ(seen.size(), 4u);
  for (const at::ScalarType type : seen) EXPECT_EQ(type, at::kBFloat16);
  EXPECT_EQ(rig.module->weight().scalar_type(), at::kFloat);
  EXPECT_EQ(rig.module->weight().grad().scalar_type(), at::kFloat);
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU)) << "autocast ends with the step";
  EXPECT_FALSE(rig.backend.get_state().contains("scaler")) << "bfloat16 needs no scaler";
}

TEST(AmpBackendTest, AnOverflowIsSkippedCountedApartAndMovesNoScheduler) {
  for (const bool by_hand : {false, true}) {
    SCOPED_TRACE(by_hand ? "step.optimize" : "automatic");
    Rig rig(with_scaler());
    rig.by_hand = by_hand;
    auto scheduler = std::make_shared<CountingScheduler>(*rig.setup.optimizers[0]);
    rig.setup.schedulers = {scheduler};
    at::Tensor before, after;
    rig.change = [&](int call, const at::Tensor& loss) {
      if (call == 1) before = rig.module->weight().detach().clone();
      if (call == 2) after = rig.module->weight().detach().clone();
      return call == 1 ? loss * kInfinity : loss;
    };
    static_cast<void>(rig.train());
    EXPECT_THAT(rig.listener.skipped, ElementsAre(false, true, false, false));
    EXPECT_EQ(rig.backend.global_step_completed(), 3);
    EXPECT_EQ(rig.backend.skipped_steps(), 1);
    EXPECT_EQ(scheduler->steps, 3);
    EXPECT_TRUE(torch::equal(before, after));
    EXPECT_EQ(rig.scale(), 32768.0);
    for (const double loss : rig.listener.losses) EXPECT_TRUE(std::isfinite(loss));
    EXPECT_TRUE(rig.module->weight().isfinite().all().item<bool>());
  }
}

TEST(AmpBackendTest, ScaledStepsAreThoseWithoutAScaler) {
  const auto trained = [](const AmpOptions& amp) {
    Rig rig(amp, 40);
    static_cast<void>(rig.train());
    return rig.module->weight().detach().clone();
  };
  const at::Tensor plain = trained({}), scaled = trained(with_scaler());
  EXPECT_TRUE(torch::equal(plain, scaled)) << plain << scaled << "a scale that is a power of two rounds nothing";
}

TEST(AmpBackendTest, ARunWhoseGradientsAreNeverFiniteEndsWithALine) {
  Rig rig(with_scaler(), 200);
  rig.change = [](int, const at::Tensor& loss) { return loss * kInfinity; };
  EXPECT_THAT([&] { static_cast<void>(rig.train()); }, ThrowsError(Errc::kTraining, AllOf(HasSubstr("40 steps in a row"), HasSubstr("learning rate"))));
}

TEST(AmpBackendTest, TheScalersStateResumesAndABrokenOneIsADifference) {
  Rig rig(with_scaler());
  rig.change = [](int call, const at::Tensor& loss) { return call == 0 ? loss * kInfinity : loss; };
  static_cast<void>(rig.train());
  StateDict state = rig.backend.get_state();
  Rig other(with_scaler());
  other.backend.init(other.setup);
  EXPECT_TRUE(other.backend.differences(state).empty());
  other.backend.update_state(state);
  EXPECT_TRUE(equal(other.backend.get_state(), state));
  state.set("scaler", StateDict{{"scale", 1.0}});
  EXPECT_EQ(other.backend.differences(state).size(), 1u);
}

TEST(AmpBackendTest, Float16OnTheCpuIsRefused) {
  AmpOptions amp;
  amp.dtype = "float16";
  Rig rig(amp);
  EXPECT_THAT([&] { static_cast<void>(rig.train()); }, ThrowsError(Errc::kUnsupported, HasSubstr("--backend.dtype bfloat16")));
}

}  // namespace
}  // namespace marlin
