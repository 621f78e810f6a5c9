#include "marlin/core/optim/optimizer_state.h"

#include <gmock/gmock.h>
#include <torch/torch.h>

#include "throws_error.h"

namespace marlin::optim {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using marlin::testing::ThrowsError;
using torch::optim::Optimizer;
using torch::optim::OptimizerParamGroup;

// Two groups of parameters; the one in `idle` never has a gradient.
struct Model {
  std::vector<at::Tensor> first = {parameter({4, 3}, 0), parameter({4}, 1)};
  std::vector<at::Tensor> second = {parameter({2, 4}, 2)};
  at::Tensor idle = parameter({5}, 3);

  static at::Tensor parameter(at::IntArrayRef shape, double offset) {
    const at::Tensor numbers = torch::arange(c10::multiply_integers(shape), torch::kFloat).reshape(shape);
    return ((numbers + offset) * 0.37).sin().requires_grad_();
  }
  std::vector<at::Tensor> all() const { return {first[0], first[1], idle, second[0]}; }
  // Gradients that depend on the parameters and the step, as a loss would make them.
  void step(Optimizer& optimizer, int64_t number) {
    for (const at::Tensor& p : {first[0], first[1], second[0]}) p.mutable_grad() = (p.detach() * 1.7 + static_cast<double>(number) * 0.3).cos();
    optimizer.step();
  }
  std::vector<OptimizerParamGroup> groups() const {
    std::vector<OptimizerParamGroup> result;
    result.emplace_back(std::vector<at::Tensor>{first[0], first[1], idle});
    result.emplace_back(second);
    return result;
  }
};

using Make = std::function<std::unique_ptr<Optimizer>(const Model&)>;
struct Case {
  std::string name;
  Make make;
  Make make_other;  // the same type with other hyper-parameters
};
void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

template <class O, class Options>
Case case_of(std::string name, const Options& options, const Options& other) {
  const auto with = [](const Options& chosen) { return [chosen](const Model& model) { return std::make_unique<O>(model.groups(), chosen); }; };
  return {std::move(name), with(options), with(other)};
}

std::vector<Case> cases() {
  using namespace torch::optim;
  return {case_of<SGD>("SGD", SGDOptions(0.05), SGDOptions(0.1).momentum(0.5)),
          case_of<SGD>("SGDWithMomentum", SGDOptions(0.05).momentum(0.9).dampening(0.1).weight_decay(0.01), SGDOptions(0.1)),
          case_of<SGD>("SGDNesterov", SGDOptions(0.05).momentum(0.9).nesterov(true), SGDOptions(0.1)),
          case_of<Adam>("Adam", AdamOptions(0.01).betas({0.8, 0.95}).weight_decay(0.1), AdamOptions(0.5).amsgrad(true)),
          case_of<Adam>("AdamWithAmsgrad", AdamOptions(0.01).amsgrad(true), AdamOptions(0.5)),
          case_of<AdamW>("AdamW", AdamWOptions(0.01).eps(1e-6), AdamWOptions(0.5).weight_decay(0.0)),
          case_of<AdamW>("AdamWWithAmsgrad", AdamWOptions(0.01).amsgrad(true), AdamWOptions(0.5)),
          case_of<Adagrad>("Adagrad", AdagradOptions(0.1).lr_decay(0.05).initial_accumulator_value(0.2), AdagradOptions(0.5)),
          case_of<RMSprop>("RMSprop", RMSpropOptions(0.01).alpha(0.9), RMSpropOptions(0.5).centered(true).momentum(0.1)),
          case_of<RMSprop>("RMSpropCenteredWithMomentum", RMSpropOptions(0.01).momentum(0.8).centered(true).weight_decay(0.01), RMSpropOptions(0.5))};
}

class EveryOptimizerTest : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Optimizers, EveryOptimizerTest, ::testing::ValuesIn(cases()), [](const auto& info) { return info.param.name; });

