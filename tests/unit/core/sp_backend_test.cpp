#include "marlin/core/backends/sp_backend.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <numeric>

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

// Ends an epoch after so many steps, and keeps what was reported.
class Listener final : public StepListener {
 public:
  bool on_train_step(const StepReport& step) override {
    train.push_back(step.metrics->means(""));
    sums.add(*step.metrics);
    return train.size() != stop_after;
  }
  bool on_val_step(const StepReport&) override { return ++val != stop_after; }

  size_t stop_after = 0, val = 0;
  std::vector<Metrics> train;
  MetricSums sums;  // of all training steps
};

struct Rig {
  explicit Rig(TinyOptions options = {}, int64_t batch_size = 4, const std::function<void(BackendSetup&)>& change = {}) : module(std::make_shared<TinyModule>(options)) {
    LoaderRequest request;
    request.batch_size = batch_size;
    loader = module->get_train_dataloader(request);
    loader->begin_epoch(0);
    setup.module = module.get();
    setup.optimizers = {std::make_shared<torch::optim::SGD>(module->parameters(), torch::optim::SGDOptions(0.1))};
    setup.clip_grads = false;
    if (change) change(setup);
    backend.init(setup);
  }
  EpochResult train(int64_t steps_done = 0) { return backend.train(*loader, 0, steps_done, listener); }
  // The means over the rest of the epoch.
  Metrics trained(std::string_view prefix = "") {
    listener.sums = {};
    static_cast<void>(train());
    return listener.sums.means(prefix);
  }

  std::shared_ptr<TinyModule> module;
  std::unique_ptr<DataLoader> loader;
  BackendSetup setup;
  SingleProcessBackend backend;
  Listener listener;
};

TEST(SpBackendTest, MicroBatchesAreTheFewestAndNearEqual) {
  EXPECT_THAT(micro_batch_sizes(7, 3), ElementsAre(3, 2, 2));
  EXPECT_THAT(micro_batch_sizes(7, std::nullopt), ElementsAre(7));
  EXPECT_THAT(micro_batch_sizes(7, 7), ElementsAre(7));
  EXPECT_THAT(micro_batch_sizes(7, 6), ElementsAre(4, 3));
  EXPECT_THAT(micro_batch_sizes(3, 1), ElementsAre(1, 1, 1));
  EXPECT_TRUE(micro_batch_sizes(0, 3).empty());
  for (int64_t samples = 1; samples < 60; ++samples) {
    for (int64_t limit = 1; limit < 70; ++limit) {
      const std::vector<int64_t> sizes = micro_batch_sizes(samples, limit);
      EXPECT_EQ(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), samples);
      EXPECT_EQ(static_cast<int64_t>(sizes.size()), (samples + limit - 1) / limit);
      EXPECT_LE(sizes.front(), limit);
      EXPECT_LE(sizes.front() - sizes.back(), 1);
    }
  }
}

TEST(SpBackendTest, AccumulationWeightedBySamplesEqualsOneBigBatch) {
  const auto gradients = [](std::optional<int64_t> limit) {
    Rig rig({.num_samples = 7}, 7, [&](BackendSetup& setup) { setup.micro_batch_limit = limit; });
    EXPECT_EQ(rig.trained().size(), 1u);
    EXPECT_EQ(rig.backend.global_step_completed(), 1);
    return std::tuple(rig.module->weight().grad().clone(), rig.module->bias().grad().clone(), rig.module->losses.at(0), rig.module->micro_sizes);
  };
  const auto [weight, bias, loss, whole] = gradients(std::nullopt);
  const auto [weight_cut, bias_cut, loss_cut, cut] = gradients(3);
  EXPECT_THAT(whole, ElementsAre(7));
  EXPECT_THAT(cut, ElementsAre(3, 2, 2));
  EXPECT_LE((weight - weight_cut).abs().max().item<double>(), 1e-6);
  EXPECT_LE((bias - bias_cut).abs().max().item<double>(), 1e-6);
  EXPECT_GT(weight.abs().max().item<double>(), 0.1);
  EXPECT_NEAR(loss, loss_cut, 1e-6);
}

