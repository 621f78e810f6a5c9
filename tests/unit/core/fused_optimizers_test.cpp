#include "marlin/core/optim/fused.h"

#include <gmock/gmock.h>
#include <torch/torch.h>

#include <cmath>
#include <sstream>

#include "expect_error.h"
#include "marlin/core/optim/lr_scheduler.h"
#include "marlin/core/optim/optimizer_state.h"

namespace marlin::optim {
namespace {

using ::testing::IsEmpty;
using marlin::testing::expect_error;
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

double relative_difference(const at::Tensor& a, const at::Tensor& b) {
  if (b.numel() == 0) return 0.0;
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

double relative_difference(const Model& a, const Model& b) {
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

std::vector<Case> cases() {
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

// ---- equal to torch::optim's

TEST_F(FusedOptimizerTest, EndsWhereTorchsClassEnds) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, reference;
    const auto fused = one.fused(model);
    const auto torch = one.torch(reference);
    for (int64_t i = 0; i < kSteps; ++i) {
      model.step(*fused, i);
      reference.step(*torch, i);
    }
    EXPECT_LE(relative_difference(model, reference), kTolerance);
    EXPECT_FALSE(model.equals(Model()));
    EXPECT_TRUE(torch::equal(model.idle, Model().idle)) << "no gradient, no step";
  }
}

TEST_F(FusedOptimizerTest, FollowsAScheduleAsTorchsClassDoes) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, reference;
    const auto fused = one.fused(model);
    const auto torch = one.torch(reference);
    CosineAnnealingLR fused_schedule(*fused, kSteps), torch_schedule(*torch, kSteps);
    for (int64_t i = 0; i < kSteps; ++i) {
      model.step(*fused, i);
      reference.step(*torch, i);
      fused_schedule.step();
      torch_schedule.step();
    }
    EXPECT_LE(relative_difference(model, reference), kTolerance);
    EXPECT_EQ(fused_schedule.get_last_lr(), torch_schedule.get_last_lr());
  }
}

TEST_F(FusedOptimizerTest, RunsTheClosureWithGradientsAndReturnsItsLoss) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, reference;
    const auto fused = one.fused(model);
    const auto torch = one.torch(reference);
    const auto closure_of = [](const Model& of, Optimizer& optimizer) {
      return [&of, &optimizer] {
        optimizer.zero_grad();
        const at::Tensor loss = of.weight.square().sum() + of.transposed.sin().sum();
        loss.backward();
        return loss;
      };
    };
    for (int i = 0; i < 10; ++i) {
      const at::Tensor loss = fused->step(closure_of(model, *fused));
      EXPECT_NEAR(loss.item<double>(), torch->step(closure_of(reference, *torch)).item<double>(), 1e-5);
      EXPECT_TRUE(loss.requires_grad());
    }
    EXPECT_LE(relative_difference(model, reference), kTolerance);
    EXPECT_FALSE(fused->step().defined());
  }
}

TEST_F(FusedOptimizerTest, AClosureThatThrowsChangesNothing) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model;
    const auto fused = one.fused(model);
    model.step(*fused, 0);
    const StateDict before = state_of(*fused);
    EXPECT_THROW(fused->step([]() -> at::Tensor { throw std::runtime_error("no loss"); }), std::runtime_error);
    EXPECT_TRUE(equal(get_state(*fused), before));
    EXPECT_TRUE(torch::GradMode::is_enabled());
  }
}

TEST_F(FusedOptimizerTest, OptionsOfOneGroupMayChange) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, reference;
    const auto fused = one.fused(model);
    const auto torch = one.torch(reference);
    for (int64_t i = 0; i < kSteps; ++i) {
      for (Optimizer* one : {fused.get(), torch.get()}) one->param_groups()[1].options().set_lr(0.01 / static_cast<double>(i + 1));
      model.step(*fused, i);
      reference.step(*torch, i);
    }
    EXPECT_LE(relative_difference(model, reference), kTolerance);
  }
}