TEST_P(EveryOptimizerTest, AFreshOptimizerGoesOnBitForBit) {
  Model model, copy;
  const auto optimizer = GetParam().make(model);
  for (int64_t i = 0; i < 3; ++i) model.step(*optimizer, i);
  optimizer->param_groups()[1].options().set_lr(0.003);  // groups have options of their own
  const StateDict state = clone(get_state(*optimizer));

  const auto fresh = GetParam().make_other(copy);
  {
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < copy.all().size(); ++i) copy.all()[i].copy_(model.all()[i]);
  }
  EXPECT_THAT(differences(*fresh, state), IsEmpty());
  update_state(*fresh, state);
  EXPECT_TRUE(equal(get_state(*fresh), state)) << "and says the same of itself";
  for (int64_t i = 3; i < 7; ++i) {
    model.step(*optimizer, i);
    copy.step(*fresh, i);
    for (size_t p = 0; p < copy.all().size(); ++p) ASSERT_TRUE(torch::equal(copy.all()[p], model.all()[p])) << "step " << i << ", parameter " << p;
  }
  EXPECT_TRUE(equal(get_state(*fresh), get_state(*optimizer)));
}

TEST_P(EveryOptimizerTest, TakesItsStateBeforeTheFirstStep) {
  Model model, copy;
  const auto optimizer = GetParam().make(model);
  const auto fresh = GetParam().make_other(copy);
  copy.step(*fresh, 0);
  const StateDict state = clone(get_state(*optimizer));
  update_state(*fresh, state);
  EXPECT_TRUE(equal(get_state(*fresh), state)) << "what the optimizer had before is gone";
}

TEST_P(EveryOptimizerTest, WhatIsTakenIsCopied) {
  Model model, copy;
  const auto optimizer = GetParam().make(model);
  model.step(*optimizer, 0);
  const auto fresh = GetParam().make(copy);
  update_state(*fresh, get_state(*optimizer));
  const StateDict before = clone(get_state(*fresh));
  model.step(*optimizer, 1);
  EXPECT_TRUE(equal(get_state(*fresh), before));
}

TEST_P(EveryOptimizerTest, OtherShapesAndCountsAreNamedAndChangeNothing) {
  Model model;
  const auto optimizer = GetParam().make(model);
  model.step(*optimizer, 0);
  const StateDict before = clone(get_state(*optimizer));

  StateDict no_groups = before, fewer = before, number = before;
  no_groups.set("param_groups", List{});
  fewer.find("param_groups")->get_if<List>()->items.pop_back();
  number.set("state", 3);
  EXPECT_THAT([&] { update_state(*optimizer, no_groups); }, ThrowsError(Errc::kMismatch, HasSubstr("0 parameter groups, the optimizer has 2")));
  EXPECT_THAT([&] { update_state(*optimizer, fewer); }, ThrowsError(Errc::kMismatch, HasSubstr("1 parameter groups, the optimizer has 2")));
  EXPECT_THAT([&] { update_state(*optimizer, number); }, ThrowsError(Errc::kMismatch, HasSubstr("'state' must be a dict, found int")));
  EXPECT_THAT([&] { update_state(*optimizer, {}); }, ThrowsError(Errc::kMismatch, HasSubstr("found nothing")));
  EXPECT_TRUE(equal(get_state(*optimizer), before));
}

// ---- the form

class OptimizerStateTest : public ::testing::Test {
 protected:
  static StateDict& group(StateDict& state, size_t index) { return *state.find("param_groups")->get_if<List>()->items.at(index).get_if<StateDict>(); }
  static StateDict& entry(StateDict& state, int64_t number) {
    return *state.find("state")->get_if<StateDict>()->find(number)->get_if<StateDict>();
  }
  static std::vector<std::string> keys(const StateDict& dict) {
    std::vector<std::string> result;
    for (const auto& item : dict) result.push_back(to_string(item.key));
    return result;
  }

  Model model_;
  torch::optim::Adam adam_{model_.groups(), torch::optim::AdamOptions(0.01)};
  torch::optim::SGD sgd_{model_.groups(), torch::optim::SGDOptions(0.1).momentum(0.9)};
};

