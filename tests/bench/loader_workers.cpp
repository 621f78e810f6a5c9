// The part of `loader` that reads samples through a transform that keeps a core busy, while the main thread only takes batches:
// one worker, two, two of torch::data, and with --peers two of Python's DataLoader, in peers_loader.py.
//
// Two transforms of images of floats in memory, shuffled, batches of 64: `blur` of 64x64 takes 0.1 ms an image, which is nearly all
// that a loader's time is; `shift` of 28x28 takes a tenth of that, so that the loader itself shows. A block is an epoch. Workers stay
// from one epoch to the next on all sides, and each works with one intra-op thread.
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

constexpr int64_t kBatch = 64;
constexpr double kTolerance = 1e-6;   // of a sum over all images

// The transforms have the operators that those of peers_loader.py have.
struct Work {
  std::string name;
  int64_t images, side;
  at::Tensor (*transform)(at::Tensor image);
};

struct Data {
  at::Tensor images, labels;   // [images, 1, side, side]; 0, 1, 2, ...
  at::Tensor (*transform)(at::Tensor image);
};

// The same numbers as in peers_loader.py.
Data make_data(const Work& work) {
  torch::manual_seed(1);
  return {torch::rand({work.images, 1, work.side, work.side}), torch::arange(work.images, torch::kInt64), work.transform};
}

at::Tensor shift(at::Tensor image) { return image.flip({2}).roll({3, -5}, {1, 2}).sub_(0.1307).div_(0.3081); }

at::Tensor blur(at::Tensor image) {
  image = image.flip({2}).roll({3, -5}, {1, 2});
  image = image * 0.75 + torch::avg_pool2d(image, 5, 1, 2) * 0.25;
  image = image.pow(0.8);
  return (image - image.mean()) / (image.std() + 1e-5);
}

// Of either loader.
Sample transformed_sample(const Data& data, Sample sample) {
  thread_local const bool told = (at::init_num_threads(), true);   // a thread that torch::data starts is not told of set_num_threads()
  static_cast<void>(told);
  return {data.transform(std::move(sample.data)), std::move(sample.target)};
}

using Take = std::function<void(const at::Tensor& images, const at::Tensor& labels)>;
/// Delivers one epoch, a batch at a time.
using Epoch = std::function<void(const Take&)>;

// The same data set in the ways that libmarlin and torch::data read one.
struct Images {
  Data data;
  Sample get(SampleContext& context) const { return {data.images[context.index()], data.labels[context.index()]}; }
  [[nodiscard]] std::optional<size_t> size() const { return static_cast<size_t>(data.labels.numel()); }
};

struct TorchImages : torch::data::datasets::Dataset<TorchImages> {
  explicit TorchImages(Data given) : data(std::move(given)) {}
  Sample get(size_t index) override { return {data.images[static_cast<int64_t>(index)], data.labels[static_cast<int64_t>(index)]}; }
  [[nodiscard]] std::optional<size_t> size() const override { return static_cast<size_t>(data.labels.numel()); }
  Data data;
};

Epoch by_marlin(const Data& data, int64_t num_workers) {
  LoaderRequest request;
  request.batch_size = kBatch;
  request.seed = 1;
  DatasetLoaderOptions options;
  options.num_workers = num_workers;
  std::shared_ptr<DataLoader> loader = make_dataset_loader(transformed(Images{data}, [data](Sample sample, SampleContext&) { return transformed_sample(data, std::move(sample)); }), request, options);
  return [loader, epoch = int64_t{0}](const Take& take) mutable {
    loader->begin_epoch(epoch++);
    for (Batch batch; loader->next(batch);) take(batch.data(), batch.target());
  };
}

Epoch by_torch_data(const Data& data, size_t num_workers) {
  using torch::data::transforms::Lambda;
  auto dataset = TorchImages(data).map(Lambda<Sample>([data](Sample sample) { return transformed_sample(data, std::move(sample)); })).map(torch::data::transforms::Stack<>());
  const auto options = torch::data::DataLoaderOptions().batch_size(kBatch).workers(num_workers);
  auto made = torch::data::make_data_loader<torch::data::samplers::RandomSampler>(std::move(dataset), options);
  return [loader = std::shared_ptr(std::move(made))](const Take& take) {
    for (Sample& batch : *loader) take(batch.data, batch.target);
  };
}

void require_epoch(const Epoch& epoch, const at::Tensor& expected, const std::string& name) {
  at::Tensor delivered = torch::zeros_like(expected), seen = torch::zeros({expected.size(0)}, torch::kInt64);
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

Contender contender(const std::string& name, const Epoch& epoch, int64_t images) {
  return {name, [epoch, images] {
            int64_t delivered = 0;
            const double seconds = seconds_of([&] { epoch([&](const at::Tensor& batch, const at::Tensor&) { delivered += batch.size(0); }); });
            require(delivered == images, "all of the epoch is delivered");
            return seconds / static_cast<double>(images);
          }};
}

bool judge(const Work& work) {
  const Data data = make_data(work);
  at::Tensor expected = torch::empty_like(data.images);
  for (int64_t i = 0; i < work.images; ++i) expected[i].copy_(work.transform(data.images[i]));

  std::vector<Contender> contenders;
  const auto add = [&](const std::string& name, const Epoch& epoch) {
    require_epoch(epoch, expected, name);
    contenders.push_back(contender(work.name + "_" + name, epoch, work.images));
  };
  add("marlin_1_worker", by_marlin(data, 1));
  add("marlin_2_workers", by_marlin(data, 2));
  add("torch_data_2_workers", by_torch_data(data, 2));
  std::optional<Python> python;
  if (!option("peers", "").empty()) {
    python.emplace("peers_loader.py", std::vector<std::string>{work.name});
    std::printf("# peers %s\n", python->works_with().c_str());
    const double theirs = python->ask("checksum"), ours = checksum(expected, data.labels);
    require(std::abs(theirs - ours) <= kTolerance * ours, "Python's transform makes the same images: " + std::to_string(theirs) + ", " + std::to_string(ours));
    contenders.push_back(python->contender("dataloader_2_workers"));
    contenders.back().name = work.name + "_dataloader_2_workers";
  }
  run_interleaved(contenders, blocks(kLoaderBlocks));

  print_csv_header("us_per_sample");
  for (const Contender& contender : contenders) print_csv("loader", contender, 1e6);
  bool ok = true;
  const auto report = [&](const std::string& than, size_t theirs, double limit) {
    const std::string what = work.name + ": samples/s of two workers / " + than;
    print_ratio("loader", what, contenders[theirs], contenders[1]);
    ok &= print_at_least("loader", what, median_ratio(contenders[theirs], contenders[1]), limit);
  };
  report("one", 0, 1.6);
  report("torch::data", 2, 1.0);
  if (python) report("Python's DataLoader", 3, 1.0);
  return ok;
}

}  // namespace

bool judge_workers() {
  bool ok = judge({"blur", 4096, 64, blur});
  ok &= judge({"shift", 32768, 28, shift});
  return ok;
}

}  // namespace marlin::bench
