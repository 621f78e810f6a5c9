#include "ddp_parts.h"

#include <torch/torch.h>

#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>
#include <chrono>

#include "marlin/core/optim/fused.h"

namespace marlin::bench {

DdpData make_ddp_data(int64_t num_samples) {
  torch::manual_seed(2);
  at::Tensor inputs = torch::rand({num_samples, kDdpWidth});
  return {std::move(inputs), torch::rand({num_samples, kDdpWidth})};
}

torch::nn::Sequential make_ddp_net() {
  torch::manual_seed(1);
  torch::nn::Sequential net;
  for (int64_t i = 0; i < kDdpLayers; ++i) {
    if (i > 0) net->push_back(torch::nn::ReLU());
    net->push_back(torch::nn::Linear(kDdpWidth, kDdpWidth));
  }
  return net;
}

int64_t gradient_bytes() { return kDdpLayers * (kDdpWidth + 1) * kDdpWidth * 4; }

namespace {

constexpr auto kTimeout = std::chrono::minutes(10);

c10::intrusive_ptr<c10d::ProcessGroup> make_group(Communicator& ranks) {
  c10d::TCPStoreOptions store_options;
  store_options.isServer = ranks.rank() == 0;
  store_options.waitWorkers = false;
  store_options.timeout = kTimeout;
  store_options.port = 0;  // any that is free
  c10::intrusive_ptr<c10d::TCPStore> store;
  if (store_options.isServer) store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", store_options);
  store_options.port = static_cast<uint16_t>(std::stoi(ranks.broadcast_bytes(store ? std::to_string(store->getPort()) : "", 0)));
  if (!store) store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", store_options);
  const auto options = c10d::ProcessGroupGloo::Options::create(kTimeout);
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
  auto group = c10::make_intrusive<c10d::ProcessGroup>(store, ranks.rank(), ranks.world_size());
  group->setBackend(at::kCPU, c10d::ProcessGroup::GLOO, c10::make_intrusive<c10d::ProcessGroupGloo>(store, ranks.rank(), ranks.world_size(), options));
  group->setDefaultBackend(c10d::ProcessGroup::GLOO);
  group->setGroupName("bench");
  return group;
}

// As torch.nn.parallel.DistributedDataParallel makes it.
std::shared_ptr<c10d::Reducer> make_reducer(const std::vector<at::Tensor>& parameters, const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
  constexpr int64_t kFirst = c10d::kDefaultFirstBucketBytes, kCap = c10d::kDefaultBucketBytesCap;
  const std::vector<bool> sparse(parameters.size(), false);
  auto [buckets, caps] = c10d::compute_bucket_assignment_by_size(parameters, {static_cast<size_t>(-1) >> 1}, sparse);  // until their order is known
  std::reverse(buckets.begin(), buckets.end());
  return std::make_shared<c10d::Reducer>(parameters, buckets, group, sparse, kCap, /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/false,
                                         std::unordered_map<size_t, std::string>{}, kFirst, /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
                                         std::vector<int64_t>{kFirst, kCap});
}

class Loop final : public ReducerLoop {
 public:
  Loop(Communicator& ranks, int64_t steps)
      : rank_(ranks.rank()), steps_(steps), data_(make_ddp_data(2 * steps * kDdpBatch)), optimizer_(net_->parameters(), optim::AdamWOptions(kDdpRate)), group_(make_group(ranks)),
        reducer_(make_reducer(net_->parameters(), group_)) {}

  void epoch() override {
    net_->train();
    double total = 0.0;
    for (int64_t step = 0; step < steps_; ++step) {
      const int64_t begin = (2 * step + rank_) * kDdpBatch;
      optimizer_.zero_grad();
      reducer_->prepare_for_forward();
      reducer_->rebuild_buckets();
      const at::Tensor loss = at::mse_loss(net_->forward(data_.inputs.narrow(0, begin, kDdpBatch)), data_.targets.narrow(0, begin, kDdpBatch));
      reducer_->prepare_for_backward({});
      loss.backward();
      optimizer_.step();
      total += loss.item<double>();
    }
    TORCH_CHECK(total > 0.0, "the loss came to nothing");
  }
  [[nodiscard]] std::vector<at::Tensor> parameters() const override { return net_->parameters(); }

 private:
  const int rank_;
  const int64_t steps_;
  const DdpData data_;
  torch::nn::Sequential net_ = make_ddp_net();
  optim::AdamW optimizer_;
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  std::shared_ptr<c10d::Reducer> reducer_;
};

}  // namespace

std::unique_ptr<ReducerLoop> make_reducer_loop(Communicator& ranks, int64_t steps) { return std::make_unique<Loop>(ranks, steps); }

}  // namespace marlin::bench