// A module that counts words: the batch's mean is over words, however they are spread over the micro-batches.
TEST(SpBackendTest, WhatAModuleCountsInsteadOfSamplesIsTheWeight) {
  const at::Tensor words = torch::tensor({1.0, 5.0, 2.0, 7.0, 1.0, 1.0, 3.0});
  const auto gradient = [&](std::optional<int64_t> limit) {
    Rig rig({.num_samples = 7, .shuffle = false}, 7, [&](BackendSetup& setup) { setup.micro_batch_limit = limit; });
    int64_t begin = 0;
    rig.module->instead_of_train_step = [&](const StepContext&, Batch& batch) {
      const at::Tensor count = words.narrow(0, begin, batch.num_samples);
      begin += batch.num_samples;
      const at::Tensor error = (rig.module->predict(batch.data()) - batch.target()).square().squeeze(1);
      StepOutput output((error * count).sum() / count.sum());
      output.num_samples = count.sum().item<int64_t>();
      return output;
    };
    const Metrics metrics = rig.trained();
    return std::pair(rig.module->weight().grad().clone(), metrics.at("loss"));
  };
  const auto [whole, loss] = gradient(std::nullopt);
  const auto [cut, loss_cut] = gradient(3);
  EXPECT_LE((whole - cut).abs().max().item<double>(), 1e-6);
  EXPECT_NEAR(loss, loss_cut, 1e-6);
}

TEST(SpBackendTest, MetricsAreMeansOverSamplesAlsoInTheShortLastBatch) {
  Rig rig({.num_samples = 7, .shuffle = false}, 4, [](BackendSetup& setup) { setup.micro_batch_limit = 3; });
  rig.module->instead_of_train_step = [&](const StepContext&, Batch& batch) {
    return StepOutput((rig.module->predict(batch.data()) * 0).mean() + batch.data().select(1, 1).mean(), {{"first", batch.data().select(1, 0).mean()}});
  };
  const Metrics metrics = rig.trained("train/");
  const std::vector<at::Tensor> data = rig.module->data(7);
  EXPECT_NEAR(metrics.at("train/first"), data[0].select(1, 0).mean().item<double>(), 1e-6);
  EXPECT_NEAR(metrics.at("train/loss"), data[0].select(1, 1).mean().item<double>(), 1e-6);
  EXPECT_EQ(rig.listener.train.size(), 2u);
}

TEST(SpBackendTest, AContextSaysWhereTheStepStands) {
  Rig rig({.num_samples = 7}, 7, [](BackendSetup& setup) { setup.micro_batch_limit = 3; });
  std::vector<std::pair<int64_t, int64_t>> seen;
  rig.module->instead_of_train_step = [&](const StepContext& step, Batch& batch) {
    EXPECT_EQ(step.stage, Stage::kTrain);
    EXPECT_EQ(batch.num_global_samples, 7);
    seen.emplace_back(step.micro_batch, step.num_micro_batches);
    return StepOutput(rig.module->predict(batch.data()).mean());
  };
  static_cast<void>(rig.train());
  EXPECT_THAT(seen, ElementsAre(std::pair(0, 3), std::pair(1, 3), std::pair(2, 3)));
  std::vector<std::pair<int64_t, int64_t>> validated;
  rig.module->instead_of_val_step = [&](const StepContext& step, Batch&) {
    EXPECT_EQ(step.stage, Stage::kVal);
    EXPECT_EQ(step.loader, "held out");
    EXPECT_FALSE(torch::GradMode::is_enabled());
    EXPECT_FALSE(rig.module->is_training());
    EXPECT_THAT([&] { step.optimize(torch::ones({})); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("train_step")));
    validated.emplace_back(step.micro_batch, step.num_micro_batches);
    return StepOutput(torch::ones({}));
  };
  rig.loader->begin_epoch(0);
  static_cast<void>(rig.backend.validate(*rig.loader, "held out", 0, rig.listener));
  EXPECT_EQ(validated, seen);
}

