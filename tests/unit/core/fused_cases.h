// What the tests of the fused optimizers share: a model with every kind of parameter, and each optimizer beside torch::optim's.
#pragma once

#include <gmock/gmock.h>
#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "marlin/core/optim/fused.h"
#include "marlin/core/optim/optimizer_state.h"

namespace marlin::optim::testing {

using torch::optim::Optimizer;

constexpr int64_t kSteps = 50;
constexpr double kTolerance = 1e-6;

// Three groups; `idle` never has a gradient, and `late` has none for the first steps.
struct Model {
  at::Tensor weight = parameter({17, 9}, 0), bias = parameter({17}, 1), scalar = parameter({}, 2), empty = parameter({0, 3}, 0);
  at::Tensor idle = parameter({5}, 3), late = parameter({3, 2}, 4), other = parameter({33}, 5);
  at::Tensor transposed = parameter({4, 6}, 6).detach().t().requires_grad_();
  at::Tensor wide = parameter({7, 3}, 7).detach().to(torch::kDouble).requires_grad_();

  static at::Tensor parameter(at::IntArrayRef shape, double offset) {
    const at::Tensor numbers = torch::arange(c10::multiply_integers(shape), torch::kFloat).reshape(shape);
    return ((numbers + offset) * 0.37).sin().add(0.1).requires_grad_();
  }
  [[nodiscard]] std::vector<at::Tensor> all() const { return {weight, bias, idle, scalar, empty, late, other, transposed, wide}; }
  template <class Options>
  [[nodiscard]] std::vector<OptimizerParamGroup> groups(const Options& third) const {
    std::vector<OptimizerParamGroup> result;
    result.emplace_back(std::vector<at::Tensor>{weight, bias, idle, scalar, empty});
    result.emplace_back(std::vector<at::Tensor>{late, other});
    result.emplace_back(std::vector<at::Tensor>{transposed, wide}, std::make_unique<Options>(third));
    return result;
  }
  // Gradients of a convex loss that changes from step to step: one that did not pull together would magnify roundings.
  static void set_gradient(const at::Tensor& p, int64_t step) { p.mutable_grad() = (p.detach() - 2.0 + std::cos(static_cast<double>(step) * 0.3)).tanh(); }
  void set_gradients(int64_t step) const {
    for (const at::Tensor& p : all()) {
      if (!p.is_same(idle) && !(p.is_same(late) && step < 3)) set_gradient(p, step);
    }
  }
  void step(Optimizer& optimizer, int64_t number) const {
    set_gradients(number);
    optimizer.step();
  }
  void copy_from(const Model& from) const {
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < all().size(); ++i) all()[i].copy_(from.all()[i]);
  }
  [[nodiscard]] bool equals(const Model& with) const {
    for (size_t i = 0; i < all().size(); ++i) {
      if (!torch::equal(all()[i], with.all()[i])) return false;
    }
    return true;
  }
};

