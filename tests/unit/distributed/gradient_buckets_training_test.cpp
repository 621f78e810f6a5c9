// Promise: training with summed gradients is the training of one process.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <iostream>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "backends/replica_check.h"
#include "gradient_buckets_support.h"
#include "marlin/core/optim/fused.h"
#include "on_ranks.h"

namespace marlin {
namespace {

using testing::kHuge;
using testing::kOneEach;
using testing::on_ranks;

NamedTensors numbered(const std::vector<at::Tensor>& tensors) {
  NamedTensors result;
  for (const at::Tensor& tensor : tensors) result.emplace_back(std::to_string(result.size()), tensor);
  return result;
}

void expect_same_on_all_ranks(Communicator& ranks, const std::vector<at::Tensor>& tensors) { EXPECT_EQ(difference_between_ranks(ranks, numbered(tensors)), std::nullopt); }

// A small model with all that is awkward: a weight that is used twice, a parameter that one rank uses now and then, one that none uses.
struct Net {
  at::Tensor weight0, bias0, shared, weight1, bias1, spare, never;
  explicit Net(at::ScalarType type = at::kFloat) {
    auto generator = at::detail::createCPUGenerator(5);
    const auto make = [&](at::IntArrayRef sizes) { return (at::randn(sizes, generator) * 0.3).to(type).requires_grad_(); };
    weight0 = make({16, 10});
    bias0 = make({16});
    shared = make({16, 16});
    weight1 = make({1, 16});
    bias1 = make({1});
    spare = make({10});
    never = make({7});
  }
  [[nodiscard]] std::vector<at::Tensor> parameters() const { return {weight0, bias0, shared, weight1, bias1, spare, never}; }
  [[nodiscard]] std::vector<at::Tensor> parameters_as_registered() const { return {weight0, bias0, shared, shared, weight1, bias1, spare, never, weight0}; }
  [[nodiscard]] at::Tensor loss(const at::Tensor& x, const at::Tensor& y) const {
    at::Tensor hidden = at::relu(at::linear(x, weight0, bias0));
    for (int i = 0; i < 2; ++i) hidden = at::tanh(at::linear(hidden, shared));
    return at::mse_loss(at::linear(hidden, weight1, bias1), y);
  }
};

enum class Method : uint8_t { kSgd, kAdamW };

struct Training {
  Method method = Method::kSgd;
  bool set_to_none = true;
  GradientBucketsOptions buckets;
  at::ScalarType type = at::kFloat;
};

std::shared_ptr<torch::optim::Optimizer> make_optimizer(Method method, std::vector<at::Tensor> parameters) {
  if (method == Method::kSgd) return std::make_shared<optim::SGD>(std::move(parameters), optim::SGDOptions(0.02).momentum(0.9));
  return std::make_shared<optim::AdamW>(std::move(parameters), optim::AdamWOptions(0.01).weight_decay(0.1));
}

// Batches of 11 and, each fifth, of 2, of which each rank has a slice, cut into two micro-batches. `ranks` null: one process, whole batches.
Net train(const Training& how, Communicator* ranks) {
  auto generator = at::detail::createCPUGenerator(6);
  const at::Tensor inputs = at::randn({46, 10}, generator).to(how.type), targets = at::randn({46, 1}, generator).to(how.type);
  Net net(how.type);
  const auto optimizer = make_optimizer(how.method, net.parameters());
  std::optional<GradientBuckets> buckets;
  if (ranks != nullptr) buckets.emplace(net.parameters_as_registered(), *ranks, how.buckets);
  const int64_t rank = ranks != nullptr ? ranks->rank() : 0, world = ranks != nullptr ? ranks->world_size() : 1;
  for (int64_t step = 0; step < 50; ++step) {
    const int64_t begin = step % 5 * 11, size = step % 5 == 4 ? 2 : 11, from = size * rank / world, to = size * (rank + 1) / world;
    optimizer->zero_grad(how.set_to_none);
    const int64_t middle = ranks != nullptr && to - from > 1 ? (from + to) / 2 : to;  // the second micro-batch closes the step
    for (const auto& [low, high] : {std::pair{from, middle}, std::pair{middle, to}}) {
      if (low == high) continue;
      at::Tensor loss = net.loss(inputs.slice(0, begin + low, begin + high), targets.slice(0, begin + low, begin + high));
      loss = loss * (static_cast<double>(high - low) / static_cast<double>(size));
      if (low == 0 && step % 2 == 1) loss = loss + 0.01 * net.spare.square().sum();
      if (buckets && high == to) buckets->arm();
      loss.backward();
    }
    if (buckets) {
      if (from == to) buckets->arm(/*contribute=*/false);
      EXPECT_TRUE(buckets->finish());
      if (step % 10 == 9) expect_same_on_all_ranks(*ranks, {net.weight0.grad(), net.shared.grad(), net.bias1.grad(), net.spare.grad()});
    }
    EXPECT_FALSE(net.never.grad().defined()) << "no rank uses it";
    EXPECT_TRUE(!how.set_to_none || net.spare.grad().defined() == (step % 2 == 1)) << "all ranks have what one uses";
    optimizer->step();
  }
  return net;
}

double largest_difference(const Net& a, const Net& b) {
  const torch::NoGradGuard no_grad;
  double result = 0.0;
  for (size_t i = 0; i < a.parameters().size(); ++i) result = std::max(result, (a.parameters()[i] - b.parameters()[i]).abs().max().item<double>());
  return result;
}

class GradientBucketsTraining : public ::testing::TestWithParam<std::tuple<int, Method, bool, bool>> {};
INSTANTIATE_TEST_SUITE_P(Ranks, GradientBucketsTraining,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4), ::testing::Values(Method::kSgd, Method::kAdamW), ::testing::Bool(), ::testing::Bool()),
                         [](const auto& info) {
                           return concat(std::get<0>(info.param), std::get<1>(info.param) == Method::kSgd ? "Sgd" : "AdamW", std::get<2>(info.param) ? "None" : "Zero",
                                         std::get<3>(info.param) ? "Overlap" : "AtTheEnd");
                         });

