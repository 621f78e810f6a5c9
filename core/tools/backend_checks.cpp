// What is checked of a backend: that a Trainer can train and resume with it.
#include <torch/torch.h>

#include <cmath>

#include "marlin/core/data/tensor_loader.h"
#include "marlin/core/module_interface.h"
#include "marlin/core/trainer.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "plugin_under_check.h"

namespace marlin::plugin_tool {
namespace {

namespace fs = std::filesystem;

// A line through a few points; the same in every process.
class Line final : public ModuleInterface {
 public:
  Line() : linear_(register_module("linear", torch::nn::Linear(2, 1))) {
    const torch::NoGradGuard no_grad;
    linear_->weight.fill_(0.5);
    linear_->bias.zero_();
  }
  OptimizersSchedulers get_optimizers_schedulers(const TrainingPlan&) override {
    return {{std::make_shared<torch::optim::SGD>(parameters(), torch::optim::SGDOptions(0.05))}};
  }
  std::unique_ptr<DataLoader> get_train_dataloader(const LoaderRequest& request) override {
    const at::Tensor x = torch::arange(16, torch::kFloat).reshape({8, 2}) / 16;
    return std::make_unique<TensorLoader>(std::vector<at::Tensor>{x, x.sum(1, true)}, request);
  }
  NamedLoaders get_val_dataloaders(const LoaderRequest& request) override { return get_train_dataloader(request); }
  StepOutput train_step(const StepContext&, Batch& batch) override { return loss(batch); }
  StepOutput val_step(const StepContext&, Batch& batch) override { return loss(batch); }

 private:
  at::Tensor loss(Batch& batch) { return (linear_->forward(batch.data()) - batch.target()).square().mean(); }
  torch::nn::Linear linear_;
};

RunResult train(const PluginUnderCheck& plugin, const std::shared_ptr<Line>& line, int64_t epochs, const std::string& resume = "never") {
  TrainerOptions options;
  options.epochs = epochs;
  options.train_batch_size = 4;
  options.resume = resume;
  Trainer trainer(line, plugin.make_backend({}), {}, options);
  return trainer.train();
}

[[noreturn]] void broken(const std::string& what) { throw Error(Errc::kPlugin, what); }

std::string trains(const PluginUnderCheck& plugin, const fs::path&) {
  const auto line = std::make_shared<Line>();
  const at::Tensor before = line->parameters().front().clone();
  const RunResult result = train(plugin, line, 1);
  if (result.global_step != 2) broken(concat("an epoch of 8 samples in batches of 4 has two steps, but the backend counted ", result.global_step));
  if (torch::equal(before, line->parameters().front())) broken("two steps were trained, but the parameters are what they were");
  const double loss = result.metrics.at("train/loss");
  if (!std::isfinite(loss)) broken("the loss of the epoch is not finite");
  return concat("two steps, loss ", loss);
}

std::string resumes(const PluginUnderCheck& plugin, const fs::path& folder) {
  const auto at_once = std::make_shared<Line>(), in_two = std::make_shared<Line>(), resumed = std::make_shared<Line>();
  for (const char* name : {"at_once", "in_two"}) fs::create_directory(folder / name);
  fs::current_path(folder / "at_once");
  (void)train(plugin, at_once, 3);
  fs::current_path(folder / "in_two");
  (void)train(plugin, in_two, 1);
  const RunResult result = train(plugin, resumed, 3, "must");
  if (result.global_step != 6) broken(concat("a resumed run goes on counting: it is at step 6, but the backend says ", result.global_step));
  for (size_t i = 0; i < at_once->parameters().size(); ++i) {
    if (!torch::allclose(at_once->parameters()[i], resumed->parameters()[i])) broken("a run that was resumed after an epoch ends elsewhere than one that ran at once");
  }
  return {};
}

}  // namespace

const std::vector<PartCheck>& backend_checks() {
  static const std::vector<PartCheck> kChecks = {{"trains two steps", &trains}, {"resumes", &resumes}};
  return kChecks;
}

}  // namespace marlin::plugin_tool
