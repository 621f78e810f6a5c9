// The part of `loader` that reads samples through a transform that keeps a core busy, while the main thread only takes batches:
// one worker, two, two of torch::data, and with --peers two of Python's DataLoader, in peers_loader.py.
//
// 4,096 images of 64x64 floats in memory, shuffled, batches of 64. A block is an epoch. Workers stay from one epoch to the next on
// all sides, and each works with one intra-op thread.
#include <ATen/Parallel.h>
#include <marlin/marlin.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>

#include "bench.h"
#include "loader_parts.h"
#include "python_peer.h"

namespace marlin::bench {
namespace {

using Sample = torch::data::Example<>;

constexpr int64_t kImages = 4096, kSide = 64, kBatch = 64;
constexpr double kTolerance = 1e-6;   // of a sum over all images

struct Data {
  at::Tensor images, labels;   // [kImages, 1, kSide, kSide]; 0, 1, 2, ...
};

// The same numbers as in peers_loader.py.
Data make_data() {
  torch::manual_seed(1);
  return {torch::rand({kImages, 1, kSide, kSide}), torch::arange(kImages, torch::kInt64)};
}

// 0.2 ms or so, in the operators that peers_loader.py uses.
at::Tensor transform(at::Tensor image) {
  thread_local const bool told = (at::init_num_threads(), true);   // a thread that torch::data starts is not told of set_num_threads()
  static_cast<void>(told);
  image = image.flip({2}).roll({3, -5}, {1, 2});
  image = image * 0.75 + torch::avg_pool2d(image, 5, 1, 2) * 0.25;
  image = image.pow(0.8);
  return (image - image.mean()) / (image.std() + 1e-5);
}

Sample transform(Sample sample) { return {transform(std::move(sample.data)), std::move(sample.target)}; }

using Take = std::function<void(const at::Tensor& images, const at::Tensor& labels)>;
/// Delivers one epoch, a batch at a time.
using Epoch = std::function<void(const Take&)>;

// The same data set in the ways that libmarlin and torch::data read one.
struct Images {
  Data data;
  Sample get(SampleContext& context) const { return {data.images[context.index()], data.labels[context.index()]}; }
  [[nodiscard]] std::optional<size_t> size() const { return kImages; }
};

struct TorchImages : torch::data::datasets::Dataset<TorchImages> {
  explicit TorchImages(Data given) : data(std::move(given)) {}
  Sample get(size_t index) override { return {data.images[static_cast<int64_t>(index)], data.labels[static_cast<int64_t>(index)]}; }
  [[nodiscard]] std::optional<size_t> size() const override { return kImages; }
  Data data;
};

Epoch by_marlin(const Data& data, int64_t num_workers) {
  LoaderRequest request;
  request.batch_size = kBatch;
  request.seed = 1;
  DatasetLoaderOptions options;
  options.num_workers = num_workers;
  std::shared_ptr<DataLoader> loader = make_dataset_loader(transformed(Images{data}, [](Sample sample, SampleContext&) { return transform(std::move(sample)); }), request, options);
  return [loader, epoch = int64_t{0}](const Take& take) mutable {
    loader->begin_epoch(epoch++);
    for (Batch batch; loader->next(batch);) take(batch.data(), batch.target());
  };
}

Epoch by_torch_data(const Data& data, size_t num_workers) {
  using torch::data::transforms::Lambda;
  auto dataset = TorchImages(data).map(Lambda<Sample>([](Sample sample) { return transform(std::move(sample)); })).map(torch::data::transforms::Stack<>());
  const auto options = torch::data::DataLoaderOptions().batch_size(kBatch).workers(num_workers);
  auto made = torch::data::make_data_loader<torch::data::samplers::RandomSampler>(std::move(dataset), options);
  return [loader = std::shared_ptr(std::move(made))](const Take& take) {
    for (Sample& batch : *loader) take(batch.data, batch.target);
  };
}

void require_epoch(const Epoch& epoch, const at::Tensor& expected, const std::string& name) {
  at::Tensor delivered = torch::zeros_like(expected), seen = torch::zeros({kImages}, torch::kInt64);
  epoch([&](const at::Tensor& images, const at::Tensor& labels) {
    delivered.index_copy_(0, labels, images);
    seen.index_add_(0, labels, torch::ones_like(labels));
  });
  require(seen.eq(1).all().item<bool>(), name + " delivers each image once");
  require(torch::equal(delivered, expected), name + " delivers what the transform makes");
}

// Tells images that are not the same, and such that are in other places.
double checksum(const at::Tensor& images, const at::Tensor& labels) {
  return (images.flatten(1).abs().to(torch::kFloat64).sum(1) * (labels + 1)).sum().item<double>();
}

Contender contender(const std::string& name, const Epoch& epoch) {
  return {name, [epoch] {
            int64_t delivered = 0;
            const double seconds = seconds_of([&] { epoch([&](const at::Tensor& images, const at::Tensor&) { delivered += images.size(0); }); });
            require(delivered == kImages, "all of the epoch is delivered");
            return seconds / kImages;
          }};
}

}  // namespace

bool judge_workers() {
  const Data data = make_data();
  at::Tensor expected = torch::empty_like(data.images);
  for (int64_t i = 0; i < kImages; ++i) expected[i].copy_(transform(data.images[i]));

  std::vector<Contender> contenders;
  const auto add = [&](const std::string& name, const Epoch& epoch) {
    require_epoch(epoch, expected, name);
    contenders.push_back(contender(name, epoch));
  };
  add("marlin_1_worker", by_marlin(data, 1));
  add("marlin_2_workers", by_marlin(data, 2));
  add("torch_data_2_workers", by_torch_data(data, 2));
  std::optional<Python> python;
  if (!option("peers", "").empty()) {
    python.emplace("peers_loader.py", std::vector<std::string>{});
    std::printf("# peers %s\n", python->works_with().c_str());
    const double theirs = python->ask("checksum"), ours = checksum(expected, data.labels);
    require(std::abs(theirs - ours) <= kTolerance * ours, "Python's transform makes the same images: " + std::to_string(theirs) + ", " + std::to_string(ours));
    contenders.push_back(python->contender("dataloader_2_workers"));
  }
  run_interleaved(contenders, blocks(kLoaderBlocks));

  print_csv_header("us_per_sample");
  for (const Contender& contender : contenders) print_csv("loader", contender, 1e6);
  print_ratio("loader", "samples/s of two workers / one", contenders[0], contenders[1]);
  print_ratio("loader", "samples/s of two workers / torch::data", contenders[2], contenders[1]);
  if (python) print_ratio("loader", "samples/s of two workers / Python's DataLoader", contenders[3], contenders[1]);
  bool ok = print_at_least("loader", "samples/s of two workers / one", median_ratio(contenders[0], contenders[1]), 1.6);
  ok &= print_at_least("loader", "samples/s of two workers / torch::data", median_ratio(contenders[2], contenders[1]), 1.0);
  if (python) ok &= print_at_least("loader", "samples/s of two workers / Python's DataLoader", median_ratio(contenders[3], contenders[1]), 1.0);
  return ok;
}

}  // namespace marlin::bench