inline double relative_difference(const at::Tensor& a, const at::Tensor& b) {
  if (b.numel() == 0) return 0.0;
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

inline double relative_difference(const Model& a, const Model& b) {
  double greatest = 0.0;
  for (size_t i = 0; i < a.all().size(); ++i) {
    const double found = relative_difference(a.all()[i].detach(), b.all()[i].detach());
    if (!(found <= greatest)) greatest = found;  // a NaN stays
  }
  return greatest;
}

using Make = std::function<std::unique_ptr<Optimizer>(const Model&)>;
struct Case {
  std::string name;
  Make fused, torch;
  std::function<std::unique_ptr<Optimizer>(const std::vector<at::Tensor>&)> fused_of, torch_of;
};

template <class Fused, class Torch, class Options>
Case case_of(std::string name, const Options& options) {
  const auto groups = [options](const Model& model) {
    Options third = options;
    return model.groups(third.lr(options.lr() / 4));
  };
  return {std::move(name), [=](const Model& model) { return std::make_unique<Fused>(groups(model), options); },
          [=](const Model& model) { return std::make_unique<Torch>(groups(model), options); },
          [=](const std::vector<at::Tensor>& parameters) { return std::make_unique<Fused>(parameters, options); },
          [=](const std::vector<at::Tensor>& parameters) { return std::make_unique<Torch>(parameters, options); }};
}

inline std::vector<Case> cases() {
  const auto sgd = [](const char* name, const SGDOptions& options) { return case_of<SGD, torch::optim::SGD>(name, options); };
  const auto adam = [](const char* name, const AdamOptions& options) { return case_of<Adam, torch::optim::Adam>(name, options); };
  const auto adamw = [](const char* name, const AdamWOptions& options) { return case_of<AdamW, torch::optim::AdamW>(name, options); };
  const auto adagrad = [](const char* name, const AdagradOptions& options) { return case_of<Adagrad, torch::optim::Adagrad>(name, options); };
  return {sgd("Sgd", SGDOptions(0.05)),
          sgd("SgdWeightDecay", SGDOptions(0.05).weight_decay(0.1)),
          sgd("SgdMomentum", SGDOptions(0.02).momentum(0.9)),
          sgd("SgdMomentumDampening", SGDOptions(0.02).momentum(0.9).dampening(0.3)),
          sgd("SgdMomentumWeightDecay", SGDOptions(0.02).momentum(0.8).weight_decay(0.05)),
          sgd("SgdMomentumDampeningWeightDecay", SGDOptions(0.02).momentum(0.8).dampening(0.5).weight_decay(0.05)),
          sgd("SgdNesterov", SGDOptions(0.02).momentum(0.9).nesterov(true)),
          sgd("SgdNesterovWeightDecay", SGDOptions(0.02).momentum(0.9).nesterov(true).weight_decay(0.05)),
          adam("Adam", AdamOptions(0.01)),
          adam("AdamWeightDecay", AdamOptions(0.01).weight_decay(0.1)),
          adam("AdamBetas", AdamOptions(0.01).betas({0.7, 0.95})),
          adam("AdamEps", AdamOptions(0.01).eps(1e-3)),
          adam("AdamAmsgrad", AdamOptions(0.01).amsgrad(true)),
          adam("AdamAmsgradWeightDecayBetasEps", AdamOptions(0.01).amsgrad(true).weight_decay(0.1).betas({0.7, 0.95}).eps(1e-4)),
          adamw("AdamW", AdamWOptions(0.01)),
          adamw("AdamWWithoutWeightDecay", AdamWOptions(0.01).weight_decay(0.0)),
          adamw("AdamWWeightDecay", AdamWOptions(0.01).weight_decay(0.3)),
          adamw("AdamWBetas", AdamWOptions(0.01).betas({0.7, 0.95})),
          adamw("AdamWEps", AdamWOptions(0.01).eps(1e-3)),
          adamw("AdamWAmsgrad", AdamWOptions(0.01).amsgrad(true)),
          adamw("AdamWAmsgradWeightDecayBetasEps", AdamWOptions(0.01).amsgrad(true).weight_decay(0.3).betas({0.7, 0.95}).eps(1e-4)),
          adagrad("Adagrad", AdagradOptions(0.05)),
          adagrad("AdagradLrDecay", AdagradOptions(0.05).lr_decay(0.05)),
          adagrad("AdagradInitialAccumulatorValue", AdagradOptions(0.05).initial_accumulator_value(0.3)),
          adagrad("AdagradWeightDecay", AdagradOptions(0.05).weight_decay(0.1)),
          adagrad("AdagradAll", AdagradOptions(0.05).lr_decay(0.05).initial_accumulator_value(0.3).weight_decay(0.1).eps(1e-6))};
}

class FusedOptimizerTest : public ::testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(1); }  // tensors are small, steps are many
  void TearDown() override { at::set_num_threads(threads_); }
  static StateDict state_of(const Optimizer& optimizer) { return clone(get_state(optimizer)); }

 private:
  int threads_ = at::get_num_threads();
};

}  // namespace marlin::optim::testing