TEST_F(OptimizerStateTest, IsInPythonsForm) {
  model_.step(adam_, 0);
  StateDict state = get_state(adam_);
  EXPECT_THAT(keys(state), ElementsAre("state", "param_groups"));
  EXPECT_THAT(keys(*state.find("state")->get_if<StateDict>()), ElementsAre("0", "1", "3")) << "parameter 2 has no state yet";
  EXPECT_THAT(keys(entry(state, 0)), ElementsAre("step", "exp_avg", "exp_avg_sq"));
  EXPECT_THAT(keys(group(state, 0)), ElementsAre("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "capturable", "differentiable",
                                                 "fused", "decoupled_weight_decay", "params"));
  const at::Tensor step = entry(state, 0).at("step").as_tensor();
  EXPECT_EQ(step.scalar_type(), torch::kFloat);
  EXPECT_EQ(step.dim(), 0);
  EXPECT_EQ(step.item<float>(), 1.0F);
  EXPECT_STREQ(group(state, 0).at("betas").kind(), "tuple");
  EXPECT_TRUE(group(state, 0).at("foreach").is_null());
  EXPECT_EQ(group(state, 1).at("params").as_items().at(0).as_int(), 3) << "numbers go on from group to group";
}

TEST_F(OptimizerStateTest, TensorsAreTheLiveOnes) {
  model_.step(sgd_, 0);
  StateDict state = get_state(sgd_);
  const at::Tensor buffer = entry(state, 0).at("momentum_buffer").as_tensor();
  const at::Tensor before = buffer.clone();
  model_.step(sgd_, 1);
  EXPECT_FALSE(torch::equal(buffer, before));
}

TEST_F(OptimizerStateTest, AParameterThatStandsTwiceHasOneNumber) {
  torch::optim::SGD optimizer({model_.first[0], model_.first[0], model_.first[1]}, torch::optim::SGDOptions(0.1));
  StateDict state = get_state(optimizer);
  std::vector<int64_t> numbers;
  for (const Value& number : group(state, 0).at("params").as_items()) numbers.push_back(number.as_int());
  EXPECT_THAT(numbers, ElementsAre(0, 0, 2));
  EXPECT_THAT(differences(optimizer, state), IsEmpty());
}

TEST_F(OptimizerStateTest, CountsBeyondFloatStayExact) {
  model_.step(adam_, 0);
  for (auto& [key, state] : adam_.state()) static_cast<torch::optim::AdamParamState&>(*state).step((int64_t{1} << 24) + 1);
  StateDict state = get_state(adam_);
  EXPECT_EQ(entry(state, 0).at("step").as_tensor().item<double>(), 16777217.0);
  update_state(adam_, state);
  EXPECT_TRUE(equal(get_state(adam_), state));
}

// ---- reading what Python writes

TEST_F(OptimizerStateTest, TakesStepsAsNumbersAndRatesAsTensors) {
  model_.step(adam_, 0);
  StateDict state = clone(get_state(adam_));
  entry(state, 0).set("step", 7);
  entry(state, 1).set("step", 7.0);
  entry(state, 3).set("step", torch::tensor({7}));
  group(state, 0).set("lr", torch::tensor(0.25));
  group(state, 0).set("weight_decay", 1);
  group(state, 0).set("betas", List{{0.5, 0.75}});
  update_state(adam_, state);
  StateDict taken = get_state(adam_);
  for (const int64_t number : {0, 1, 3}) EXPECT_EQ(entry(taken, number).at("step").as_tensor().item<float>(), 7.0F);
  EXPECT_EQ(group(taken, 0).at("lr").as_double(), 0.25);
  EXPECT_EQ(group(taken, 0).at("weight_decay").as_double(), 1.0);
  EXPECT_EQ(group(taken, 0).at("betas").as_items().at(1).as_double(), 0.75);
}

TEST_F(OptimizerStateTest, TakesHyperParametersThatChangeNoResult) {
  model_.step(adam_, 0);
  StateDict state = clone(get_state(adam_));
  StateDict& first = group(state, 0);
  first.set("fused", true);
  first.set("foreach", true);
  first.set("capturable", true);
  first.set("initial_lr", 0.5);
  first.set("param_names", List{{"a", "b", "c"}});
  for (const char* old : {"maximize", "differentiable", "decoupled_weight_decay", "amsgrad"}) first.erase(old);
  EXPECT_THAT(differences(adam_, state), IsEmpty());
}

