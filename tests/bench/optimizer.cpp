// optimizer: a step of marlin::optim::AdamW, and a training loop with it, against the same with torch::optim::AdamW.
//
// 12-layer MLP of 256x256, AdamW, one thread; the loop is forward, backward and step on batches of 32. Before anything is timed, both
// must have come from the same gradients to the same parameters, within 1e-6 of the tensor's greatest, and both loops to the same loss.
// Every block begins with a new net: in one that is trained for long on so little, moments decay into denormal numbers, which
// processors are slow with.
#include <marlin/marlin.h>
#include <torch/torch.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench.h"

namespace marlin::bench {
namespace {

constexpr int64_t kWidth = 256, kLayers = 12, kBatch = 32;
constexpr int kStepsOfABlock = 40, kWarmUpSteps = 3, kVerifiedSteps = 20, kBlocks = 31;
constexpr double kRate = 1e-3;
constexpr double kTolerance = 1e-6;      // of parameters after kVerifiedSteps from the same gradients
constexpr double kLossTolerance = 1e-2;  // of loops: Adam's first steps magnify roundings, as they go by the gradients' signs

using Clock = std::chrono::steady_clock;

template <class Optimizer>
class Loop {
 public:
  Loop() {
    torch::manual_seed(1);
    for (int64_t i = 0; i < kLayers; ++i) {
      net_->push_back(torch::nn::Linear(kWidth, kWidth));
      if (i + 1 < kLayers) net_->push_back(torch::nn::ReLU());
    }
    optimizer_ = std::make_unique<Optimizer>(net_->parameters(), torch::optim::AdamWOptions(kRate));
    torch::manual_seed(2);
    input_ = torch::rand({kBatch, kWidth});
    target_ = torch::rand({kBatch, kWidth});
  }

  /// @return the last step's loss.
  at::Tensor run(int steps) {
    at::Tensor loss;
    for (int i = 0; i < steps; ++i) {
      optimizer_->zero_grad();
      loss = torch::nn::functional::mse_loss(net_->forward(input_), target_);
      loss.backward();
      optimizer_->step();
    }
    return loss.detach();
  }
  void step_from_gradients_of(const std::vector<at::Tensor>& others) {
    const std::vector<at::Tensor> own = parameters();
    for (size_t i = 0; i < own.size(); ++i) own[i].mutable_grad() = others[i].grad();
    optimizer_->step();
  }
  /// Steps alone, all from the gradients that are there.
  void step(int steps) {
    for (int i = 0; i < steps; ++i) optimizer_->step();
  }
  [[nodiscard]] std::vector<at::Tensor> parameters() const { return net_->parameters(); }

 private:
  torch::nn::Sequential net_;
  std::unique_ptr<Optimizer> optimizer_;
  at::Tensor input_, target_;
};

using Fused = Loop<marlin::optim::AdamW>;
using Torch = Loop<torch::optim::AdamW>;

void require_same_steps() {
  Fused fused;
  Torch torch;
  for (int i = 0; i < kVerifiedSteps; ++i) {
    static_cast<void>(torch.run(1));
    fused.step_from_gradients_of(torch.parameters());
  }
  for (size_t i = 0; i < torch.parameters().size(); ++i) {
    const at::Tensor a = fused.parameters()[i], b = torch.parameters()[i];
    const double difference = ((a - b).abs().max() / b.abs().max()).item<double>();
    if (!(difference <= kTolerance)) throw std::runtime_error("the optimizers came to different parameters: by " + std::to_string(difference));
  }
}

void require_same_loss() {
  const double a = Fused().run(kVerifiedSteps).item<double>(), b = Torch().run(kVerifiedSteps).item<double>();
  if (!(std::abs(a - b) <= kLossTolerance * b)) throw std::runtime_error("the loops came to different losses: " + std::to_string(a) + " and " + std::to_string(b));
}

// Seconds of one of kStepsOfABlock calls.
template <class AnyLoop, class Call>
double seconds(const Call& call) {
  AnyLoop loop;
  static_cast<void>(loop.run(kWarmUpSteps));
  const auto start = Clock::now();
  call(loop);
  return std::chrono::duration<double>(Clock::now() - start).count() / kStepsOfABlock;
}

template <class AnyLoop>
double step_seconds() {
  return seconds<AnyLoop>([](AnyLoop& loop) { loop.step(kStepsOfABlock); });
}

template <class AnyLoop>
double loop_seconds() {
  return seconds<AnyLoop>([](AnyLoop& loop) { static_cast<void>(loop.run(kStepsOfABlock)); });
}

}  // namespace

bool optimizer() {
  at::set_num_threads(1);
  require_same_steps();
  require_same_loss();
  std::vector<Contender> contenders = {{"marlin_step", step_seconds<Fused>}, {"torch_step", step_seconds<Torch>},
                                       {"marlin_loop", loop_seconds<Fused>}, {"torch_loop", loop_seconds<Torch>}};
  run_interleaved(contenders, blocks(kBlocks));
  print_machine("optimizer", "seed=1 warmup=1 blocks=" + std::to_string(blocks(kBlocks)) + " steps_per_block=" + std::to_string(kStepsOfABlock));
  print_csv_header("us");
  for (const Contender& contender : contenders) print_csv("optimizer", contender, 1e6);
  print_ratio("optimizer", "step marlin / torch", contenders[0], contenders[1]);
  print_ratio("optimizer", "loop marlin / torch", contenders[2], contenders[3]);
  const bool step_holds = print_bound("optimizer", "step marlin / torch", median_ratio(contenders[0], contenders[1]), 0.25);
  const bool loop_holds = print_bound("optimizer", "loop marlin / torch", median_ratio(contenders[2], contenders[3]), 0.714);
  return step_holds && loop_holds;
}

}  // namespace marlin::bench
