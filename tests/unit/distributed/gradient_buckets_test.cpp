#include "backends/gradient_buckets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>
#include <optional>
#include <thread>
#include <tuple>

#include "backends/replica_check.h"
#include "on_ranks.h"
#include "marlin/core/optim/fused.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StrEq;
using testing::on_ranks;
using testing::ThrowsError;

constexpr GradientBucketsOptions kOneEach = {.bucket_bytes = 1, .first_bucket_bytes = 1};
constexpr GradientBucketsOptions kHuge = {.bucket_bytes = int64_t{1} << 40, .first_bucket_bytes = int64_t{1} << 40};
const GradientBuckets::BeforeFirst kGo = {};

NamedTensors numbered(const std::vector<at::Tensor>& tensors) {
  NamedTensors result;
  for (const at::Tensor& tensor : tensors) result.emplace_back(std::to_string(result.size()), tensor);
  return result;
}

void expect_same_on_all_ranks(Communicator& ranks, const std::vector<at::Tensor>& tensors) { EXPECT_EQ(difference_between_ranks(ranks, numbered(tensors)), std::nullopt); }

at::Tensor parameter(at::IntArrayRef sizes, double value = 1.0, at::ScalarType type = at::kFloat) { return at::full(sizes, value, type).requires_grad_(); }

// One rank that is all ranks: it logs what it is to do, and fails when told to.
class OneRank final : public Communicator {
 public:
  std::vector<int64_t> sent;                 // elements of each all-reduce
  int waited = 0;
  int fail_send = -1, fail_wait = -1;        // the one that fails, from 0

  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] int world_size() const noexcept override { return 1; }
  [[nodiscard]] std::unique_ptr<Work> all_reduce(at::Tensor tensor) override {
    if (static_cast<int>(sent.size()) == fail_send) throw PeerLost("rank 7 is gone");
    sent.push_back(tensor.numel());
    return std::make_unique<OneWork>(*this);
  }
  void broadcast(at::Tensor, int) override {}
  [[nodiscard]] std::string broadcast_bytes(const std::string& bytes, int) override { return bytes; }
  [[nodiscard]] std::vector<std::string> gather_bytes(const std::string& bytes) override { return {bytes}; }
  void barrier() override {}
  void follow(int) override {}
  void fail(const std::string&) noexcept override {}

 private:
  struct OneWork final : Work {
    explicit OneWork(OneRank& owner) : rank(owner) {}
    void wait() override {
      if (rank.waited++ == rank.fail_wait) throw PeerLost("rank 8 is gone");
    }
    OneRank& rank;
  };
};

// What backward does when it comes by.
struct OnBackward : torch::autograd::Function<OnBackward> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input, const std::function<void()>* call) {
    context->saved_data["call"] = reinterpret_cast<int64_t>(call);
    return input.view_as(input);
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context, torch::autograd::tensor_list gradients) {
    (*reinterpret_cast<const std::function<void()>*>(context->saved_data["call"].toInt()))();
    return {gradients[0], at::Tensor()};
  }
};

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

class GradientBucketsTest : public ::testing::TestWithParam<int> {};

// Steps in float magnify what is rounded otherwise; in double nothing but a wrong sum would be seen.
TEST_P(GradientBucketsTest, FiftyStepsInDoubleEqualThoseOfOneProcessToTheLastDigits) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    for (const Method method : {Method::kSgd, Method::kAdamW}) {
      const Training how{.method = method, .buckets = kOneEach, .type = at::kDouble};
      EXPECT_LT(largest_difference(train(how, &ranks), train(how, nullptr)), 1e-13);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, GradientBucketsTest, ::testing::Values(1, 2, 3, 4));