TEST_F(FusedOptimizerTest, TakesOtherTypes) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    for (const auto& [type, tolerance] : {std::pair(torch::kDouble, 1e-12), std::pair(torch::kBFloat16, 0.1)}) {
      const at::Tensor a = Model::parameter({17, 9}, 0).detach().to(type).requires_grad_();
      const at::Tensor b = a.detach().clone().requires_grad_();
      const auto fused = one.fused_of({a});
      const auto torch = one.torch_of({b});
      for (int64_t i = 0; i < 10; ++i) {
        for (const at::Tensor& p : {a, b}) Model::set_gradient(p, i);
        fused->step();
        torch->step();
      }
      EXPECT_EQ(a.scalar_type(), type);
      EXPECT_LE(relative_difference(a.detach().to(torch::kDouble), b.detach().to(torch::kDouble)), tolerance) << type;
    }
  }
}

// ---- layouts

TEST_F(FusedOptimizerTest, GradientsOfAnotherLayoutAreTakenByPosition) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, reference;
    const auto fused = one.fused(model);
    const auto torch = one.torch(reference);
    for (int64_t i = 0; i < kSteps; ++i) {
      model.set_gradients(i);
      reference.set_gradients(i);
      model.weight.mutable_grad() = model.weight.grad().t().contiguous().t();
      model.transposed.mutable_grad() = model.transposed.grad().contiguous();
      model.bias.mutable_grad() = torch::stack({model.bias.grad(), model.bias.grad()}, 1).select(1, 0);
      model.other.mutable_grad() = i % 2 == 0 ? model.other.grad() : torch::tensor(0.25F).expand({33});
      if (i % 2 != 0) reference.other.mutable_grad() = torch::full({33}, 0.25F);
      fused->step();
      torch->step();
    }
    EXPECT_LE(relative_difference(model, reference), kTolerance);
  }
}

TEST_F(FusedOptimizerTest, ParametersWithHolesStepAlone) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    const at::Tensor memory = Model::parameter({6, 8}, 0).detach();
    const at::Tensor holes = memory.select(1, 3).requires_grad_();
    const at::Tensor plain = Model::parameter({6}, 2);
    const at::Tensor a = holes.detach().clone().requires_grad_(), b = plain.detach().clone().requires_grad_();
    const at::Tensor around = memory.clone();
    const auto fused = one.fused_of({holes, plain});
    const auto torch = one.torch_of({a, b});
    const int64_t version = holes._version();
    for (int64_t i = 0; i < kSteps; ++i) {
      for (const at::Tensor& p : {holes, plain, a, b}) Model::set_gradient(p, i);
      fused->step();
      torch->step();
    }
    EXPECT_TRUE(torch::equal(holes, a)) << "by torch::optim's own code";
    EXPECT_LE(relative_difference(plain.detach(), b.detach()), kTolerance);
    EXPECT_GT(holes._version(), version);
    EXPECT_TRUE(plain.grad().defined() && holes.grad().defined()) << "gradients stay where they were";
    EXPECT_TRUE(torch::equal(memory.slice(1, 4), around.slice(1, 4)) && torch::equal(memory.slice(1, 0, 3), around.slice(1, 0, 3)));
  }
}

// ---- states

TEST_F(FusedOptimizerTest, AFreshOneGoesOnBitForBit) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, copy;
    const auto fused = one.fused(model);
    for (int64_t i = 0; i < 5; ++i) model.step(*fused, i);
    fused->param_groups()[1].options().set_lr(0.003);
    const StateDict state = state_of(*fused);

    const auto fresh = one.fused(copy);
    for (OptimizerParamGroup& group : fresh->param_groups()) group.options().set_lr(123.0);
    copy.copy_from(model);
    EXPECT_THAT(differences(*fresh, state), IsEmpty());
    update_state(*fresh, state);
    EXPECT_TRUE(equal(get_state(*fresh), state)) << "and says the same of itself";
    for (int64_t i = 5; i < 10; ++i) {
      model.step(*fused, i);
      copy.step(*fresh, i);
      ASSERT_TRUE(copy.equals(model)) << "step " << i;
    }
    EXPECT_TRUE(equal(get_state(*fresh), get_state(*fused)));
  }
}