TEST_F(OptimizerStateTest, HyperParametersThatItCannotHonourAreDifferences) {
  StateDict state = clone(get_state(adam_));
  group(state, 0).set("maximize", true);
  group(state, 1).set("decoupled_weight_decay", true);
  group(state, 1).set("lookahead", 3);
  EXPECT_THAT(differences(adam_, state), ElementsAre("param group 0: maximize must be false: torch::optim::Adam knows no other",
                                                     "param group 1: decoupled_weight_decay must be false: torch::optim::Adam knows no other",
                                                     "param group 1: 'lookahead' is not known to Adam"));
}

TEST_F(OptimizerStateTest, EntriesOfNothingAreNoState) {
  model_.step(sgd_, 0);
  StateDict state = clone(get_state(sgd_));
  entry(state, 0).set("momentum_buffer", nullptr);
  entry(state, 1).erase("momentum_buffer");
  update_state(sgd_, state);
  StateDict taken = get_state(sgd_);
  EXPECT_THAT(keys(*taken.find("state")->get_if<StateDict>()), ElementsAre("3"));
  model_.step(sgd_, 1);  // makes them anew
  EXPECT_EQ(get_state(sgd_).at("state").as_dict().size(), 3u);
}

TEST_F(OptimizerStateTest, NumbersMeanTheOrderInTheGroups) {
  model_.step(sgd_, 0);
  const StateDict state = clone(get_state(sgd_));
  StateDict renamed = state;
  group(renamed, 0).set("params", List{{"w", "b", "idle"}});
  group(renamed, 1).set("params", List{{10}});
  StateDict entries;
  entries.set("w", state.at("state").as_dict().at(0));
  entries.set("b", state.at("state").as_dict().at(1));
  entries.set(10, state.at("state").as_dict().at(3));
  renamed.set("state", entries);
  torch::optim::SGD fresh(model_.groups(), torch::optim::SGDOptions(1.0));
  update_state(fresh, renamed);
  EXPECT_TRUE(equal(get_state(fresh), state));
}

TEST_F(OptimizerStateTest, TensorsBecomeTheParametersType) {
  model_.step(sgd_, 0);
  StateDict state = clone(get_state(sgd_));
  entry(state, 0).set("momentum_buffer", entry(state, 0).at("momentum_buffer").as_tensor().to(torch::kDouble));
  update_state(sgd_, state);
  StateDict taken = get_state(sgd_);
  EXPECT_EQ(entry(taken, 0).at("momentum_buffer").as_tensor().scalar_type(), torch::kFloat);
}

// ---- differences

TEST_F(OptimizerStateTest, AllDifferencesAreNamedAndNothingIsChanged) {
  model_.step(adam_, 0);
  const StateDict before = clone(get_state(adam_));
  StateDict state = clone(before);
  entry(state, 0).set("exp_avg", torch::zeros({3, 4}));
  entry(state, 0).set("momentum_buffer", torch::zeros({4, 3}));
  entry(state, 1).erase("exp_avg_sq");
  entry(state, 1).set("step", torch::tensor({1, 2}));
  entry(state, 3).set("exp_avg", "text");
  state.find("state")->get_if<StateDict>()->set(9, StateDict{{"step", 1}});
  group(state, 0).set("lr", "fast");
  group(state, 0).set("amsgrad", 1);
  group(state, 1).erase("eps");
  group(state, 1).set("betas", Tuple{{0.9}});
  const std::vector<std::string> expected = {"param group 0: lr must be a number, found string",
                                             "param group 0: amsgrad must be a bool, found int",
                                             "param group 1: betas must be two numbers",
                                             "param group 1: eps is missing",
                                             "optimizer state 0: exp_avg has shape [3, 4], parameter has [4, 3]",
                                             "optimizer state 0: 'momentum_buffer' is not known to Adam",
                                             "optimizer state 1: step must be a count, a tensor of one element at most",
                                             "optimizer state 1: exp_avg_sq is missing",
                                             "optimizer state 3: exp_avg must be a tensor, found string",
                                             "optimizer state 9: there is no such parameter in param_groups"};
  EXPECT_EQ(differences(adam_, state), expected);
  EXPECT_THAT([&] { update_state(adam_, state); }, ThrowsError(Errc::kMismatch, HasSubstr(expected[4] + "; " + expected[5])));
  EXPECT_TRUE(equal(get_state(adam_), before));
}

