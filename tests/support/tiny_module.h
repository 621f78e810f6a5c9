// A linear model over a few samples that records what is called, and the parts to train it with.
#pragma once

#include <torch/torch.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "marlin/checkpointers/default_checkpointer.h"
#include "marlin/core/data/tensor_loader.h"
#include "marlin/core/module_interface.h"
#include "marlin/core/trainer.h"

namespace marlin::testing {

/// Delivers what a TensorLoader does, without knowing how much that is.
class UnknownLengthLoader final : public DataLoader {
 public:
  explicit UnknownLengthLoader(std::unique_ptr<DataLoader> loader) : loader_(std::move(loader)) {}
  [[nodiscard]] std::optional<int64_t> num_samples() const override { return std::nullopt; }
  [[nodiscard]] int64_t batch_size() const override { return loader_->batch_size(); }
  void begin_epoch(int64_t epoch) override { loader_->begin_epoch(epoch); }
  [[nodiscard]] bool next(Batch& into) override { return loader_->next(into); }
  [[nodiscard]] int64_t consumed_samples() const override { return loader_->consumed_samples(); }
  [[nodiscard]] StateDict get_state() const override { return loader_->get_state(); }
  void update_state(const StateDict& state) override { loader_->update_state(state); }

 private:
  std::unique_ptr<DataLoader> loader_;
};

struct TinyOptions {
  int64_t num_samples = 8;
  std::vector<std::pair<std::string, int64_t>> val = {{"default", 4}};  ///< Validation loaders: name, samples.
  bool shuffle = true;
  bool known_length = true;
  double dropout = 0.0;
  double lr = 0.1;
  bool adamw = false;  ///< AdamW under a schedule that falls to 0; else plain SGD.
};

/// y = x w + b for samples x_i = (sin i, cos i, sin 2i); loss: mean squared error. The same numbers in every process.
class TinyModule : public ModuleInterface {
 public:
  explicit TinyModule(TinyOptions options = {}) : options_(std::move(options)) {
    linear_ = register_module("linear", torch::nn::Linear(3, 1));
    dropout_ = register_module("dropout", torch::nn::Dropout(options_.dropout));
    const torch::NoGradGuard no_grad;
    linear_->weight.copy_(torch::tensor({{0.5, -0.25, 0.125}}));
    linear_->bias.zero_();
  }

  // What tests look at.
  std::vector<std::string> log;        ///< "end_step 0 2 train": callback, epoch, global step, mode.
  std::vector<TrainingPlan> plans;     ///< get_optimizers_schedulers was called with these.
  std::vector<LoaderRequest> requests; ///< The loader functions were called with these.
  std::vector<int64_t> train_steps, val_steps;  ///< global_step of each call.
  std::vector<int64_t> micro_sizes;    ///< Samples of each train_step call.
  std::vector<double> losses;          ///< Of each optimizer step.
  std::vector<EpochSummary> train_summaries, val_summaries;
  OptimizersSchedulers made;           ///< What was given to the Trainer last.
  mutable int get_state_calls = 0;

  // What tests may put in.
  std::function<OptimizersSchedulers(TinyModule&, const TrainingPlan&)> make_optimizers;
  std::function<StepOutput(const StepContext&, Batch&)> instead_of_train_step, instead_of_val_step;
  std::function<void(const StepSummary&)> at_end_step;
  std::function<void(const EpochSummary&)> at_end_epoch;
  std::function<std::unique_ptr<DataLoader>(const LoaderRequest&)> instead_of_train_loader;

  [[nodiscard]] at::Tensor weight() const { return linear_->weight; }
  [[nodiscard]] at::Tensor bias() const { return linear_->bias; }
  [[nodiscard]] at::Tensor predict(const at::Tensor& x) { return linear_->forward(dropout_->forward(x)); }
  [[nodiscard]] std::vector<at::Tensor> data(int64_t num_samples) const {
    const at::Tensor i = torch::arange(num_samples, torch::kFloat);
    const at::Tensor x = torch::stack({i.sin(), i.cos(), (2 * i).sin()}, 1);
    return {x, x.matmul(torch::tensor({{1.0f}, {-2.0f}, {0.5f}})) + 0.25};
  }

  OptimizersSchedulers get_optimizers_schedulers(const TrainingPlan& plan) override {
    plans.push_back(plan);
    if (make_optimizers) {
      made = make_optimizers(*this, plan);
    } else if (options_.adamw) {
      auto optimizer = std::make_shared<torch::optim::AdamW>(parameters(), torch::optim::AdamWOptions(options_.lr));
      auto schedule = std::make_shared<optim::LinearLR>(*optimizer, 1.0, 0.0, plan.total_steps());
      made = {{std::move(optimizer)}, {std::move(schedule)}};
    } else {
      made = {{std::make_shared<torch::optim::SGD>(parameters(), torch::optim::SGDOptions(options_.lr))}};
    }
    return made;
  }
  std::unique_ptr<DataLoader> get_train_dataloader(const LoaderRequest& request) override {
    requests.push_back(request);
    if (instead_of_train_loader) return instead_of_train_loader(request);
    auto loader = std::make_unique<TensorLoader>(data(options_.num_samples), request, TensorLoaderOptions{.shuffle = options_.shuffle});
    if (options_.known_length) return loader;
    return std::make_unique<UnknownLengthLoader>(std::move(loader));
  }
  NamedLoaders get_val_dataloaders(const LoaderRequest& request) override {
    requests.push_back(request);
    NamedLoaders loaders;
    for (const auto& [name, samples] : options_.val) loaders.add(name, std::make_unique<TensorLoader>(data(samples), request));
    return loaders;
  }