TEST_F(FusedOptimizerTest, GoesOnFromTorchsState) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, reference;
    const auto torch = one.torch(reference);
    for (int64_t i = 0; i < 10; ++i) reference.step(*torch, i);
    const auto fused = one.fused(model);
    model.copy_from(reference);
    update_state(*fused, state_of(*torch));
    for (int64_t i = 10; i < kSteps; ++i) {
      model.step(*fused, i);
      reference.step(*torch, i);
    }
    EXPECT_LE(relative_difference(model, reference), kTolerance);
  }
}

TEST_F(FusedOptimizerTest, TorchsClassGoesOnFromItsState) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, reference, stayed;
    const auto fused = one.fused(model);
    const auto stays = one.torch(stayed);
    for (int64_t i = 0; i < 10; ++i) {
      model.step(*fused, i);
      stayed.step(*stays, i);
    }
    const auto torch = one.torch(reference);
    reference.copy_from(model);
    update_state(*torch, state_of(*fused));
    for (int64_t i = 10; i < kSteps; ++i) {
      reference.step(*torch, i);
      stayed.step(*stays, i);
    }
    EXPECT_LE(relative_difference(reference, stayed), kTolerance);
  }
}

TEST_F(FusedOptimizerTest, IsSavedByLibTorchsOwnArchives) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, copy;
    const auto fused = one.fused(model);
    for (int64_t i = 0; i < 5; ++i) model.step(*fused, i);
    std::stringstream stream;
    torch::save(*fused, stream);
    const auto fresh = one.fused(copy);
    copy.copy_from(model);
    torch::load(*fresh, stream);
    for (int64_t i = 5; i < 10; ++i) {
      model.step(*fused, i);
      copy.step(*fresh, i);
    }
    EXPECT_TRUE(copy.equals(model));
  }
}

TEST_F(FusedOptimizerTest, SaysThatItIsFused) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model;
    const auto fused = one.fused(model);
    const auto torch = one.torch(model);
    const StateDict ours = get_state(*fused), theirs = get_state(*torch);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(ours.at("param_groups").as_items().at(i).as_dict().at("fused").as_bool());
      EXPECT_TRUE(theirs.at("param_groups").as_items().at(i).as_dict().at("fused").is_null());
    }
  }
}

// Every tensor of the state, by parameter number and name.
std::vector<std::pair<std::string, at::Tensor>> tensors_of(const StateDict& state) {
  std::vector<std::pair<std::string, at::Tensor>> result;
  for (const StateDict::Entry& entry : state.at("state").as_dict()) {
    for (const StateDict::Entry& item : entry.value.as_dict()) result.emplace_back(to_string(entry.key) + "." + to_string(item.key), item.value.as_tensor());
  }
  return result;
}

TEST_F(FusedOptimizerTest, TensorsOfItsStateAreTheLiveOnes) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model;
    const auto fused = one.fused(model);
    for (int64_t i = 0; i < 4; ++i) model.step(*fused, i);
    const auto held = tensors_of(get_state(*fused));
    for (int64_t i = 4; i < 8; ++i) model.step(*fused, i);
    const auto now = tensors_of(get_state(*fused));
    ASSERT_EQ(held.size(), now.size());
    for (size_t i = 0; i < held.size(); ++i) {
      if (held[i].first.ends_with(".step")) {
        EXPECT_EQ(held[i].second.scalar_type(), torch::kFloat);
        EXPECT_EQ(held[i].second.dim(), 0) << "a count as of then";
      } else {
        EXPECT_TRUE(held[i].second.is_same(now[i].second)) << held[i].first;
      }
    }
  }
}

// ---- versions

