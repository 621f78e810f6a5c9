// digits: learns to read handwritten digits (8x8 pixels).
// Run:    digits --epochs 20
// Expect: last line "done epochs=20 global_step=460 val/accuracy=0.9..." (val/accuracy above 0.95)
#include <marlin/marlin.h>
#include <torch/torch.h>

#include <optional>
#include <string>
#include <vector>

#include "digits_data.h"

namespace {

struct DigitsOptions {
  int64_t hidden = 128;
  double lr = 0.003;
  double dropout = 0.0;
  bool augment = false;
  std::string data;
  std::string optimizer = "adamw";
  double momentum = 0.9;
  std::string schedule = "none";
  std::optional<int64_t> workers;

  static std::vector<marlin::OptionField<DigitsOptions>> option_fields() {
    using O = DigitsOptions;
    return {marlin::option_field("hidden", &O::hidden, "Width of the hidden layer.", {.min = 1}),
            marlin::option_field("lr", &O::lr, "Learning rate.", {.min = 0}),
            marlin::option_field("dropout", &O::dropout, "Share of hidden values set to zero in training.", {.min = 0, .max = 0.999}),
            marlin::option_field("augment", &O::augment, "Move training images by up to one pixel at random."),
            marlin::option_field("data", &O::data, "The data file; not given: the digits.csv that comes with the program."),
            marlin::option_field("optimizer", &O::optimizer, "What steps the weights.", {.choices = {"adamw", "sgd"}}),
            marlin::option_field("momentum", &O::momentum, "Momentum of sgd.", {.min = 0, .max = 0.999}),
            marlin::option_field("schedule", &O::schedule, "Learning rate: none: stays; cosine: falls to 0 with the last step; step: times 0.7 each epoch.", {.choices = {"none", "cosine", "step"}}),
            marlin::option_field("workers", &O::workers, "Threads that read samples one by one and move each by itself (0: the training thread); not given: whole batches are taken from memory.", {.min = 0})};
  }
};

// One image after the other.
class DigitSamples {
 public:
  explicit DigitSamples(std::vector<at::Tensor> tensors) : images_(tensors[0]), labels_(tensors[1]) {}
  torch::data::Example<> get(marlin::SampleContext& context) const { return {images_[context.index()], labels_[context.index()]}; }
  size_t size() const { return static_cast<size_t>(labels_.size(0)); }

 private:
  at::Tensor images_, labels_;
};

constexpr int64_t kNumDigits = 1797;  // in the file that comes with the program

class Digits : public marlin::ModuleInterface {
 public:
  static marlin::OptionTable options() { return marlin::option_table<DigitsOptions>(); }
  static marlin::TrainerOptions trainer_defaults() {
    marlin::TrainerOptions defaults;
    defaults.train_batch_size = 64;
    return defaults;
  }

  explicit Digits(const marlin::Options& options) : options_(marlin::parse<DigitsOptions>(options)) {
    torch::set_num_threads(1);  // an image has 64 values: more threads would only wait for each other
    net_ = register_module("net", torch::nn::Sequential(torch::nn::Linear(64, options_.hidden), torch::nn::ReLU(),
                                                        torch::nn::Dropout(options_.dropout), torch::nn::Linear(options_.hidden, 10)));
    const std::filesystem::path file = find_digits(options_.data);
    DigitsData data = read_digits(file);
    if (options_.data.empty() && data.labels.size(0) != kNumDigits) {
      throw marlin::Error(marlin::Errc::kInvalidArgument, marlin::concat(file.string(), ": holds ", data.labels.size(0), " digits, not ", kNumDigits, ": it was cut short or changed; name it with --module.data to take it all the same"));
    }
    auto generator = at::make_generator<at::CPUGeneratorImpl>(/*seed=*/1797);  // the split is the same in every run
    const at::Tensor order = torch::randperm(data.labels.size(0), generator, torch::kInt64);
    const int64_t num_train = data.labels.size(0) * 8 / 10;
    const at::Tensor train = order.slice(0, 0, num_train);
    const at::Tensor val = order.slice(0, num_train);
    train_ = {data.images.index_select(0, train), data.labels.index_select(0, train)};
    val_ = {data.images.index_select(0, val), data.labels.index_select(0, val)};
  }

  marlin::OptimizersSchedulers get_optimizers_schedulers(const marlin::TrainingPlan& plan) override {
    marlin::OptimizersSchedulers made;
    if (options_.optimizer == "sgd") {
      made.optimizers = {std::make_shared<torch::optim::SGD>(parameters(), torch::optim::SGDOptions(options_.lr).momentum(options_.momentum))};
    } else {
      made.optimizers = {std::make_shared<marlin::optim::AdamW>(parameters(), marlin::optim::AdamWOptions(options_.lr))};
    }
    if (options_.schedule == "cosine") {
      made.schedulers = {std::make_shared<marlin::optim::CosineAnnealingLR>(*made.optimizers[0], plan.total_steps())};
    } else if (options_.schedule == "step") {
      made.schedulers = {std::make_shared<marlin::optim::StepLR>(*made.optimizers[0], /*step_size=*/1, /*gamma=*/0.7)};
    }
    return made;
  }
  std::unique_ptr<marlin::DataLoader> get_train_dataloader(const marlin::LoaderRequest& request) override {
    if (!options_.workers) return std::make_unique<marlin::TensorLoader>(train_, request);
    const marlin::DatasetLoaderOptions options{.num_workers = *options_.workers};
    if (!options_.augment) return marlin::make_dataset_loader(DigitSamples(train_), request, options);
    const auto moved_alone = [](torch::data::Example<> sample, marlin::SampleContext& context) {
      sample.data = moved(sample.data, context.generator()).view({64});
      return sample;
    };
    return marlin::make_dataset_loader(marlin::transformed(DigitSamples(train_), moved_alone), request, options);
  }
  marlin::NamedLoaders get_val_dataloaders(const marlin::LoaderRequest& request) override {
    return std::make_unique<marlin::TensorLoader>(val_, request);
  }

  marlin::StepOutput train_step(const marlin::StepContext&, marlin::Batch& batch) override {
    const at::Tensor images = options_.augment && !options_.workers ? moved(batch.data(), {}) : batch.data();
    return torch::nn::functional::cross_entropy(net_->forward(images), batch.target());
  }
  marlin::StepOutput val_step(const marlin::StepContext&, marlin::Batch& batch) override {
    const at::Tensor scores = net_->forward(batch.data());
    const at::Tensor correct = scores.argmax(1).eq(batch.target()).to(torch::kFloat32).mean();
    return {torch::nn::functional::cross_entropy(scores, batch.target()), {{"accuracy", correct}}};
  }

 private:
  // Images, moved together by up to one pixel each way; what comes in from outside is empty. No generator: LibTorch's default one.
  static at::Tensor moved(const at::Tensor& images, std::optional<at::Generator> generator) {
    const at::Tensor shift = torch::randint(0, 3, {2}, generator, torch::kInt64);
    const at::Tensor padded = torch::constant_pad_nd(images.view({-1, 8, 8}), {1, 1, 1, 1});
    return padded.narrow(1, shift[0].item<int64_t>(), 8).narrow(2, shift[1].item<int64_t>(), 8).reshape({-1, 64});
  }

  DigitsOptions options_;
  torch::nn::Sequential net_ = nullptr;
  std::vector<at::Tensor> train_, val_;
};

}  // namespace

MARLIN_MAIN(Digits)