// With two ranks a + b is b + a. With more, Gloo adds an element in an order that depends on where in the buffer it lies.
TEST_P(GradientBucketsTest, BucketSizesChangeRoundingAtMostAndForTwoRanksNothing) {
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

TEST_P(GradientBucketsTest, SumsAllTypesEachInBuffersOfItsOwn) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const std::vector<at::ScalarType> types = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf, at::kComplexFloat, at::kFloat, at::kBFloat16};
    std::vector<at::Tensor> parameters;
    for (size_t i = 0; i < types.size(); ++i) parameters.push_back(parameter({static_cast<int64_t>(3 * i + 1), 2}, 1.0, types[i]));
    GradientBuckets buckets(parameters, ranks);
    EXPECT_THAT(buckets.bucket_sizes(), SizeIs(5));
    for (int step = 0; step < 3; ++step) {
      at::Tensor loss = at::zeros({}, at::kDouble);
      for (const at::Tensor& one : parameters) {
        if (one.scalar_type() != at::kHalf || ranks.rank() == 0) loss = loss + at::real(one.is_complex() ? one : one.to(at::kDouble)).sum().to(at::kDouble) * (ranks.rank() + 1.0);
        if (step > 0) one.mutable_grad() = at::Tensor();
      }
      buckets.arm();
      loss.backward();
      ASSERT_TRUE(buckets.finish());
      const int world = ranks.world_size();
      for (const at::Tensor& one : parameters) {
        ASSERT_TRUE(one.grad().defined());
        EXPECT_EQ(one.grad().scalar_type(), one.scalar_type());
        EXPECT_TRUE(at::equal(one.grad(), at::full_like(one, one.scalar_type() == at::kHalf ? 1 : world * (world + 1) / 2))) << one.grad();
      }
    }
  });
}

// Were buckets sent as they fill up, ranks would here add buckets of different sizes, at which Gloo ends the process.
TEST_P(GradientBucketsTest, OrderOfBucketsIsThatOfParametersWhateverOrderGradientsArriveIn) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    std::vector<at::Tensor> parameters;
    for (int64_t i = 0; i < 12; ++i) parameters.push_back(parameter({10 * i + 1}));
    GradientBuckets buckets(parameters, ranks, kOneEach);
    for (int step = 0; step < 10; ++step) {
      at::Tensor loss = at::zeros({});
      for (size_t i = 0; i < parameters.size(); ++i) {
        const size_t place = (i * static_cast<size_t>(ranks.rank() % 2 == 0 ? 1 : 5) + static_cast<size_t>(step)) % parameters.size();
        loss = loss + parameters[place].sum() * static_cast<double>(place);
      }
      for (const at::Tensor& one : parameters) one.mutable_grad() = at::Tensor();
      buckets.arm();
      loss.backward();
      ASSERT_TRUE(buckets.finish());
      for (size_t i = 0; i < parameters.size(); ++i) EXPECT_TRUE(at::equal(parameters[i].grad(), at::full_like(parameters[i], static_cast<double>(i) * ranks.world_size())));
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

TEST_P(GradientBucketsTest, TwoOptimizersWithOverlappingParametersEqualOneProcess) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const std::vector<at::Tensor> here = train_two(&ranks), alone = train_two(nullptr);
    expect_same_on_all_ranks(ranks, here);
    for (size_t i = 0; i < here.size(); ++i) EXPECT_LT((here[i] - alone[i]).abs().max().item<double>(), 1e-6);
  });
}

TEST_P(GradientBucketsTest, GradientsThatArePutTogetherElsewhereKeepTheirParametersLayout) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const std::vector<at::Tensor> parameters = {at::ones({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_(), at::ones({3, 5}).t().detach().requires_grad_(),
                                                at::ones({4, 6}).slice(1, 0, 6, 2).detach().requires_grad_(), parameter({}), parameter({0, 3})};
    GradientBuckets buckets(parameters, ranks);
    at::Tensor loss = at::zeros({});
    std::vector<at::Tensor> factors;
    for (const at::Tensor& one : parameters) {
      factors.push_back(at::arange(one.numel(), at::kFloat).view(one.sizes()));
      loss = loss + (one * factors.back()).sum();
    }
    buckets.arm();
    loss.backward();
    ASSERT_TRUE(buckets.finish());
    for (size_t i = 0; i < parameters.size(); ++i) {
      EXPECT_TRUE(at::equal(parameters[i].grad(), factors[i] * ranks.world_size())) << i;
      EXPECT_TRUE(i == 2 || parameters[i].grad().strides() == parameters[i].strides()) << i;
    }
    parameters[0].mutable_grad() = factors[0].contiguous();  // laid out otherwise
    buckets.arm();
    ASSERT_TRUE(buckets.finish());
    EXPECT_TRUE(at::equal(parameters[0].grad(), factors[0] * ranks.world_size()));
    EXPECT_EQ(parameters[0].grad().strides(), parameters[0].strides());
  });
}

