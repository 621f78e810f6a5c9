#include "marlin/core/data/sampler.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/searchsorted.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "data/seeds.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw Error(Errc::kInvalidArgument, why); }

int64_t checked_size(int64_t num_samples) {
  if (num_samples < 1) refuse(concat("a data set must have at least one sample, this one has ", num_samples));
  return num_samples;
}

at::Generator generator_of(const OrderRequest& request) {
  return at::detail::createCPUGenerator(detail::mixed(request.seed, request.epoch));
}

at::Tensor checked_list(const at::Tensor& list, const char* what, at::ScalarType dtype) {
  if (!list.defined() || list.dim() != 1) {
    refuse(concat(what, " must be a tensor of one dimension, a value a sample, and ", list.defined() ? concat("has shape ", list.sizes()) : "is undefined"));
  }
  (void)checked_size(list.size(0));
  return list.detach().to(at::kCPU, dtype, /*non_blocking=*/false, /*copy=*/true).contiguous();
}

// How many weights are not 0.
int64_t num_possible(const double* weights, int64_t count) {
  int64_t possible = 0;
  double total = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!(weights[i] >= 0) || std::isinf(weights[i])) refuse(concat("weight ", i, " is ", weights[i], "; weights must be finite and at least 0"));
    possible += weights[i] > 0;
    total += weights[i];
  }
  if (possible == 0) refuse("all weights are 0: no sample can be drawn");
  if (std::isinf(total)) refuse("the weights are too large: their sum is infinite");
  return possible;
}

}  // namespace

Sampler::~Sampler() = default;

SequentialSampler::SequentialSampler(int64_t num_samples) : num_samples_(checked_size(num_samples)) {}
int64_t SequentialSampler::num_samples() const { return num_samples_; }
at::Tensor SequentialSampler::order(const OrderRequest&) const { return {}; }
std::string SequentialSampler::kind() const { return "sequential"; }

RandomSampler::RandomSampler(int64_t num_samples) : num_samples_(checked_size(num_samples)) {}
int64_t RandomSampler::num_samples() const { return num_samples_; }
at::Tensor RandomSampler::order(const OrderRequest& request) const { return at::randperm(num_samples_, generator_of(request), at::kLong); }
std::string RandomSampler::kind() const { return "random"; }

WeightedSampler::WeightedSampler(const at::Tensor& weights, int64_t num_samples, bool replacement)
    : weights_(checked_list(weights, "weights", at::kDouble)), num_samples_(num_samples) {
  if (num_samples < 1) refuse(concat("a weighted sampler must draw at least one sample an epoch, not ", num_samples));
  const int64_t count = weights_.size(0);
  const double* values = weights_.const_data_ptr<double>();
  const int64_t possible = num_possible(values, count);
  if (!replacement && num_samples > possible) {
    refuse(concat(num_samples, " samples cannot be drawn without replacement: only ", possible, " of ", count, " weights are not 0"));
  }
  last_possible_ = count - 1;
  while (values[last_possible_] == 0) --last_possible_;
  if (!replacement) return;
  cumulative_ = at::empty({count}, at::kDouble);
  std::partial_sum(values, values + count, cumulative_.mutable_data_ptr<double>());
}

int64_t WeightedSampler::num_samples() const { return num_samples_; }
std::string WeightedSampler::kind() const { return cumulative_.defined() ? "weighted" : "weighted_once"; }

at::Tensor WeightedSampler::order(const OrderRequest& request) const {
  const int64_t count = weights_.size(0);
  if (cumulative_.defined()) {
    const double total = cumulative_.const_data_ptr<double>()[count - 1];
    const at::Tensor points = at::rand({num_samples_}, generator_of(request), at::kDouble).mul_(total);
    // The first sum that is greater than the point: never that of a sample without weight, for it equals the one before.
    return at::searchsorted(cumulative_, points, /*out_int32=*/false, /*right=*/true).clamp_max_(last_possible_);
  }
  // The smallest of exponential variables with the weights as rates: Efraimidis and Spirakis, "Weighted random sampling", 2006.
  at::Tensor keys = at::rand({count}, generator_of(request), at::kDouble);
  double* key = keys.mutable_data_ptr<double>();
  const double* weight = weights_.const_data_ptr<double>();
  for (int64_t i = 0; i < count; ++i) {
    key[i] = weight[i] > 0 ? std::min(-std::log1p(-key[i]) / weight[i], std::numeric_limits<double>::max()) : std::numeric_limits<double>::infinity();
  }
  const auto ordered = keys.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  return std::get<1>(ordered).narrow(0, 0, num_samples_).clone();
}

BucketSampler::BucketSampler(const at::Tensor& lengths, int64_t batches_per_bucket) : batches_per_bucket_(batches_per_bucket) {
  if (batches_per_bucket < 1) refuse(concat("batches_per_bucket must be at least 1, got ", batches_per_bucket));
  if (lengths.defined() && !at::isIntegralType(lengths.scalar_type(), /*includeBool=*/false)) refuse(concat("lengths must be integers, and are ", lengths.scalar_type()));
  lengths_ = checked_list(lengths, "lengths", at::kLong);
}

int64_t BucketSampler::num_samples() const { return lengths_.size(0); }
std::string BucketSampler::kind() const { return "bucket"; }

at::Tensor BucketSampler::order(const OrderRequest& request) const {
  const int64_t count = lengths_.size(0);
  const int64_t batch_size = std::min(request.batch_size, count);
  const int64_t num_whole = count / batch_size;
  at::Generator generator = generator_of(request);
  at::Tensor sorted = at::randperm(count, generator, at::kLong);
  int64_t* samples = sorted.mutable_data_ptr<int64_t>();
  const int64_t* lengths = lengths_.const_data_ptr<int64_t>();
  const int64_t chunk = batch_size * std::min(batches_per_bucket_, num_whole + 1);
  for (int64_t begin = 0; begin < count; begin += chunk) {
    std::stable_sort(samples + begin, samples + std::min(begin + chunk, count), [&](int64_t a, int64_t b) { return lengths[a] < lengths[b]; });
  }
  const at::Tensor batches = at::randperm(num_whole, generator, at::kLong);
  const int64_t* from = batches.const_data_ptr<int64_t>();
  at::Tensor order = at::empty({count}, at::kLong);
  int64_t* into = order.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < num_whole; ++i) into = std::copy_n(samples + from[i] * batch_size, batch_size, into);
  std::copy(samples + num_whole * batch_size, samples + count, into);
  return order;
}

}  // namespace marlin