TEST(SpBackendTest, ClipsTheNormOverAllParametersOfTheStep) {
  const auto norm = [](bool clip, double max_norm) {
    Rig rig({}, 8, [&](BackendSetup& setup) { setup.clip_grads = clip, setup.max_grad_norm = max_norm; });
    static_cast<void>(rig.train());
    return std::sqrt(rig.module->weight().grad().square().sum().item<double>() + rig.module->bias().grad().square().sum().item<double>());
  };
  const double unclipped = norm(false, 0.01);
  EXPECT_GT(unclipped, 1.0);
  EXPECT_NEAR(norm(true, 0.01), 0.01, 1e-6);
  EXPECT_EQ(norm(true, 1000.0), unclipped) << "smaller ones stay as they are";
}

// ---- what cannot be trained on

void expect_failure(const std::function<StepOutput(TinyModule&, Batch&)>& step, const std::string& text, std::optional<int64_t> limit = {}) {
  Rig rig({}, 2, [&](BackendSetup& setup) { setup.micro_batch_limit = limit, setup.clip_grads = true; });
  rig.module->instead_of_train_step = [&](const StepContext& context, Batch& batch) {
    if (context.global_step < 2) return StepOutput(rig.module->predict(batch.data()).mean());
    return step(*rig.module, batch);
  };
  EXPECT_THAT([&] { static_cast<void>(rig.train()); }, ThrowsError(Errc::kTraining, AllOf(HasSubstr("epoch 0, step 3: "), HasSubstr(text))));
  EXPECT_EQ(rig.backend.global_step_completed(), 2);
}

TEST(SpBackendTest, ALossThatCannotBeTrainedOnIsNamedWithEpochStepAndValue) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  expect_failure([&](TinyModule& module, Batch& batch) { return StepOutput(module.predict(batch.data()).mean() * nan); }, "the loss that train_step returned is nan");
  expect_failure([&](TinyModule& module, Batch& batch) { return StepOutput(module.predict(batch.data()).square().mean() * inf); }, "is inf", 1);
  expect_failure([](TinyModule& module, Batch& batch) { return StepOutput(module.predict(batch.data())); }, "has shape [2, 1]: it must be a scalar; take its mean()");
  expect_failure([](TinyModule& module, Batch& batch) { return StepOutput(module.predict(batch.data()).mean().detach()); }, "does not require grad");
  expect_failure([](TinyModule&, Batch&) { return StepOutput(); }, "is undefined");
  expect_failure([](TinyModule& module, Batch& batch) {
    const at::Tensor parameter_at_0 = module.predict(batch.data()).mean() * 0.0;
    return StepOutput(parameter_at_0.sqrt());  // 0, with a gradient of 0 * infinity
  }, "the norm of the gradients is");
}

// ---- counting and stopping

TEST(SpBackendTest, CountsStepsAndMicroBatches) {
  Rig rig({.num_samples = 7}, 4, [](BackendSetup& setup) { setup.micro_batch_limit = 3; });
  EXPECT_TRUE(rig.train().complete);
  EXPECT_EQ(rig.backend.global_step_completed(), 2);
  EXPECT_EQ(rig.backend.batches_completed(), 3);
}

TEST(SpBackendTest, AListenerEndsTheEpochWithoutDrawingAnotherBatch) {
  Rig rig({}, 2);
  rig.listener.stop_after = 2;
  EXPECT_FALSE(rig.train().complete);
  EXPECT_EQ(rig.loader->consumed_samples(), 4);
  rig.listener.stop_after = 4;
  EXPECT_TRUE(rig.train(2).complete) << "it was the last one";
}