TEST_P(GradientBucketsTest, ARankWithoutSamplesAddsNothingNotEvenNaN) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const at::Tensor used = parameter({4}), unused = parameter({3});
    for (const bool set_to_none : {true, false}) {
      GradientBuckets buckets({used, unused}, ranks, kOneEach);
      const bool contributes = ranks.rank() == ranks.world_size() - 1;
      for (const at::Tensor& one : {used, unused}) one.mutable_grad() = set_to_none ? at::Tensor() : at::zeros_like(one);
      buckets.arm(contributes);
      (contributes ? (used * 3).sum() : at::empty({0}).mean() * (used.sum() + unused.sum()) * 0).backward();
      ASSERT_TRUE(buckets.finish());
      EXPECT_TRUE(at::equal(used.grad(), at::full({4}, 3.0F))) << used.grad();
      EXPECT_EQ(unused.grad().defined(), !set_to_none) << "the last rank has zeros for it, if any";
    }
  });
}

TEST_P(GradientBucketsTest, RanksThatAbandonAStepTogetherSendNothingAndGoOn) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const at::Tensor one = parameter({4}), two = parameter({3});
    GradientBuckets buckets({one, two}, ranks, kOneEach);
    for (int step = 0; step < 6; ++step) {
      one.mutable_grad() = two.mutable_grad() = at::Tensor();
      at::Tensor status = at::full({1}, step % 2 == 1 && ranks.rank() == 0 ? 1.0 : 0.0, at::kDouble);
      const auto sum = ranks.all_reduce(status);
      int asked = 0;
      buckets.arm(true, [&] {
        sum->wait();
        ++asked;
        return status.item<double>() == 0.0;
      });
      if (step < 4 || ranks.rank() > 0) ((one.sum() + two.sum()) * (ranks.rank() + 1.0)).backward();  // else a rank without any backward
      const double world = ranks.world_size(), total = world * (world + 1) / 2 - (step < 4 ? 0 : 1);
      EXPECT_EQ(buckets.finish(), step % 2 == 0);
      EXPECT_EQ(asked, 1);
      const bool abandoned = step % 2 == 1;
      const double expected = !abandoned ? total : step < 4 || ranks.rank() > 0 ? ranks.rank() + 1.0 : 0.0;  // or its own
      EXPECT_EQ(one.grad().defined(), expected > 0);
      EXPECT_TRUE(!one.grad().defined() || at::equal(one.grad(), at::full({4}, expected, at::kFloat))) << one.grad();
    }
  });
}

TEST_P(GradientBucketsTest, AfterAnExceptionInBackwardOnAllRanksWhereverTheyWereTheNextStepIsRight) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    std::vector<at::Tensor> chain;
    for (int i = 0; i < 6; ++i) chain.push_back(parameter({i + 1}, 2.0));
    GradientBuckets buckets(chain, ranks, kOneEach);
    const std::function<void()> bomb = [] { throw std::runtime_error("bomb"); };
    for (const bool asks : {false, true}) {
      for (int step = 0; step < 7; ++step) {
        for (const at::Tensor& one : chain) one.mutable_grad() = at::Tensor();
        const int at = step % 2 == 1 ? (ranks.rank() * 2 + step) % 6 : -1;  // a different place on each rank
        at::Tensor loss = at::ones({});
        for (int i = 0; i < 6; ++i) {
          loss = loss * chain[static_cast<size_t>(i)].sum();
          if (i == at) loss = OnBackward::apply(loss, &bomb);
        }
        buckets.arm(true, asks ? GradientBuckets::BeforeFirst([] { return true; }) : kGo);
        if (at >= 0) {
          EXPECT_THROW(loss.backward(), std::runtime_error);
          continue;
        }
        loss.backward();
        ASSERT_TRUE(buckets.finish());
        for (const at::Tensor& one : chain) {
          const double product = 2.0 * 4 * 6 * 8 * 10 * 12 / (2.0 * static_cast<double>(one.numel()));
          EXPECT_TRUE(at::allclose(one.grad(), at::full_like(one, product * ranks.world_size()))) << one.grad();
        }
      }
    }
  });
}