TEST_F(FusedOptimizerTest, StepsRaiseVersions) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model;
    const auto fused = one.fused(model);
    for (int64_t i = 0; i < 4; ++i) model.step(*fused, i);
    std::vector<std::pair<std::string, at::Tensor>> watched = tensors_of(get_state(*fused));
    for (size_t i = 0; i < model.all().size(); ++i) watched.emplace_back("parameter " + std::to_string(i), model.all()[i]);
    std::vector<int64_t> before;
    for (const auto& [name, tensor] : watched) before.push_back(tensor._version());
    model.step(*fused, 4);
    for (size_t i = 0; i < watched.size(); ++i) {
      const auto& [name, tensor] = watched[i];
      if (name.ends_with(".step")) continue;
      const bool is_idle = name == "2.sum" || tensor.is_same(model.idle);
      EXPECT_EQ(tensor._version() > before[i], !is_idle) << name;
    }
  }
}

TEST_F(FusedOptimizerTest, AutogradNoticesAStepBetweenForwardAndBackward) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    const at::Tensor weight = Model::parameter({3, 3}, 0);
    const auto fused = one.fused_of({weight});
    const at::Tensor loss = weight.square().sum();
    weight.mutable_grad() = torch::ones({3, 3});
    fused->step();
    EXPECT_THROW(loss.backward(), c10::Error);
  }
}

// ---- the rest of torch::optim's interface

TEST_F(FusedOptimizerTest, TakesGroupsLater) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, reference;
    const auto fused = one.fused_of({model.weight});
    const auto torch = one.torch_of({reference.weight, reference.bias});
    fused->add_param_group(OptimizerParamGroup(std::vector<at::Tensor>{model.bias}));
    for (int64_t i = 0; i < kSteps; ++i) {
      model.step(*fused, i);
      reference.step(*torch, i);
    }
    EXPECT_LE(relative_difference(model.bias.detach(), reference.bias.detach()), kTolerance);
    fused->zero_grad();
    EXPECT_FALSE(model.weight.grad().defined() || model.bias.grad().defined());
  }
}

TEST_F(FusedOptimizerTest, AParameterThatStandsTwiceStepsTwice) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model, reference;
    const auto fused = one.fused_of({model.weight, model.bias, model.weight});
    const auto torch = one.torch_of({reference.weight, reference.bias, reference.weight});
    for (int64_t i = 0; i < 10; ++i) {
      model.step(*fused, i);
      reference.step(*torch, i);
    }
    EXPECT_LE(relative_difference(model, reference), kTolerance);
  }
}

TEST_F(FusedOptimizerTest, ComplexParametersStepAsTorchsClassDoes) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    const at::Tensor a = torch::complex(Model::parameter({5}, 0).detach(), Model::parameter({5}, 1).detach()).requires_grad_();
    const at::Tensor b = a.detach().clone().requires_grad_();
    const auto fused = one.fused_of({a});
    const auto torch = one.torch_of({b});
    EXPECT_TRUE(get_state(*fused).at("param_groups").as_items().at(0).as_dict().at("fused").is_null()) << "Python's kernels do not take them either";
    for (const at::Tensor& p : {a, b}) p.mutable_grad() = torch::ones_like(p) * 0.5;
    const auto outcome = [](Optimizer& optimizer) {
      try {
        optimizer.step();
        return std::string("done");
      } catch (const c10::Error& error) {
        return std::string(error.what_without_backtrace());
      }
    };
    EXPECT_EQ(outcome(*fused), outcome(*torch));
    EXPECT_TRUE(torch::equal(a, b));
  }
}

TEST_F(FusedOptimizerTest, AnOptimizerWithoutGradientsDoesNothing) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    Model model;
    const auto fused = one.fused(model);
    fused->step();
    EXPECT_TRUE(model.equals(Model()));
  }
}

// ---- what is special to one