  StepOutput train_step(const StepContext& step, Batch& batch) override {
    train_steps.push_back(step.global_step);
    micro_sizes.push_back(batch.num_samples);
    if (instead_of_train_step) return instead_of_train_step(step, batch);
    return (predict(batch.data()) - batch.target()).square().mean();
  }
  StepOutput val_step(const StepContext& step, Batch& batch) override {
    val_steps.push_back(step.global_step);
    if (instead_of_val_step) return instead_of_val_step(step, batch);
    const at::Tensor error = predict(batch.data()) - batch.target();
    return {error.square().mean(), {{"absolute", error.abs().mean()}}};
  }

  void on_begin_train_epoch(int64_t epoch, int64_t global_step) override { note("begin_epoch", epoch, global_step); }
  void on_end_train_step(const StepSummary& step) override {
    note("end_step", step.epoch, step.global_step);
    losses.push_back(step.loss);
    if (at_end_step) at_end_step(step);
  }
  void on_end_val_epoch(const std::string& loader, const EpochSummary& summary) override {
    note("end_val " + loader, summary.epoch, summary.global_step);
    val_summaries.push_back(summary);
  }
  void on_end_train_epoch(const EpochSummary& summary) override {
    note("end_epoch", summary.epoch, summary.global_step);
    train_summaries.push_back(summary);
    if (at_end_epoch) at_end_epoch(summary);
  }
  void on_end_train(int64_t global_step) override { note("end_train", -1, global_step); }
  [[nodiscard]] StateDict get_state() const override {
    ++get_state_calls;
    return ModuleInterface::get_state();
  }

  [[nodiscard]] size_t times(const std::string& callback) const {
    size_t count = 0;
    for (const std::string& line : log) count += line.starts_with(callback + " ");
    return count;
  }

 private:
  void note(const std::string& what, int64_t epoch, int64_t global_step) {
    log.push_back(what + (epoch < 0 ? "" : " " + std::to_string(epoch)) + " " + std::to_string(global_step) + (is_training() ? " train" : " eval"));
  }

  TinyOptions options_;
  torch::nn::Linear linear_ = nullptr;
  torch::nn::Dropout dropout_ = nullptr;
};

/// Whether all parameters are the same, bit for bit.
[[nodiscard]] inline bool same_parameters(const torch::nn::Module& a, const torch::nn::Module& b) {
  const auto ours = a.parameters(), theirs = b.parameters();
  if (ours.size() != theirs.size()) return false;
  for (size_t i = 0; i < ours.size(); ++i) {
    if (!torch::equal(ours[i], theirs[i])) return false;
  }
  return true;
}

/// The one DefaultCheckpointer of a Trainer.
[[nodiscard]] inline Checkpointers default_checkpointer(const DefaultCheckpointerOptions& options, Logger* logger = &null_logger()) {
  Checkpointers result;
  result.push_back(std::make_unique<DefaultCheckpointer>(options, HostContext{logger}));
  return result;
}

[[nodiscard]] inline DefaultCheckpointerOptions save_in(const std::string& folder) {
  DefaultCheckpointerOptions options;
  options.save_dir = folder;
  return options;
}

/// Options of a run of that many epochs in batches of 4, by default on its own.
[[nodiscard]] inline TrainerOptions run_of(int64_t epochs, std::optional<std::string> resume = {}) {
  TrainerOptions options;
  options.epochs = epochs;
  options.train_batch_size = 4;
  options.resume = std::move(resume);
  return options;
}
[[nodiscard]] inline TrainerOptions run_of(int64_t epochs, int64_t train_batch_size) {
  TrainerOptions options = run_of(epochs);
  options.train_batch_size = train_batch_size;
  return options;
}

/// A Trainer that writes nothing.
[[nodiscard]] inline std::unique_ptr<Trainer> unsaved_trainer(std::shared_ptr<ModuleInterface> module, TrainerOptions options, TrainerServices services = {}) {
  DefaultCheckpointerOptions off;
  off.checkpoint = false;
  return std::make_unique<Trainer>(std::move(module), nullptr, default_checkpointer(off), std::move(options), std::move(services));
}

/// A Trainer that saves in that folder.
[[nodiscard]] inline std::unique_ptr<Trainer> saving_trainer(std::shared_ptr<ModuleInterface> module, const std::string& folder, TrainerOptions options,
                                                             TrainerServices services = {}) {
  return std::make_unique<Trainer>(std::move(module), nullptr, default_checkpointer(save_in(folder), services.logger), std::move(options), std::move(services));
}

}  // namespace marlin::testing