TEST_P(GradientBucketsTest, DestroyedInTheMiddleOfAStepItNeitherHangsNorLeavesHooks) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const at::Tensor one = parameter({4}), two = parameter({300});
    for (int i = 0; i < 20; ++i) {
      GradientBuckets buckets({one, two}, ranks, kOneEach);
      buckets.arm();
      two.sum().backward();  // its bucket is sent
    }
    (one.sum() + two.sum()).backward();
    GradientBuckets buckets({one, two}, ranks, kOneEach);
    one.mutable_grad() = two.mutable_grad() = at::Tensor();
    buckets.arm();
    (one.sum() + two.sum()).backward();
    ASSERT_TRUE(buckets.finish());
    EXPECT_TRUE(at::equal(two.grad(), at::full({300}, static_cast<float>(ranks.world_size()))));
  });
}

TEST(GradientBucketsRanksTest, ARankThatFailsInBackwardIsHeardOfByTheOthersInFinish) {
  on_ranks(3, [](Communicator& ranks) {
    const at::Tensor one = parameter({4}), two = parameter({3});
    const std::function<void()> bomb = [] { throw std::runtime_error("bomb"); };
    GradientBuckets buckets({one, two}, ranks, kOneEach);
    buckets.arm();
    at::Tensor loss = one.sum();
    if (ranks.rank() == 1) loss = OnBackward::apply(loss, &bomb);
    loss = loss * two.sum();
    if (ranks.rank() == 1) {
      EXPECT_THROW(loss.backward(), std::runtime_error);
      ranks.fail("bomb");
    } else {
      loss.backward();
      EXPECT_THAT([&] { static_cast<void>(buckets.finish()); }, ThrowsError(Errc::kTraining, HasSubstr("rank 1 failed: bomb")));
      EXPECT_THAT([&] { buckets.arm(); static_cast<void>(buckets.finish()); }, ThrowsError(Errc::kTraining, HasSubstr("rank 1 failed: bomb")));
    }
  });
}

TEST(GradientBucketsRanksTest, RanksThatTrainDifferentParametersAreToldSo) {
  on_ranks(3, [](Communicator& ranks) {
    const std::vector<at::Tensor> parameters = {parameter({2}), parameter({ranks.rank() == 2 ? 4 : 3})};
    EXPECT_THAT([&] { GradientBuckets(parameters, ranks); },
                ThrowsError(Errc::kMismatch, StrEq("ddp: ranks train different parameters; make model and optimizers alike on all of them, in the same order: rank 2 has "
                                                   "'parameter 1: Float [4]' where rank 0 has 'parameter 1: Float [3]'")));
  });
}

TEST_P(GradientBucketsTest, ParametersThatAreFrozenOrTakenInLaterMakeNewBuckets) {
  on_ranks(GetParam(), [](Communicator& ranks) {
    const at::Tensor one = parameter({4}), two = at::ones({300});
    GradientBuckets buckets({one, two}, ranks);
    const auto step = [&](bool whole) {
      one.mutable_grad() = two.mutable_grad() = at::Tensor();
      buckets.arm();
      (one.sum() + two.sum()).backward();
      ASSERT_TRUE(buckets.finish());
      EXPECT_EQ(one.grad().sum().item<int>(), 4 * ranks.world_size());
      EXPECT_EQ(two.grad().defined(), whole);
      EXPECT_TRUE(!whole || two.grad().sum().item<int>() == 300 * ranks.world_size());
    };
    step(false);
    const int64_t small = buckets.bucket_sizes().front();
    two.requires_grad_(true);
    step(true);
    EXPECT_GT(buckets.bucket_sizes().front(), small);
    two.requires_grad_(false);
    step(false);
    EXPECT_THAT(buckets.bucket_sizes(), ElementsAre(small));
  });
}

// What follows needs no second rank.