TEST_P(GradientBucketsTraining, FiftyStepsEqualThoseOfOneProcess) {
  const auto [world_size, method, set_to_none, overlap] = GetParam();
  const Training how{.method = method, .set_to_none = set_to_none, .buckets = {.bucket_bytes = 512, .first_bucket_bytes = 64, .overlap = overlap}};
  on_ranks(world_size, [&](Communicator& ranks) {
    const Net net = train(how, &ranks);
    expect_same_on_all_ranks(ranks, net.parameters());
    const double difference = largest_difference(net, train(how, nullptr));
    EXPECT_LT(difference, 1e-6);
    if (ranks.rank() == 0) std::cout << "largest difference " << difference << "\n";
    EXPECT_TRUE(at::equal(net.never, Net().never));
  });
}

class GradientBucketsStepsTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, GradientBucketsStepsTest, ::testing::Values(1, 2, 3, 4));

// Steps in float magnify what is rounded otherwise; in double nothing but a wrong sum would be seen.
TEST_P(GradientBucketsStepsTest, FiftyStepsInDoubleEqualThoseOfOneProcessToTheLastDigits) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    for (const Method method : {Method::kSgd, Method::kAdamW}) {
      const Training how{.method = method, .buckets = kOneEach, .type = at::kDouble};
      EXPECT_LT(largest_difference(train(how, &ranks), train(how, nullptr)), 1e-13);
    }
  });
}

// With two ranks a + b is b + a. With more, Gloo adds an element in an order that depends on where in the buffer it lies.
TEST_P(GradientBucketsStepsTest, BucketSizesChangeRoundingAtMostAndForTwoRanksNothing) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const Net one_each = train({.buckets = kOneEach}, &ranks);
    for (const auto& options : {GradientBucketsOptions{.bucket_bytes = 1024, .first_bucket_bytes = 1024}, kHuge}) {
      const Net net = train({.buckets = options}, &ranks);
      const double difference = largest_difference(net, one_each);
      EXPECT_LE(difference, ranks.world_size() <= 2 ? 0.0 : 1e-6);
      if (ranks.rank() == 0) std::cout << ranks.world_size() << " ranks, buckets of " << options.bucket_bytes << " bytes against 1: largest difference " << difference << "\n";
    }
  });
}

// Two optimizers, backward by the inputs of one of them, a parameter that both move.
std::vector<at::Tensor> train_two(Communicator* ranks) {
  auto generator = at::detail::createCPUGenerator(8);
  const auto make = [&](at::IntArrayRef sizes) { return (at::randn(sizes, generator) * 0.3).requires_grad_(); };
  const at::Tensor generate = make({6, 4}), judge = make({1, 6}), both = make({6}), x = at::randn({9, 4}, generator);
  const std::vector<std::vector<at::Tensor>> parameters = {{judge, both}, {generate, both}};
  std::vector<std::shared_ptr<torch::optim::Optimizer>> optimizers;
  std::vector<std::unique_ptr<GradientBuckets>> buckets;
  for (const auto& some : parameters) {
    optimizers.push_back(make_optimizer(Method::kAdamW, some));
    if (ranks != nullptr) buckets.push_back(std::make_unique<GradientBuckets>(some, *ranks, kOneEach));
  }
  const int64_t rank = ranks != nullptr ? ranks->rank() : 0, world = ranks != nullptr ? ranks->world_size() : 1;
  const int64_t from = 9 * rank / world, to = 9 * (rank + 1) / world;
  for (int step = 0; step < 20; ++step) {
    for (size_t i = 0; i < 2; ++i) {
      optimizers[i]->zero_grad();
      const at::Tensor made = at::tanh(at::linear(x.slice(0, from, to), generate) + both);
      const at::Tensor score = at::linear(made, judge);
      const at::Tensor loss = (i == 0 ? (score - 1).square().mean() : score.square().mean()) * (static_cast<double>(to - from) / 9.0);
      if (ranks != nullptr) buckets[i]->arm();
      loss.backward({}, /*retain_graph=*/false, /*create_graph=*/false, parameters[i]);
      EXPECT_TRUE(ranks == nullptr || buckets[i]->finish());
      optimizers[i]->step();
    }
  }
  return {generate, judge, both};
}

TEST_P(GradientBucketsStepsTest, TwoOptimizersWithOverlappingParametersEqualOneProcess) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const std::vector<at::Tensor> here = train_two(&ranks), alone = train_two(nullptr);
    expect_same_on_all_ranks(ranks, here);
    for (size_t i = 0; i < here.size(); ++i) EXPECT_LT((here[i] - alone[i]).abs().max().item<double>(), 1e-6);
  });
}

}  // namespace
}  // namespace marlin
