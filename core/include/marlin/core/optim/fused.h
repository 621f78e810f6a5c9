// Optimizers that step whole parameter groups in one pass over memory.
#pragma once

#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include "marlin/sdk/abi.h"

namespace marlin::optim {

using torch::optim::AdagradOptions;
using torch::optim::AdamOptions;
using torch::optim::AdamWOptions;
using torch::optim::OptimizerParamGroup;
using torch::optim::SGDOptions;

// Each class below is the one of torch::optim with another step(): same constructors, options, groups and state, so code
// changes by one namespace only, and states go from one to the other, and to Python and back (optimizer_state.h).
//
// One step of theirs is, bit for bit, that of Python's optimizer with fused=True, and that of torch::optim's class and of Python's
// default up to rounding: within 1e-6 relative after 50 steps in float32, where the loss does not magnify roundings. Their states say
// fused=True for every parameter group that the kernels take whole, so that Python goes on with the same kernels.
//
// The kernels take dense float64, float32, float16 and bfloat16 on CPU and CUDA, and parameters without holes in memory. What they
// do not take steps by torch::optim's own code: complex parameters, sparse gradients (where that code takes them), other devices.
// A gradient that is laid out unlike its parameter is copied into the parameter's layout; Python's fused kernels go wrong there.
//
// Every step raises the version counters of the parameters that it changes, and of their state tensors. Parameters without a gradient
// stay as they are. step() calls a closure first, with gradients enabled, and returns what it returned. One thread at a time.

/// torch::optim::SGD in one pass: momentum, dampening, Nesterov's form, weight decay. The first step of a parameter takes its gradient
/// as momentum, undampened, also if other parameters of its group have taken steps before.
class MARLIN_ABI SGD : public torch::optim::SGD {
 public:
  using torch::optim::SGD::SGD;
  at::Tensor step(LossClosure closure = nullptr) override;
};

/// torch::optim::Adam in one pass; weight decay is added to the gradient. If amsgrad is set on after some steps, the maximum begins there.
/// step() throws Error kUnsupported naming the parameter group if a gradient is sparse. Nothing is then changed.
class MARLIN_ABI Adam : public torch::optim::Adam {
 public:
  using torch::optim::Adam::Adam;
  at::Tensor step(LossClosure closure = nullptr) override;
};

/// torch::optim::AdamW in one pass: Adam, but weight decay shrinks the parameters themselves.
class MARLIN_ABI AdamW : public torch::optim::AdamW {
 public:
  using torch::optim::AdamW::AdamW;
  at::Tensor step(LossClosure closure = nullptr) override;
};

/// torch::optim::Adagrad in one pass. Groups that are added later get their state with their first step (torch::optim::Adagrad
/// fails on them), with the initial accumulator value that the optimizer was made with, as in Python.
class MARLIN_ABI Adagrad : public torch::optim::Adagrad {
 public:
  using torch::optim::Adagrad::Adagrad;
  at::Tensor step(LossClosure closure = nullptr) override;
};

}  // namespace marlin::optim
