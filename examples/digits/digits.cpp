// digits: learns to read handwritten digits (8x8 pixels).
// Run:    digits --epochs 20
// Expect: last line "done epochs=20 global_step=460 val/accuracy=0.9..." (val/accuracy above 0.95)
#include <marlin/marlin.h>
#include <torch/torch.h>

#include "digits_data.h"

namespace {

struct DigitsOptions {
  int64_t hidden = 128;
  double lr = 0.003;
  double dropout = 0.0;
  bool augment = false;
  std::string data;

  static std::vector<marlin::OptionField<DigitsOptions>> option_fields() {
    using O = DigitsOptions;
    return {marlin::option_field("hidden", &O::hidden, "Width of the hidden layer.", {.min = 1}),
            marlin::option_field("lr", &O::lr, "Learning rate of AdamW.", {.min = 0}),
            marlin::option_field("dropout", &O::dropout, "Share of hidden values set to zero in training.", {.min = 0, .max = 0.999}),
            marlin::option_field("augment", &O::augment, "Move training images by up to one pixel at random."),
            marlin::option_field("data", &O::data, "The data file; not given: the digits.csv that comes with the program.")};
  }
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

  marlin::OptimizersSchedulers get_optimizers_schedulers(const marlin::TrainingPlan&) override {
    return {{std::make_shared<marlin::optim::AdamW>(parameters(), marlin::optim::AdamWOptions(options_.lr))}};
  }
  std::unique_ptr<marlin::DataLoader> get_train_dataloader(const marlin::LoaderRequest& request) override {
    return std::make_unique<marlin::TensorLoader>(train_, request);
  }
  marlin::NamedLoaders get_val_dataloaders(const marlin::LoaderRequest& request) override {
    return std::make_unique<marlin::TensorLoader>(val_, request);
  }

  marlin::StepOutput train_step(const marlin::StepContext&, marlin::Batch& batch) override {
    const at::Tensor images = options_.augment ? moved(batch.data()) : batch.data();
    return torch::nn::functional::cross_entropy(net_->forward(images), batch.target());
  }
  marlin::StepOutput val_step(const marlin::StepContext&, marlin::Batch& batch) override {
    const at::Tensor scores = net_->forward(batch.data());
    const at::Tensor correct = scores.argmax(1).eq(batch.target()).to(torch::kFloat32).mean();
    return {torch::nn::functional::cross_entropy(scores, batch.target()), {{"accuracy", correct}}};
  }

 private:
  // The images of a batch, moved together by up to one pixel each way; what comes in from outside is empty.
  static at::Tensor moved(const at::Tensor& images) {
    const at::Tensor shift = torch::randint(0, 3, {2}, torch::kInt64);
    const at::Tensor padded = torch::constant_pad_nd(images.view({-1, 8, 8}), {1, 1, 1, 1});
    return padded.narrow(1, shift[0].item<int64_t>(), 8).narrow(2, shift[1].item<int64_t>(), 8).reshape({-1, 64});
  }

  DigitsOptions options_;
  torch::nn::Sequential net_ = nullptr;
  std::vector<at::Tensor> train_, val_;
};

}  // namespace

MARLIN_MAIN(Digits)