TEST(SpBackendTest, TheCapCountsStepsThatWereDoneBefore) {
  Rig rig({}, 2, [](BackendSetup& setup) { setup.max_train_steps_per_epoch = 3; });
  EXPECT_TRUE(rig.train(2).complete);
  EXPECT_EQ(rig.backend.global_step_completed(), 1);
  EXPECT_EQ(rig.loader->consumed_samples(), 2) << "no batch is drawn that is not used";
}

TEST(SpBackendTest, ValidationEndsAtItsCap) {
  Rig rig({}, 2, [](BackendSetup& setup) { setup.max_val_steps_per_epoch = 3; });
  EXPECT_TRUE(rig.backend.validate(*rig.loader, "default", 0, rig.listener).complete);
  EXPECT_EQ(rig.listener.val, 3u);
  EXPECT_EQ(rig.loader->consumed_samples(), 6);
}

TEST(SpBackendTest, SchedulesMovePerStepOnlyIfTheySaySo) {
  Rig rig({}, 2, [](BackendSetup& setup) {
    setup.schedulers = {std::make_shared<optim::StepLR>(*setup.optimizers[0], 1, 0.5, optim::LRScheduler::Per::kStep),
                        std::make_shared<optim::StepLR>(*setup.optimizers[0], 1, 0.5, optim::LRScheduler::Per::kEpoch)};
  });
  static_cast<void>(rig.train());
  EXPECT_EQ(rig.setup.schedulers[0]->last_epoch(), 4);
  EXPECT_EQ(rig.setup.schedulers[1]->last_epoch(), 0);
}

// ---- manual optimisation

// A generator that adds `shift`, and a critic that scores; each has an optimizer of its own.
class TinyGan : public TinyModule {
 public:
  explicit TinyGan(TinyOptions options = {}) : TinyModule(std::move(options)) {
    shift = register_parameter("shift", torch::tensor({0.5f, -0.5f, 0.25f}));
    critic = register_module("critic", torch::nn::Linear(3, 1));
    const torch::NoGradGuard no_grad;
    critic->weight.copy_(torch::tensor({{0.3, -0.2, 0.1}}));
    critic->bias.fill_(0.05);
  }
  [[nodiscard]] std::vector<std::shared_ptr<torch::optim::Optimizer>> optimizers() {
    return {std::make_shared<torch::optim::SGD>(std::vector<at::Tensor>{shift}, torch::optim::SGDOptions(0.1)),
            std::make_shared<torch::optim::SGD>(critic->parameters(), torch::optim::SGDOptions(0.1))};
  }
  StepOutput train_step(const StepContext& step, Batch& batch) override {
    micro_sizes.push_back(batch.num_samples);
    const at::Tensor real = batch.data(), fake = batch.data() + shift;
    if (train_critic) step.optimize(critic->forward(fake).mean() - critic->forward(real).mean() + critic->weight.square().sum(), 1, /*retain_graph=*/true);
    if (train_generator) step.optimize(critic->forward(fake).square().mean(), 0);
    return StepOutput(critic->forward(fake).mean().detach());
  }

  bool train_critic = true, train_generator = true;
  at::Tensor shift;
  torch::nn::Linear critic = nullptr;
};

struct GanRig {
  explicit GanRig(std::optional<int64_t> limit = {}, bool clip = false) {
    LoaderRequest request;
    request.batch_size = 7;
    module = std::make_shared<TinyGan>(TinyOptions{.num_samples = 7, .shuffle = false});
    loader = module->get_train_dataloader(request);
    setup.module = module.get();
    setup.optimizers = module->optimizers();
    setup.micro_batch_limit = limit;
    setup.clip_grads = clip;
    setup.max_grad_norm = 1e-3;
    backend.init(setup);
  }
  Metrics train() {
    loader->begin_epoch(0);
    listener.sums = {};
    static_cast<void>(backend.train(*loader, 0, 0, listener));
    return listener.sums.means("");
  }