TEST_F(OptimizerStateTest, AmsgradNeedsItsMaximum) {
  model_.step(adam_, 0);
  StateDict state = clone(get_state(adam_));
  group(state, 1).set("amsgrad", true);
  EXPECT_THAT(differences(adam_, state), ElementsAre("optimizer state 3: max_exp_avg_sq is missing"));
}

TEST_F(OptimizerStateTest, OtherCountsOfParametersAreNamed) {
  StateDict state = clone(get_state(adam_));
  group(state, 0).set("params", List{{0, 1}});
  EXPECT_THAT(differences(adam_, state), ElementsAre("param group 0: the state has 2 parameters, the optimizer has 3"));
}

TEST_F(OptimizerStateTest, AStateOfAnotherOptimizerIsRefused) {
  model_.step(adam_, 0);
  const std::string all = ::testing::PrintToString(differences(sgd_, get_state(adam_)));
  EXPECT_THAT(all, HasSubstr("param group 0: momentum is missing"));
  EXPECT_THAT(all, HasSubstr("param group 0: 'betas' is not known to SGD"));
  torch::optim::AdamW adamw(model_.groups(), torch::optim::AdamWOptions());
  EXPECT_THAT(differences(adamw, get_state(adam_)), ::testing::Contains(HasSubstr("decoupled_weight_decay must be true")));
}

TEST_F(OptimizerStateTest, AdagradNeedsEveryParametersState) {
  torch::optim::Adagrad adagrad(model_.groups(), torch::optim::AdagradOptions(0.1));
  StateDict state = clone(get_state(adagrad));
  EXPECT_EQ(state.at("state").as_dict().size(), 4u) << "it has them from the start";
  state.find("state")->get_if<StateDict>()->erase(2);
  EXPECT_THAT(differences(adagrad, state), ElementsAre("optimizer state 2: is missing, and Adagrad needs it from the start"));
}

// ---- other optimizers

TEST_F(OptimizerStateTest, AnOptimizerThatIsNotKnownIsNamed) {
  torch::optim::LBFGS lbfgs(model_.first, torch::optim::LBFGSOptions(1.0));
  EXPECT_THAT([&] { (void)get_state(lbfgs); }, ThrowsError(Errc::kUnsupported, HasSubstr("torch::optim::LBFGS")));
  EXPECT_THAT([&] { (void)differences(lbfgs, {}); }, ThrowsError(Errc::kUnsupported, HasSubstr("torch::optim::LBFGS")));
  EXPECT_THAT([&] { update_state(lbfgs, {}); }, ThrowsError(Errc::kUnsupported, HasSubstr("torch::optim::LBFGS")));
}

class Own : public torch::optim::SGD, public Stateful {
 public:
  using SGD::SGD;
  [[nodiscard]] StateDict get_state() const override { return {{"mine", value}}; }
  [[nodiscard]] std::vector<std::string> differences(const StateDict& state) const override {
    return state.contains("mine") ? std::vector<std::string>{} : std::vector<std::string>{"mine is missing"};
  }
  void update_state(const StateDict& state) override { value = state.at("mine").as_int(); }
  int64_t value = 1;
};

TEST_F(OptimizerStateTest, AStatefulOptimizerSpeaksForItself) {
  Own own(model_.first, torch::optim::SGDOptions(0.1));
  EXPECT_TRUE(equal(get_state(own), StateDict{{"mine", 1}}));
  update_state(own, {{"mine", 5}});
  EXPECT_EQ(own.value, 5);
  EXPECT_THAT([&] { update_state(own, {}); }, ThrowsError(Errc::kMismatch, HasSubstr("mine is missing")));
  EXPECT_EQ(own.value, 5);
}

}  // namespace
}  // namespace marlin::optim
