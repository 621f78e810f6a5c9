#include "marlin/core/optim/fused.h"

#include <gmock/gmock.h>
#include <torch/torch.h>

#include <sstream>

#include "fused_cases.h"
#include "marlin/core/optim/optimizer_state.h"
#include "throws_error.h"

namespace marlin::optim {
namespace {

using ::testing::IsEmpty;
using testing::Case;
using testing::cases;
using testing::FusedOptimizerTest;
using testing::kSteps;
using testing::kTolerance;
using testing::Model;
using testing::relative_difference;

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

}  // namespace
}  // namespace marlin::optim