TEST(GradientBucketsOfOneTest, ABucketIsSentWhileBackwardStillRuns) {
  OneRank rank;
  const at::Tensor first = parameter({3}), last = parameter({3});
  GradientBuckets buckets({first, last}, rank, kOneEach);
  size_t sent_by_then = 0;
  const std::function<void()> look = [&] { sent_by_then = rank.sent.size(); };
  buckets.arm();
  (OnBackward::apply(first * 2, &look) * last).sum().backward();
  EXPECT_EQ(sent_by_then, 1U);
  EXPECT_THAT(rank.sent, ElementsAre(4, 4)) << "three gradients and one count each";
  EXPECT_TRUE(buckets.finish());
  EXPECT_EQ(rank.waited, 2);
}

// As on a GPU, where hooks run on a thread of autograd's.
TEST(GradientBucketsOfOneTest, BackwardMayRunOnAnotherThread) {
  OneRank rank;
  const at::Tensor one = parameter({3}), two = parameter({3});
  GradientBuckets buckets({one, two}, rank, kOneEach);
  for (int step = 0; step < 3; ++step) {
    one.mutable_grad() = two.mutable_grad() = at::Tensor();
    buckets.arm();
    std::thread([&] { (one.sum() + two.sum()).backward(); }).join();
    EXPECT_THAT(rank.sent, SizeIs(2 * (step + 1)));
    EXPECT_TRUE(buckets.finish());
    EXPECT_EQ(two.grad().sum().item<int>(), 3);
  }
}

TEST(GradientBucketsOfOneTest, LeavesNoHookBehindInAGraphThatOutlivesIt) {
  OneRank rank;
  const at::Tensor one = parameter({3});
  const at::Tensor loss = one.sum();
  const auto node = torch::autograd::impl::grad_accumulator(one);
  for (int i = 0; i < 2; ++i) {
    const GradientBuckets here({one}, rank), there({one}, rank);
    EXPECT_THAT(node->post_hooks(), SizeIs(2));
  }
  EXPECT_THAT(node->post_hooks(), SizeIs(0));
  loss.backward();
}

TEST(GradientBucketsOfOneTest, WithoutOverlapAllIsSentInTheEnd) {
  OneRank rank;
  const at::Tensor one = parameter({3});
  GradientBuckets buckets({one}, rank, {.overlap = false});
  buckets.arm();
  one.sum().backward();
  one.sum().backward();  // and backward may run as often as one likes
  EXPECT_THAT(rank.sent, SizeIs(0));
  EXPECT_TRUE(buckets.finish());
  EXPECT_THAT(rank.sent, SizeIs(1));
  EXPECT_EQ(one.grad().sum().item<int>(), 6);
}

TEST(GradientBucketsOfOneTest, MicroBatchesThatDoNotCloseAStepSendNothing) {
  OneRank rank;
  const at::Tensor one = parameter({3}), two = parameter({3});
  GradientBuckets buckets({one, two}, rank, kOneEach);
  (one.sum() + two.sum()).backward();
  EXPECT_THAT(rank.sent, SizeIs(0));
  buckets.arm();
  two.sum().backward();  // the closing one does not use `one`
  EXPECT_TRUE(buckets.finish());
  EXPECT_EQ(one.grad().sum().item<int>(), 3);
  EXPECT_EQ(two.grad().sum().item<int>(), 6);
}

TEST(GradientBucketsOfOneTest, BucketsFillUpFromTheLastParameterByType) {
  OneRank rank;
  std::vector<at::Tensor> parameters;
  for (int i = 0; i < 4; ++i) {
    parameters.push_back(parameter({16}));                     // 64 bytes
    parameters.push_back(parameter({16}, 1.0, at::kDouble));   // 128 bytes
  }
  const GradientBuckets buckets(parameters, rank, {.bucket_bytes = 256, .first_bucket_bytes = 128});
  // Double 7; double 5 and 3; float 6, 4, 2, 0; double 1.
  EXPECT_THAT(buckets.bucket_sizes(), ElementsAre(128 + 8, 256 + 16, 128 + 8, 256 + 16)) << "the second last parameter is complete before the last";
  const GradientBuckets all(parameters, rank, kHuge);
  EXPECT_THAT(all.bucket_sizes(), SizeIs(2));
  EXPECT_THAT(GradientBuckets({}, rank).bucket_sizes(), SizeIs(0));
}

