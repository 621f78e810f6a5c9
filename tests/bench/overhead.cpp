// overhead: what the Trainer adds to a step, against a loop written by hand over the same batches.
//
// 60,000 samples, 784-128-10 MLP, batch 32, SGD, one thread. Both shuffle, gather their batches from memory and make the same
// steps; before anything is timed, both must have come to the same parameters, bit for bit.
#include <marlin/marlin.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdio>
#include <stdexcept>

#include "bench.h"

namespace marlin::bench {
namespace {

constexpr int64_t kSamples = 60000, kBatch = 32;
constexpr int64_t kSteps = 300;  // of a block: an epoch cut short
constexpr int kBlocks = 41;
constexpr double kRate = 0.05;

torch::nn::Sequential make_net() {
  torch::manual_seed(1);
  return torch::nn::Sequential(torch::nn::Linear(784, 128), torch::nn::ReLU(), torch::nn::Linear(128, 10));
}

struct Data {
  at::Tensor images, labels;
};

Data make_data() {
  torch::manual_seed(2);
  return {torch::rand({kSamples, 784}), torch::randint(10, {kSamples}, torch::kInt64)};
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class Mlp : public ModuleInterface {
 public:
  explicit Mlp(const Data& data) : data_(data) { net = register_module("net", make_net()); }

  OptimizersSchedulers get_optimizers_schedulers(const TrainingPlan&) override {
    return {{std::make_shared<torch::optim::SGD>(parameters(), torch::optim::SGDOptions(kRate))}};
  }
  std::unique_ptr<DataLoader> get_train_dataloader(const LoaderRequest& request) override {
    return std::make_unique<TensorLoader>(std::vector<at::Tensor>{data_.images, data_.labels}, request);
  }
  StepOutput train_step(const StepContext&, Batch& batch) override {
    return torch::nn::functional::cross_entropy(net->forward(batch.data()), batch.target());
  }
  void on_end_train_epoch(const EpochSummary&) override { trainer->stop(); }  // an epoch is a block

  torch::nn::Sequential net = nullptr;
  Trainer* trainer = nullptr;

 private:
  Data data_;
};

// What an expert writes without a trainer.
class HandWritten {
 public:
  HandWritten(const Data& data, bool clip) : data_(data), net(make_net()), optimizer_(net->parameters(), torch::optim::SGDOptions(kRate)), clip_(clip) {}

  // `orders` gives the permutation of an epoch, so that both see the same batches.
  void epoch(int64_t number) {
    EpochOrder order(kSamples, LoaderRequest{Stage::kTrain, kBatch}, true, false);
    order.begin_epoch(number);
    const at::Tensor permutation = order.indices(0, kSamples);
    net->train();
    double total = 0.0;
    for (int64_t step = 0; step < kSteps; ++step) {
      const at::Tensor index = permutation.narrow(0, step * kBatch, kBatch);
      const at::Tensor images = data_.images.index_select(0, index);
      const at::Tensor labels = data_.labels.index_select(0, index);
      optimizer_.zero_grad();
      const at::Tensor loss = torch::nn::functional::cross_entropy(net->forward(images), labels);
      loss.backward();
      if (clip_) torch::nn::utils::clip_grad_norm_(net->parameters(), 1.0);
      optimizer_.step();
      total += loss.item<double>();
    }
    if (!(total > 0.0)) throw std::runtime_error("the loss came to nothing");
  }

 private:
  Data data_;

 public:
  torch::nn::Sequential net;

 private:
  torch::optim::SGD optimizer_;
  bool clip_;
};

struct Trained {
  std::shared_ptr<Mlp> module;
  std::unique_ptr<Trainer> trainer;
};

Trained make_trainer(const Data& data, bool clip, std::unique_ptr<Progress> progress) {
  Trained result{std::make_shared<Mlp>(data), nullptr};
  TrainerOptions options;
  options.epochs = 1 << 20;
  options.train_batch_size = kBatch;
  options.max_train_steps_per_epoch = kSteps;
  options.clip_grads = clip;
  Checkpointers none;
  none.push_back(std::make_unique<DefaultCheckpointer>(DefaultCheckpointerOptions{.checkpoint = false}));
  TrainerServices services;
  services.progress = std::move(progress);
  result.trainer = std::make_unique<Trainer>(result.module, nullptr, std::move(none), options, std::move(services));
  result.module->trainer = result.trainer.get();
  return result;
}

Contender by_hand(const std::string& name, HandWritten& loop) {
  return {name, [&loop, number = int64_t{0}]() mutable {
            const auto start = std::chrono::steady_clock::now();
            loop.epoch(number++);
            return seconds_since(start) / kSteps;
          }};
}

Contender by_trainer(const std::string& name, Trained& trained) {
  return {name, [&trained] {
            const auto start = std::chrono::steady_clock::now();
            static_cast<void>(trained.trainer->train());
            return seconds_since(start) / kSteps;
          }};
}

void require_same_parameters(HandWritten& loop, Trained& trained, const char* what, bool bits) {
  const auto a = loop.net->parameters(), b = trained.module->net->parameters();
  for (size_t i = 0; i < a.size(); ++i) {
    if (bits ? !torch::equal(a[i], b[i]) : !torch::allclose(a[i], b[i], 1e-4, 1e-6)) throw std::runtime_error(std::string("the loops came to different parameters: ") + what);
  }
}

}  // namespace

bool overhead() {
  at::set_num_threads(1);
  const Data data = make_data();
  std::FILE* nowhere = std::fopen("/dev/null", "w");
  HandWritten loop(data, false), clipping_loop(data, true);
  Trained quiet = make_trainer(data, false, nullptr);
  Trained with_bar = make_trainer(data, false, make_progress("bar", nowhere));
  Trained clipping = make_trainer(data, true, nullptr);

  std::vector<Contender> contenders = {by_hand("hand_written", loop), by_trainer("trainer", quiet), by_trainer("trainer_bar", with_bar),
                                       by_hand("hand_written_clip", clipping_loop), by_trainer("trainer_clip", clipping)};
  for (Contender& contender : contenders) static_cast<void>(contender.block());
  require_same_parameters(loop, quiet, "plain", true);
  require_same_parameters(loop, with_bar, "with a bar", true);
  require_same_parameters(clipping_loop, clipping, "clipping", false);
  run_interleaved(contenders, blocks(kBlocks));
  std::fclose(nowhere);

  print_machine("overhead", "seed=1 warmup=2 blocks=" + std::to_string(blocks(kBlocks)) + " steps_per_block=" + std::to_string(kSteps));
  print_csv_header("us_per_step");
  for (const Contender& contender : contenders) print_csv("overhead", contender, 1e6);
  print_ratio("overhead", "trainer_bar / hand_written", contenders[2], contenders[0]);
  print_ratio("overhead", "trainer_clip / hand_written_clip", contenders[4], contenders[3]);
  print_ratio("overhead", "trainer / hand_written", contenders[1], contenders[0]);
  return print_bound("overhead", "trainer / hand_written", median_ratio(contenders[1], contenders[0]), 1.02);
}

}  // namespace marlin::bench