class FusedSparseTest : public ::testing::Test {
 protected:
  static at::Tensor sparse(double value) {
    return torch::sparse_coo_tensor(torch::tensor({{0, 2, 2}}), torch::full({3, 3}, value), {4, 3}, torch::kFloat);
  }
  template <class Fused, class Torch, class Options> static void expect_equal(const Options& options) {
    const at::Tensor table = Model::parameter({4, 3}, 0), dense = Model::parameter({5}, 1);
    const at::Tensor a = table.detach().clone().requires_grad_(), b = dense.detach().clone().requires_grad_();
    Fused fused(std::vector<at::Tensor>{table, dense}, options);
    Torch torch(std::vector<at::Tensor>{a, b}, options);
    const int64_t version = table._version();
    for (int i = 0; i < 10; ++i) {
      for (const at::Tensor& p : {table, a}) p.mutable_grad() = sparse(0.1 * (i + 1));
      for (const at::Tensor& p : {dense, b}) p.mutable_grad() = p.detach().cos();
      fused.step();
      torch.step();
    }
    EXPECT_TRUE(torch::equal(table, a)) << "by torch::optim's own code";
    EXPECT_LE(relative_difference(dense.detach(), b.detach()), kTolerance);
    EXPECT_GT(table._version(), version);
    EXPECT_TRUE(get_state(fused).at("param_groups").as_items().at(0).as_dict().at("fused").is_null());
  }
};

TEST_F(FusedSparseTest, SgdTakesSparseGradients) { expect_equal<SGD, torch::optim::SGD>(SGDOptions(0.1)); }
TEST_F(FusedSparseTest, AdagradTakesSparseGradients) { expect_equal<Adagrad, torch::optim::Adagrad>(AdagradOptions(0.1).lr_decay(0.01)); }

TEST_F(FusedSparseTest, AdamsRefuseSparseGradientsAndNameTheGroup) {
  const at::Tensor dense = Model::parameter({5}, 1), table = Model::parameter({4, 3}, 0);
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<at::Tensor>{dense});
  groups.emplace_back(std::vector<at::Tensor>{table});
  Adam adam(groups, AdamOptions(0.1));
  AdamW adamw(groups, AdamWOptions(0.1));
  dense.mutable_grad() = torch::ones({5});
  table.mutable_grad() = sparse(1.0);
  expect_error(Errc::kUnsupported, "Adam: parameter group 1 has a sparse gradient", [&] { adam.step(); });
  expect_error(Errc::kUnsupported, "AdamW: parameter group 1 has a sparse gradient", [&] { adamw.step(); });
  EXPECT_TRUE(torch::equal(dense, Model::parameter({5}, 1))) << "nothing is changed";
  EXPECT_TRUE(adam.state().empty() && adamw.state().empty());
}

TEST(FusedSgdTest, MomentumOfAnotherLayoutIsBroughtIntoTheParameters) {
  // torch::optim::SGD gives the momentum the layout of the first gradient.
  Model model, reference;
  torch::optim::SGD torch(std::vector<at::Tensor>{reference.weight}, SGDOptions(0.1).momentum(0.9));
  SGD fused(std::vector<at::Tensor>{model.weight}, SGDOptions(0.1).momentum(0.9));
  reference.weight.mutable_grad() = torch::rand({9, 17}).t();
  torch.step();
  model.copy_from(reference);
  for (const auto& [key, state] : torch.state()) fused.state()[model.weight.unsafeGetTensorImpl()] = state->clone();
  for (int64_t i = 0; i < 10; ++i) {
    model.step(fused, i);
    reference.step(torch, i);
  }
  EXPECT_LE(relative_difference(model, reference), kTolerance);
}

TEST(FusedSgdTest, TakesHalfPrecision) {
  const at::Tensor a = Model::parameter({17, 9}, 0).detach().to(torch::kHalf).requires_grad_();
  const at::Tensor b = a.detach().clone().requires_grad_();
  SGD fused(std::vector<at::Tensor>{a}, SGDOptions(0.1).momentum(0.5));
  torch::optim::SGD torch(std::vector<at::Tensor>{b}, SGDOptions(0.1).momentum(0.5));
  for (int64_t i = 0; i < 10; ++i) {
    for (const at::Tensor& p : {a, b}) Model::set_gradient(p, i);
    fused.step();
    torch.step();
  }
  EXPECT_LE(relative_difference(a.detach().to(torch::kFloat), b.detach().to(torch::kFloat)), 0.005);
}