TEST(GradientBucketsOfOneTest, GradientsAreViewsOfTheSameBuffersStepAfterStepAndCopiedAtMostOnce) {
  OneRank rank;
  const at::Tensor one = parameter({3, 2});
  torch::optim::SGD optimizer({one}, 0.0);
  GradientBuckets buckets({one}, rank);
  const void* place = nullptr;
  for (const bool set_to_none : {true, true, false, false, true, false}) {
    if (place != nullptr) optimizer.zero_grad(set_to_none);
    buckets.arm();
    one.sum().backward();
    EXPECT_TRUE(place == nullptr || set_to_none || one.grad().const_data_ptr() == place) << "it is added to where it lies";
    ASSERT_TRUE(buckets.finish());
    EXPECT_TRUE(place == nullptr || one.grad().const_data_ptr() == place);
    place = one.grad().const_data_ptr();
    EXPECT_EQ(one.grad().sum().item<int>(), 6);
    EXPECT_FALSE(one.grad().is_view()) << "autograd would not let zero_grad() detach it";
  }
}

TEST(GradientBucketsOfOneTest, GradientsThatWereMovedWithinABufferAreTakenAsTheyAre) {
  OneRank rank;
  const at::Tensor one = parameter({2, 2}), two = parameter({2, 2});
  GradientBuckets buckets({one, two}, rank);
  const at::Tensor factors = at::arange(4, at::kFloat).view({2, 2});
  buckets.arm();
  ((one + two) * factors).sum().backward();
  EXPECT_TRUE(buckets.finish());
  std::swap(one.mutable_grad(), two.mutable_grad());
  one.mutable_grad() = one.grad().t();
  buckets.arm();
  (two * 10).sum().backward();
  EXPECT_TRUE(buckets.finish());
  EXPECT_TRUE(at::equal(one.grad(), factors.t())) << one.grad();
  EXPECT_TRUE(at::equal(two.grad(), factors + 10)) << two.grad();
}

TEST(GradientBucketsOfOneTest, AParameterThatIsGivenTwiceCountsOnce) {
  OneRank rank;
  const at::Tensor shared = parameter({4}), other = parameter({4});
  GradientBuckets buckets({shared, other, shared}, rank, kOneEach);
  EXPECT_THAT(buckets.bucket_sizes(), ElementsAre(20, 20)) << "four gradients and a count each";
  size_t sent_by_then = 0;
  const std::function<void()> look = [&] { sent_by_then = rank.sent.size(); };
  buckets.arm();
  (OnBackward::apply(shared * 2, &look) * other).sum().backward();
  EXPECT_EQ(sent_by_then, 1U) << "it stands where it was first given: its gradient is complete late";
  EXPECT_TRUE(buckets.finish());
}

TEST(GradientBucketsOfOneTest, IsAskedOnceBeforeTheFirstBucketAndAlsoIfThereIsNone) {
  OneRank rank;
  const at::Tensor one = parameter({3}), two = parameter({3});
  GradientBuckets buckets({one, two}, rank, kOneEach), none({}, rank);
  for (GradientBuckets* each : {&buckets, &none}) {
    std::vector<size_t> sent;
    rank.sent.clear();
    each->arm(true, [&] {
      sent.push_back(rank.sent.size());
      return true;
    });
    if (each == &buckets) (one.sum() + two.sum()).backward();
    EXPECT_TRUE(each->finish());
    EXPECT_THAT(sent, ElementsAre(0));
  }
  none.arm(true, [] { return false; });
  EXPECT_FALSE(none.finish());
}