  std::shared_ptr<TinyGan> module;
  std::unique_ptr<DataLoader> loader;
  BackendSetup setup;
  SingleProcessBackend backend;
  Listener listener;
};

TEST(SpBackendTest, EachOptimizerMovesItsOwnParametersOnly) {
  GanRig rig;
  rig.module->train_generator = false;
  const at::Tensor shift = rig.module->shift.detach().clone(), critic = rig.module->critic->weight.detach().clone();
  rig.train();
  EXPECT_TRUE(torch::equal(rig.module->shift, shift));
  EXPECT_FALSE(torch::equal(rig.module->critic->weight, critic));
  EXPECT_FALSE(rig.module->shift.grad().defined()) << "no gradient leaks into the other's parameters";
  rig.module->train_critic = false;
  rig.module->train_generator = true;
  const at::Tensor moved = rig.module->critic->weight.detach().clone();
  rig.train();
  EXPECT_FALSE(torch::equal(rig.module->shift, shift));
  EXPECT_TRUE(torch::equal(rig.module->critic->weight, moved));
  EXPECT_EQ(rig.backend.global_step_completed(), 2);
}

TEST(SpBackendTest, ManualStepsOverMicroBatchesEqualThoseOverTheWholeBatch) {
  GanRig whole, cut(3);
  whole.module->train_generator = cut.module->train_generator = false;
  const Metrics metrics = whole.train(), metrics_cut = cut.train();
  EXPECT_THAT(cut.module->micro_sizes, ElementsAre(3, 2, 2));
  EXPECT_LE((whole.module->critic->weight - cut.module->critic->weight).abs().max().item<double>(), 1e-6);
  EXPECT_LE((whole.module->critic->bias - cut.module->critic->bias).abs().max().item<double>(), 1e-6);
  EXPECT_EQ(cut.backend.global_step_completed(), 1);
  EXPECT_TRUE(metrics.find("loss") != nullptr && metrics_cut.find("loss") != nullptr);
}

TEST(SpBackendTest, ManualStepsAreClippedPerOptimizer) {
  GanRig rig({}, true);
  rig.train();
  EXPECT_NEAR(rig.module->shift.grad().norm().item<double>(), 1e-3, 1e-6);
  const double critic = std::hypot(rig.module->critic->weight.grad().norm().item<double>(), rig.module->critic->bias.grad().norm().item<double>());
  EXPECT_NEAR(critic, 1e-3, 1e-6);
}

TEST(SpBackendTest, ManualStepsCheckTheirLossAndOptimizer) {
  Rig rig({}, 4);
  const auto with = [&](const std::function<void(const StepContext&, const at::Tensor&)>& step) {
    return [&rig, step] {
      rig.loader->begin_epoch(0);
      rig.module->instead_of_train_step = [&](const StepContext& context, Batch& batch) {
        step(context, rig.module->predict(batch.data()));
        return StepOutput();
      };
      static_cast<void>(rig.train());
    };
  };
  EXPECT_THAT(with([](auto& step, auto& y) { step.optimize(y.mean(), 1); }), ThrowsError(Errc::kInvalidArgument, HasSubstr("no optimizer 1")));
  EXPECT_THAT(with([](auto& step, auto& y) { step.optimize(y); }), ThrowsError(Errc::kTraining, AllOf(HasSubstr("epoch 0, step 1"), HasSubstr("shape [4, 1]"))));
  EXPECT_THAT(with([](auto& step, auto& y) { step.optimize(y.mean() / 0.0); }), ThrowsError(Errc::kTraining, HasSubstr("inf")));
  EXPECT_THAT(with([](auto& step, auto& y) { step.optimize(y.mean().detach()); }), ThrowsError(Errc::kTraining, HasSubstr("does not require grad")));
}

}  // namespace
}  // namespace marlin
