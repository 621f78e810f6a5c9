#include "marlin/core/data/epoch_order.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/randperm.h>

#include <algorithm>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

uint64_t splitmix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Neighbouring seeds and epochs must not share orders, as seed + epoch would: (0, 1) and (1, 0).
uint64_t mixed(uint64_t seed, int64_t epoch) { return splitmix64(splitmix64(seed) ^ static_cast<uint64_t>(epoch)); }

int64_t entry(const StateDict& state, const char* name) {
  const Value* value = state.find(name);
  const int64_t* number = value != nullptr ? value->get_if<int64_t>() : nullptr;
  if (number != nullptr) return *number;
  throw Error(Errc::kMismatch, concat("loader position: '", name, "' must be an int, found ", value != nullptr ? value->kind() : "nothing"));
}

}  // namespace

EpochOrder::EpochOrder(int64_t num_samples, const LoaderRequest& request, bool shuffle, bool drop_last)
    : num_samples_(num_samples), request_(request), shuffle_(shuffle), drop_last_(drop_last) {
  if (num_samples < 1) throw Error(Errc::kInvalidArgument, concat("a data set must have at least one sample, this one has ", num_samples));
  if (request.batch_size < 1) throw Error(Errc::kInvalidArgument, concat("batch_size must be at least 1, got ", request.batch_size));
  if (request.world_size < 1 || request.rank < 0 || request.rank >= request.world_size) {
    throw Error(Errc::kInvalidArgument, concat("rank ", request.rank, " of ", request.world_size, " is out of range"));
  }
}

void EpochOrder::begin_epoch(int64_t epoch) {
  if (epoch != epoch_) permutation_.reset();
  epoch_ = epoch;
  position_ = 0;
}

std::optional<EpochOrder::Slice> EpochOrder::next() {
  const int64_t left = num_samples_ - position_;
  if (left == 0 || (drop_last_ && left < request_.batch_size)) return std::nullopt;
  const int64_t size = std::min(left, request_.batch_size);
  const int64_t share = size / request_.world_size;
  const int64_t longer = size % request_.world_size;  // the first so many ranks have one sample more
  const int64_t rank = request_.rank;
  Slice slice;
  slice.begin = position_ + rank * share + std::min(rank, longer);
  slice.end = slice.begin + share + (rank < longer ? 1 : 0);
  slice.num_global_samples = size;
  position_ += size;
  return slice;
}

at::Tensor EpochOrder::indices(int64_t begin, int64_t end) const {
  if (!shuffle_) return {};
  if (!permutation_.defined()) {
    // Drawn when first asked for: a loader that is moved to a position at once draws one order, not two.
    permutation_ = at::randperm(num_samples_, at::detail::createCPUGenerator(mixed(request_.seed, epoch_)), at::kLong);
  }
  return begin == 0 && end == num_samples_ ? permutation_ : permutation_.narrow(0, begin, end - begin);
}

StateDict EpochOrder::get_state() const {
  return {{"epoch", epoch_}, {"consumed_samples", position_}, {"num_samples", num_samples_}};
}

void EpochOrder::update_state(const StateDict& state) {
  const int64_t epoch = entry(state, "epoch");
  const int64_t consumed = entry(state, "consumed_samples");
  const int64_t samples = entry(state, "num_samples");
  if (samples != num_samples_) {
    throw Error(Errc::kMismatch, concat("loader position: it is of a data set of ", samples, " samples, this one has ", num_samples_));
  }
  if (epoch < 0 || consumed < 0 || consumed > num_samples_) {
    throw Error(Errc::kMismatch, concat("loader position: epoch ", epoch, ", sample ", consumed, " of ", num_samples_, " does not exist"));
  }
  begin_epoch(epoch);
  position_ = consumed;
}

}  // namespace marlin
