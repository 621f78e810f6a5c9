// loader: what a resume in the middle of an epoch, batches from memory, workers, and looking whether to stop cost.
//
//   marlin_bench loader [--peers]
//
// One intra-op thread. What is delivered has been checked to be right before anything is timed. Workers are in loader_workers.cpp.
#include <marlin/marlin.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>

#include "bench.h"
#include "loader_parts.h"

namespace marlin::bench {
namespace {

LoaderRequest training(int64_t batch_size) {
  LoaderRequest request;
  request.stage = Stage::kTrain;
  request.batch_size = batch_size;
  request.seed = 1;
  return request;
}

void next_or_fail(DataLoader& loader, Batch& batch) { require(loader.next(batch), "there is a next batch"); }

// ---- Resuming: 10 million samples of one byte, so that what is timed is finding the place.

constexpr int64_t kManySamples = 10'000'000, kManyBatch = 1000, kEpoch = 3;

// From a loader that has done nothing, as after a start of the program, to its first batch. Giving memory back is not timed.
double first_batch(const at::Tensor& data, const std::function<void(TensorLoader&)>& go_there, Batch& batch) {
  std::optional<TensorLoader> loader;
  return seconds_of([&] {
    loader.emplace(std::vector<at::Tensor>{data}, training(kManyBatch));
    go_there(*loader);
    next_or_fail(*loader, batch);
  });
}

bool judge_resume() {
  torch::manual_seed(1);
  const at::Tensor data = torch::randint(256, {kManySamples}, torch::kUInt8);
  StateDict middle;
  at::Tensor first, after_middle;
  {
    TensorLoader straight({data}, training(kManyBatch));
    straight.begin_epoch(kEpoch);
    Batch batch;
    next_or_fail(straight, batch);
    first = batch.data().clone();
    while (straight.consumed_samples() < kManySamples / 2) next_or_fail(straight, batch);
    middle = straight.get_state();
    next_or_fail(straight, batch);
    after_middle = batch.data().clone();
  }
  const auto start = [&](Batch& batch) { return first_batch(data, [](TensorLoader& loader) { loader.begin_epoch(kEpoch); }, batch); };
  const auto resume = [&](Batch& batch) { return first_batch(data, [&](TensorLoader& loader) { loader.update_state(middle); }, batch); };
  Batch batch;
  static_cast<void>(start(batch));
  require(torch::equal(batch.data(), first), "an epoch that is started begins with its first batch");
  static_cast<void>(resume(batch));
  require(torch::equal(batch.data(), after_middle), "a resume goes on with the batch that would have followed");

  std::vector<Contender> contenders = {{"start_epoch_of_10m", [&] { return start(batch); }}, {"resume_in_its_middle", [&] { return resume(batch); }}};
  run_interleaved(contenders, blocks(kLoaderBlocks));
  print_csv_header("ms");
  for (const Contender& contender : contenders) print_csv("loader", contender, 1e3);
  print_ratio("loader", "resume in the middle of 10 million / start of the epoch", contenders[1], contenders[0]);
  return print_bound("loader", "resume in the middle of 10 million / start of the epoch", median_ratio(contenders[1], contenders[0]), 1.1);
}

// ---- Batches from memory: shuffled epochs of 60,000 images and their labels. A block is an epoch, its permutation included.

constexpr int64_t kSamples = 60000, kPixels = 784, kBatch = 256;

// `take` gets the images and labels of every batch.
template <class Take>
void epoch_by_hand(const at::Tensor& images, const at::Tensor& labels, const Take& take) {
  const at::Tensor permutation = torch::randperm(kSamples, torch::kInt64);
  for (int64_t begin = 0; begin < kSamples; begin += kBatch) {
    const at::Tensor indices = permutation.slice(0, begin, begin + kBatch);
    take(images.index_select(0, indices), labels.index_select(0, indices));
  }
}

template <class Take>
void epoch_of_loader(DataLoader& loader, int64_t epoch, const Take& take) {
  loader.begin_epoch(epoch);
  for (Batch batch; loader.next(batch);) take(batch.data(), batch.target());
}

// Labels are the samples' numbers: each comes once, with its image.
class Checked {
 public:
  explicit Checked(const at::Tensor& images) : images_(images), seen_(torch::zeros({kSamples}, torch::kInt64)) {}
  void operator()(const at::Tensor& images, const at::Tensor& labels) {
    require(torch::equal(images, images_.index_select(0, labels)), "a batch holds the images of its labels");
    seen_.index_add_(0, labels, torch::ones_like(labels));
  }
  void require_each_once() const { require(seen_.eq(1).all().item<bool>(), "an epoch holds each sample once"); }

