// What each of LibTorch's optimizers keeps, under the names that Python uses.
#pragma once

#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <array>
#include <optional>

namespace marlin::optim {

/// A hyper-parameter that Python has and LibTorch has not.
struct Foreign {
  const char* name;
  std::optional<bool> value;  ///< What is written: Python's default, and what LibTorch does. Unset: None.
  bool changes_results;       ///< No other value can be taken then.
};

inline constexpr Foreign kMaximize = {"maximize", false, true};
inline constexpr Foreign kDifferentiable = {"differentiable", false, true};
inline constexpr Foreign kCapturable = {"capturable", false, false};
inline constexpr Foreign kForeach = {"foreach", {}, false};
inline constexpr Foreign kFused = {"fused", {}, false};

/// Whether a hyper-parameter may be absent, as it is in files of old versions: Python then takes it for 0 or false, too.
enum class Given : uint8_t { kAlways, kMaybe };

// Each kind below has
//   options(o, visit)  calls visit(name, field of o, Given) for every hyper-parameter, in Python's order;
//   state(s, o, visit) calls visit(name, field of s, whether a parameter that has state must have this) for every entry;
//   kForeign           what else stands in Python's parameter groups;
//   kFromStart         whether step() takes it for granted that every parameter has state.

struct SgdFields {
  using Optimizer = torch::optim::SGD;
  using Options = torch::optim::SGDOptions;
  using State = torch::optim::SGDParamState;
  static constexpr const char* kName = "SGD";
  static constexpr bool kFromStart = false;
  static constexpr std::array kForeign = {kMaximize, kForeach, kDifferentiable, kFused};

  template <class O, class Visit> static void options(O& o, Visit&& visit) {
    visit("lr", o.lr(), Given::kAlways);
    visit("momentum", o.momentum(), Given::kAlways);
    visit("dampening", o.dampening(), Given::kAlways);
    visit("weight_decay", o.weight_decay(), Given::kAlways);
    visit("nesterov", o.nesterov(), Given::kMaybe);
  }
  template <class S, class Visit> static void state(S& s, const Options&, Visit&& visit) { visit("momentum_buffer", s.momentum_buffer(), true); }
};

template <class Optimizer_, class Options_, class State_>
struct AdamLikeFields {
  using Optimizer = Optimizer_;
  using Options = Options_;
  using State = State_;
  static constexpr bool kFromStart = false;

  template <class O, class Visit> static void options(O& o, Visit&& visit) {
    visit("lr", o.lr(), Given::kAlways);
    visit("betas", o.betas(), Given::kAlways);
    visit("eps", o.eps(), Given::kAlways);
    visit("weight_decay", o.weight_decay(), Given::kAlways);
    visit("amsgrad", o.amsgrad(), Given::kMaybe);
  }
  template <class S, class Visit> static void state(S& s, const Options& o, Visit&& visit) {
    visit("step", s.step(), true);
    visit("exp_avg", s.exp_avg(), true);
    visit("exp_avg_sq", s.exp_avg_sq(), true);
    visit("max_exp_avg_sq", s.max_exp_avg_sq(), o.amsgrad());
  }

 protected:
  static constexpr std::array<Foreign, 6> foreign(bool decoupled) {
    return {kMaximize, kForeach, kCapturable, kDifferentiable, kFused, Foreign{"decoupled_weight_decay", decoupled, true}};
  }
};

struct AdamFields : AdamLikeFields<torch::optim::Adam, torch::optim::AdamOptions, torch::optim::AdamParamState> {
  static constexpr const char* kName = "Adam";
  static constexpr std::array kForeign = foreign(false);
};

struct AdamWFields : AdamLikeFields<torch::optim::AdamW, torch::optim::AdamWOptions, torch::optim::AdamWParamState> {
  static constexpr const char* kName = "AdamW";
  static constexpr std::array kForeign = foreign(true);
};

struct AdagradFields {
  using Optimizer = torch::optim::Adagrad;
  using Options = torch::optim::AdagradOptions;
  using State = torch::optim::AdagradParamState;
  static constexpr const char* kName = "Adagrad";
  static constexpr bool kFromStart = true;
  static constexpr std::array kForeign = {kForeach, kMaximize, kDifferentiable, kFused};

  template <class O, class Visit> static void options(O& o, Visit&& visit) {
    visit("lr", o.lr(), Given::kAlways);
    visit("lr_decay", o.lr_decay(), Given::kAlways);
    visit("eps", o.eps(), Given::kAlways);
    visit("weight_decay", o.weight_decay(), Given::kAlways);
    visit("initial_accumulator_value", o.initial_accumulator_value(), Given::kMaybe);
  }
  template <class S, class Visit> static void state(S& s, const Options&, Visit&& visit) {
    visit("step", s.step(), true);
    visit("sum", s.sum(), true);
  }
};

struct RmspropFields {
  using Optimizer = torch::optim::RMSprop;
  using Options = torch::optim::RMSpropOptions;
  using State = torch::optim::RMSpropParamState;
  static constexpr const char* kName = "RMSprop";
  static constexpr bool kFromStart = false;
  static constexpr std::array kForeign = {kCapturable, kForeach, kMaximize, kDifferentiable};

  template <class O, class Visit> static void options(O& o, Visit&& visit) {
    visit("lr", o.lr(), Given::kAlways);
    visit("momentum", o.momentum(), Given::kMaybe);
    visit("alpha", o.alpha(), Given::kAlways);
    visit("eps", o.eps(), Given::kAlways);
    visit("centered", o.centered(), Given::kMaybe);
    visit("weight_decay", o.weight_decay(), Given::kAlways);
  }
  template <class S, class Visit> static void state(S& s, const Options& o, Visit&& visit) {
    visit("step", s.step(), true);
    visit("square_avg", s.square_avg(), true);
    visit("momentum_buffer", s.momentum_buffer(), o.momentum() > 0);
    visit("grad_avg", s.grad_avg(), o.centered());
  }
};

}  // namespace marlin::optim
