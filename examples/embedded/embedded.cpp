// embedded: training inside a program of your own, without MARLIN_MAIN. A Trainer with more state, stopped from another thread
// and going on; two Trainers at once; and the trained model, loaded from its file, at work.
// Run:    embedded                 (CPU, < 10 s; writes to a temporary folder)
// Expect: last line "as if never stopped: yes, own state resumed: yes, two at once as one by one: yes, model file at work: yes, signals untouched: yes"
#include <marlin/marlin.h>
#include <torch/torch.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <future>
#include <iostream>
#include <numbers>

namespace {

namespace fs = std::filesystem;

constexpr int64_t kEpochs = 60;  // of 16 steps each

// Learns y = sin x.
class Sine : public marlin::ModuleInterface {
 public:
  explicit Sine(uint64_t seed) {
    torch::manual_seed(seed);
    net_ = register_module("net", torch::nn::Sequential(torch::nn::Linear(1, 32), torch::nn::Tanh(), torch::nn::Linear(32, 1)));
    x_ = torch::linspace(-std::numbers::pi, std::numbers::pi, 512).unsqueeze(1);
  }

  at::Tensor forward(const at::Tensor& x) { return net_->forward(x); }
  std::function<void(int64_t global_step)> after_step;

  marlin::OptimizersSchedulers get_optimizers_schedulers(const marlin::TrainingPlan&) override {
    return {{std::make_shared<torch::optim::AdamW>(parameters(), torch::optim::AdamWOptions(0.01))}};
  }
  std::unique_ptr<marlin::DataLoader> get_train_dataloader(const marlin::LoaderRequest& request) override {
    return std::make_unique<marlin::TensorLoader>(std::vector<at::Tensor>{x_, x_.sin()}, request);
  }
  marlin::StepOutput train_step(const marlin::StepContext&, marlin::Batch& batch) override {
    return torch::mse_loss(forward(batch.data()), batch.target());
  }
  void on_end_train_step(const marlin::StepSummary& step) override {
    if (after_step) after_step(step.global_step);
  }

 private:
  torch::nn::Sequential net_ = nullptr;
  at::Tensor x_;
};

// Saves, with everything else, how many Trainers have worked on the model.
class RelayTrainer : public marlin::Trainer {
 public:
  using marlin::Trainer::Trainer;

  [[nodiscard]] int64_t num_trainers() const { return num_trainers_; }

  [[nodiscard]] marlin::StateDict get_state() const override {
    marlin::StateDict state = Trainer::get_state();
    state.set("num_trainers", num_trainers_);
    return state;
  }
  void update_state(const marlin::StateDict& state) override {
    Trainer::update_state(state);
    num_trainers_ = state.at("num_trainers").as_int() + 1;
  }

 private:
  int64_t num_trainers_ = 1;
};

// A trainer made of own objects. It goes on with what is in its folder, if anything is.
RelayTrainer make_trainer(const std::shared_ptr<Sine>& module, const fs::path& folder) {
  marlin::Checkpointers checkpointers;
  checkpointers.push_back(std::make_unique<marlin::DefaultCheckpointer>(marlin::DefaultCheckpointerOptions{.period = 10, .save_dir = folder.string()}));
  marlin::TrainerOptions options;
  options.epochs = kEpochs;
  options.train_batch_size = 32;
  options.resume = "auto";
  return RelayTrainer(module, nullptr, std::move(checkpointers), options);
}

marlin::StateDict train(const std::shared_ptr<Sine>& module, const fs::path& folder) {
  make_trainer(module, folder).train();
  return module->get_state();
}

// Trains until another thread, as a window's or a server's would, calls stop(). That happens in step `step`, always, because here
// the step waits for it.
marlin::RunResult train_until(marlin::Trainer& trainer, Sine& module, int64_t step) {
  std::future<void> stopper;
  std::promise<void> now;
  stopper = std::async(std::launch::async, [&trainer, moment = now.get_future()] {
    moment.wait();
    trainer.stop();
  });
  module.after_step = [&](int64_t global_step) {
    if (global_step != step) return;
    now.set_value();
    stopper.wait();
  };
  marlin::RunResult result = trainer.train();
  module.after_step = nullptr;
  return result;
}

bool signals_are_untouched() {
  for (const int signal : {SIGINT, SIGTERM, SIGSEGV, SIGABRT, SIGUSR1}) {
    struct sigaction action = {};
    sigaction(signal, nullptr, &action);
    if (action.sa_handler != SIG_DFL) return false;
  }
  return true;
}

int run(const fs::path& folder) {
  using Outcome = marlin::RunResult::Outcome;
  const marlin::StateDict first = train(std::make_shared<Sine>(1), folder / "first");
  const marlin::StateDict second = train(std::make_shared<Sine>(2), folder / "second");

  // Stopped twice, each time in the middle of an epoch. The first time the same Trainer goes on; then another one, as a later
  // start of the program would make it, goes on with what is on disk.
  const auto module = std::make_shared<Sine>(1);
  RelayTrainer trainer = make_trainer(module, folder / "stopped");
  const bool stopped_once = train_until(trainer, *module, 100).outcome == Outcome::kStopped && trainer.global_step() == 100;
  const bool stopped_twice = train_until(trainer, *module, 300).outcome == Outcome::kStopped && trainer.global_step() == 300;
  const auto later_module = std::make_shared<Sine>(3);
  RelayTrainer later = make_trainer(later_module, folder / "stopped");
  const bool done = later.train().outcome == Outcome::kDone;
  const bool as_if_never_stopped = stopped_once && stopped_twice && done && marlin::equal(later_module->get_state(), first);

  // The weights are drawn here, one model after the other: LibTorch's generator is one for the whole process.
  const auto first_module = std::make_shared<Sine>(1), second_module = std::make_shared<Sine>(2);
  auto second_again = std::async(std::launch::async, [&] { return train(second_module, folder / "second_again"); });
  const marlin::StateDict first_again = train(first_module, folder / "first_again");
  const bool two_at_once = marlin::equal(first_again, first) && marlin::equal(second_again.get(), second);

  // Inference needs the model's class and its file, no Trainer.
  Sine model(/*seed=*/4);
  marlin::load_model_state(model, folder / "first" / ("checkpoint_model_" + std::to_string(kEpochs - 1) + ".pt"));
  torch::NoGradGuard no_grad;
  const at::Tensor x = torch::linspace(-3.0, 3.0, 100).unsqueeze(1);
  const double error = (model.forward(x) - x.sin()).abs().max().item<double>();
  std::cout << "largest error of sin x, -3 <= x <= 3: " << error << "\n";

  const std::pair<const char*, bool> promises[] = {{"as if never stopped", as_if_never_stopped},
                                                   {"own state resumed", later.num_trainers() == 2},
                                                   {"two at once as one by one", two_at_once},
                                                   {"model file at work", marlin::equal(model.get_state(), first) && error < 0.1},
                                                   {"signals untouched", signals_are_untouched()}};
  bool all = true;
  for (const auto& [promise, held] : promises) {
    std::cout << (promise == promises[0].first ? "" : ", ") << promise << ": " << (held ? "yes" : "no");
    all = all && held;
  }
  std::cout << std::endl;
  return all ? 0 : 1;
}

}  // namespace

int main() {
  const fs::path folder = fs::temp_directory_path() / ("marlin_embedded_" + std::to_string(::getpid()));
  int result = 1;
  try {
    result = run(folder);
  } catch (const marlin::Error& error) {
    std::cerr << "error: " << error.what() << std::endl;
  }
  fs::remove_all(folder);
  return result;
}