TEST(GradientBucketsOfOneTest, WhatIsThrownWhileBackwardRunsLeavesItWholeAndComesOutOfFinish) {
  const at::Tensor one = parameter({3}), two = parameter({3}), three = parameter({3});
  for (int failing = 0; failing < 7; ++failing) {
    OneRank rank;
    GradientBuckets buckets({one, two, three}, rank, kOneEach);
    if (failing < 3) rank.fail_send = failing;
    if (failing >= 3 && failing < 6) rank.fail_wait = failing - 3;
    one.mutable_grad() = two.mutable_grad() = three.mutable_grad() = at::Tensor();
    buckets.arm(true, failing < 6 ? kGo : GradientBuckets::BeforeFirst([]() -> bool { throw PeerLost("rank 9 is gone"); }));
    EXPECT_NO_THROW((one.sum() + two.sum() + three.sum()).backward());
    EXPECT_THROW(static_cast<void>(buckets.finish()), PeerLost);
    EXPECT_EQ(rank.waited, static_cast<int>(rank.sent.size())) << "nothing is under way";
    EXPECT_THAT([&] { static_cast<void>(buckets.finish()); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("finish() without arm()")));

    rank.fail_send = rank.fail_wait = -1;
    for (const at::Tensor& each : {one, two, three}) each.mutable_grad() = at::Tensor();
    buckets.arm();
    (one.sum() + two.sum() + three.sum()).backward();
    EXPECT_TRUE(buckets.finish());
    EXPECT_EQ(one.grad().sum().item<int>() + two.grad().sum().item<int>() + three.grad().sum().item<int>(), 9);
  }
}

TEST(GradientBucketsOfOneTest, SparseGradientsAreRefusedByTheirParameter) {
  OneRank rank;
  const at::Tensor dense = parameter({3}), table = parameter({5, 2});
  GradientBuckets buckets({dense, table}, rank);
  buckets.arm();
  EXPECT_NO_THROW((at::embedding(table, at::arange(2), -1, false, /*sparse=*/true).sum() + dense.sum()).backward());
  EXPECT_THAT([&] { static_cast<void>(buckets.finish()); },
              ThrowsError(Errc::kUnsupported, StrEq("ddp: the gradient of parameter 1 (Float [5, 2]) is sparse, which cannot be summed over ranks: make its layer with sparse=false")));
  EXPECT_THAT(rank.sent, SizeIs(0));
}

TEST(GradientBucketsOfOneTest, ASecondBackwardAfterABucketWasSentIsAnError) {
  OneRank rank;
  const at::Tensor one = parameter({3}), two = parameter({3});
  GradientBuckets buckets({one, two}, rank, kOneEach);
  buckets.arm();
  two.sum().backward();
  EXPECT_NO_THROW(two.sum().backward());
  EXPECT_THAT([&] { static_cast<void>(buckets.finish()); }, ThrowsError(Errc::kUnsupported, HasSubstr("the gradient of parameter 1 (Float [3]) was changed after it had been sent")));
}

TEST(GradientBucketsOfOneTest, SumsHaveNoGraph) {
  OneRank rank;
  const at::Tensor one = parameter({3}, 2.0);
  GradientBuckets buckets({one}, rank);
  buckets.arm();
  (one * one * one).sum().backward({}, /*retain_graph=*/true, /*create_graph=*/true);
  EXPECT_TRUE(buckets.finish());
  EXPECT_TRUE(at::equal(one.grad(), at::full({3}, 12.0F)));
  EXPECT_FALSE(one.grad().requires_grad());
}

// Backward comes by a parameter without a gradient for it: nothing has to wait for it.
TEST(GradientBucketsOfOneTest, GradientsThatBackwardLeavesUndefinedHaveArrived) {
  struct NoGradient : torch::autograd::Function<NoGradient> {
    static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& input, const at::Tensor&) { return input.clone(); }
    static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*, torch::autograd::tensor_list gradients) { return {gradients[0], at::Tensor()}; }
  };
  OneRank rank;
  const at::Tensor one = parameter({3}), touched = parameter({3});
  GradientBuckets buckets({one, touched}, rank, kOneEach);
  buckets.arm();
  NoGradient::apply(one, touched).sum().backward();
  EXPECT_THAT(rank.sent, SizeIs(2)) << "before finish()";
  EXPECT_TRUE(buckets.finish());
  EXPECT_TRUE(one.grad().defined());
  EXPECT_FALSE(touched.grad().defined());
}

TEST(GradientBucketsOfOneTest, WhatIsNoParameterIsRefusedByItsPlace) {
  OneRank rank;
  const at::Tensor one = parameter({3});
  EXPECT_THAT([&] { GradientBuckets({one, at::Tensor()}, rank); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("parameter 1 is undefined")));
  EXPECT_THAT([&] { GradientBuckets({one * 2}, rank); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("parameter 0 is computed from other tensors")));
}

}  // namespace
}  // namespace marlin