TEST(FusedSgdTest, MomentumMayBeSetLater) {
  Model model, reference;
  SGD fused(std::vector<at::Tensor>{model.weight}, SGDOptions(0.05));
  torch::optim::SGD torch(std::vector<at::Tensor>{reference.weight}, SGDOptions(0.05));
  for (int64_t i = 0; i < 10; ++i) {
    for (Optimizer* one : std::vector<Optimizer*>{&fused, &torch}) static_cast<SGDOptions&>(one->param_groups()[0].options()).momentum(i < 3 || i == 7 ? 0.0 : 0.9);
    model.step(fused, i);
    reference.step(torch, i);
  }
  EXPECT_LE(relative_difference(model, reference), kTolerance);
}

TEST(FusedAdamTest, AmsgradMayBeSetLater) {
  Model model;
  Adam fused(std::vector<at::Tensor>{model.weight}, AdamOptions(0.05));
  for (int64_t i = 0; i < 3; ++i) model.step(fused, i);
  static_cast<AdamOptions&>(fused.param_groups()[0].options()).amsgrad(true);
  model.step(fused, 3);
  const auto& state = static_cast<torch::optim::AdamParamState&>(*fused.state().begin()->second);
  EXPECT_TRUE(torch::equal(state.max_exp_avg_sq(), state.exp_avg_sq())) << "the maximum begins there";
}

TEST(FusedAdamTest, ParametersAtOtherStepsHaveTheirOwnBiasCorrection) {
  Model model;
  AdamW fused(std::vector<at::Tensor>{model.other, model.late}, AdamWOptions(0.05));
  for (int64_t i = 0; i < 5; ++i) model.step(fused, i);
  const auto step_of = [&](const at::Tensor& p) { return static_cast<torch::optim::AdamWParamState&>(*fused.state().at(p.unsafeGetTensorImpl())).step(); };
  EXPECT_EQ(step_of(model.other), 5);
  EXPECT_EQ(step_of(model.late), 2);
}

TEST(FusedAdagradTest, AStateOfBeforeTheFirstStepOfALateGroupIsTaken) {
  Model model, copy;
  const auto make = [](const Model& of) {
    auto result = std::make_unique<Adagrad>(std::vector<at::Tensor>{of.weight}, AdagradOptions(0.1).initial_accumulator_value(0.5));
    result->add_param_group(OptimizerParamGroup(std::vector<at::Tensor>{of.bias}));
    return result;
  };
  const auto fused = make(model), fresh = make(copy);
  update_state(*fresh, clone(get_state(*fused)));
  model.step(*fused, 0);
  copy.step(*fresh, 0);
  EXPECT_TRUE(copy.equals(model));
}

TEST(FusedOptimizersTest, StepUnderInferenceMode) {
  const at::Tensor weight = Model::parameter({3}, 0);
  SGD sgd(std::vector<at::Tensor>{weight}, SGDOptions(1.0).momentum(0.5));
  weight.mutable_grad() = torch::ones({3});
  const c10::InferenceMode inference;
  sgd.step();
  EXPECT_TRUE(torch::allclose(weight, Model::parameter({3}, 0) - 1.0));
}

TEST(FusedOptimizersTest, RefuseOptionsAsTorchsClassesDo) {
  const std::vector<at::Tensor> parameters = {Model::parameter({3}, 0)};
  EXPECT_THROW(SGD(parameters, SGDOptions(-1.0)), c10::Error);
  EXPECT_THROW(SGD(parameters, SGDOptions(0.1).nesterov(true)), c10::Error);
  EXPECT_THROW(Adam(parameters, AdamOptions(0.1).betas({1.0, 0.5})), c10::Error);
  EXPECT_THROW(AdamW(parameters, AdamWOptions(0.1).eps(-1.0)), c10::Error);
  EXPECT_THROW(Adagrad(parameters, AdagradOptions(0.1).lr_decay(-1.0)), c10::Error);
}

}  // namespace
}  // namespace marlin::optim
