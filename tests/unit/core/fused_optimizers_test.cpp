#include "marlin/core/optim/fused.h"

#include <gmock/gmock.h>
#include <torch/torch.h>

#include <cmath>

#include "fused_cases.h"
#include "marlin/core/optim/lr_scheduler.h"
#include "marlin/core/optim/optimizer_state.h"
#include "throws_error.h"

namespace marlin::optim {
namespace {

using ::testing::HasSubstr;
using marlin::testing::ThrowsError;
using testing::Case;
using testing::cases;
using testing::FusedOptimizerTest;
using testing::kSteps;
using testing::kTolerance;
using testing::Model;
using testing::Optimizer;
using testing::relative_difference;

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
  EXPECT_THAT([&] { adam.step(); }, ThrowsError(Errc::kUnsupported, HasSubstr("Adam: parameter group 1 has a sparse gradient")));
  EXPECT_THAT([&] { adamw.step(); }, ThrowsError(Errc::kUnsupported, HasSubstr("AdamW: parameter group 1 has a sparse gradient")));
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