 private:
  at::Tensor images_, seen_;
};

bool judge_batches_from_memory() {
  torch::manual_seed(1);
  const at::Tensor images = torch::rand({kSamples, kPixels});
  const at::Tensor labels = torch::arange(kSamples, torch::kInt64);
  TensorLoader loader({images, labels}, training(kBatch));
  int64_t epoch = 0;
  Checked ours(images), by_hand(images);
  epoch_of_loader(loader, epoch++, std::ref(ours));
  epoch_by_hand(images, labels, std::ref(by_hand));
  ours.require_each_once();
  by_hand.require_each_once();

  int64_t samples = 0;
  const auto count = [&](const at::Tensor& some_images, const at::Tensor& some_labels) { samples += some_images.size(0) + some_labels.size(0); };
  const auto seconds_a_sample = [&](const std::function<void()>& run) {
    samples = 0;
    const double seconds = seconds_of(run);
    require(samples == 2 * kSamples, "all of the epoch is delivered");
    return seconds / kSamples;
  };
  std::vector<Contender> contenders = {
      {"permutation_index_select", [&] { return seconds_a_sample([&] { epoch_by_hand(images, labels, count); }); }},
      {"tensor_loader", [&] { return seconds_a_sample([&] { epoch_of_loader(loader, epoch++, count); }); }},
  };
  run_interleaved(contenders, blocks(kLoaderBlocks));
  print_csv_header("us_per_sample");
  for (const Contender& contender : contenders) print_csv("loader", contender, 1e6);
  print_ratio("loader", "samples/s of TensorLoader / by hand", contenders[0], contenders[1]);
  return print_at_least("loader", "samples/s of TensorLoader / by hand", median_ratio(contenders[0], contenders[1]), 0.95);
}

// ---- Looking whether to stop, against the step that it is done for: the one of `overhead`.

constexpr int64_t kLooks = 100'000, kSteps = 100, kStepBatch = 32;

class Mlp : public ModuleInterface {
 public:
  Mlp() { net_ = register_module("net", torch::nn::Sequential(torch::nn::Linear(kPixels, 128), torch::nn::ReLU(), torch::nn::Linear(128, 10))); }
  OptimizersSchedulers get_optimizers_schedulers(const TrainingPlan&) override {
    return {{std::make_shared<torch::optim::SGD>(parameters(), torch::optim::SGDOptions(0.05))}};
  }
  std::unique_ptr<DataLoader> get_train_dataloader(const LoaderRequest& request) override {
    return std::make_unique<TensorLoader>(std::vector<at::Tensor>{torch::rand({kStepBatch, kPixels}), torch::zeros({kStepBatch}, torch::kInt64)}, request);
  }
  StepOutput train_step(const StepContext&, Batch& batch) override { return loss(batch.data(), batch.target()); }
  at::Tensor loss(const at::Tensor& images, const at::Tensor& labels) { return torch::nn::functional::cross_entropy(net_->forward(images), labels); }

 private:
  torch::nn::Sequential net_ = nullptr;
};

// A Trainer's flag, and with `deadline` its clock: what max_seconds asks for.
double look(const Trainer& trainer, const std::function<std::chrono::steady_clock::time_point()>& clock,
            std::optional<std::chrono::steady_clock::time_point> deadline) {
  int64_t stops = 0;
  const double seconds = seconds_of([&] {
    for (int64_t i = 0; i < kLooks; ++i) {
      if (trainer.stop_requested() || (deadline && clock() >= *deadline)) ++stops;
    }
  });
  require(stops == 0, "nothing is to stop");
  return seconds / kLooks;
}

double step(Mlp& mlp, torch::optim::Optimizer& optimizer, const at::Tensor& images, const at::Tensor& labels) {
  double total = 0.0;
  const double seconds = seconds_of([&] {
    for (int64_t i = 0; i < kSteps; ++i) {
      optimizer.zero_grad();
      const at::Tensor loss = mlp.loss(images, labels);
      loss.backward();
      optimizer.step();
      total += loss.item<double>();
    }
  });
  require(total > 0.0, "the loss comes to something");
  return seconds / kSteps;
}

bool judge_looks() {
  torch::manual_seed(1);
  const auto mlp = std::make_shared<Mlp>();
  Checkpointers none;
  none.push_back(std::make_unique<DefaultCheckpointer>(DefaultCheckpointerOptions{.checkpoint = false}));
  const Trainer trainer(mlp, nullptr, std::move(none), {});
  torch::optim::SGD optimizer(mlp->parameters(), torch::optim::SGDOptions(0.05));
  const at::Tensor images = torch::rand({kStepBatch, kPixels}), labels = torch::randint(10, {kStepBatch}, torch::kInt64);
  const TrainerServices services;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::hours(24);
  std::vector<Contender> contenders = {{"look_at_flag", [&] { return look(trainer, services.clock, std::nullopt); }},
                                       {"look_at_flag_and_clock", [&] { return look(trainer, services.clock, deadline); }},
                                       {"step_of_small_mlp", [&] { return step(*mlp, optimizer, images, labels); }}};
  run_interleaved(contenders, blocks(kLoaderBlocks));
  print_csv_header("ns");
  for (const Contender& contender : contenders) print_csv("loader", contender, 1e9);
  bool ok = print_bound("loader", "look at the stop flag / step of a small MLP", median_ratio(contenders[0], contenders[2]), 0.001);
  ok &= print_bound("loader", "look at the stop flag and the clock / step of a small MLP", median_ratio(contenders[1], contenders[2]), 0.001);
  return ok;
}

}  // namespace

bool loader() {
  at::set_num_threads(1);
  print_machine("loader", "seed=1 warmup=1 blocks=" + std::to_string(blocks(kLoaderBlocks)));
  bool ok = judge_resume();
  ok &= judge_batches_from_memory();
  ok &= judge_workers();
  ok &= judge_looks();
  return ok;
}

}  // namespace marlin::bench
