#include "marlin/core/data/epoch_order.h"

#include <ATen/ops/aminmax.h>

#include <algorithm>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

std::shared_ptr<const Sampler> usual_sampler(int64_t num_samples, bool shuffle) {
  if (shuffle) return std::make_shared<RandomSampler>(num_samples);
  return std::make_shared<SequentialSampler>(num_samples);
}

template <class T>
const T* optional_entry(const StateDict& state, const char* name) {
  const Value* value = state.find(name);
  return value != nullptr ? value->get_if<T>() : nullptr;
}

int64_t entry(const StateDict& state, const char* name) {
  const Value* value = state.find(name);
  const int64_t* number = value != nullptr ? value->get_if<int64_t>() : nullptr;
  if (number != nullptr) return *number;
  throw Error(Errc::kMismatch, concat("loader position: '", name, "' must be an int, found ", value != nullptr ? value->kind() : "nothing"));
}

at::Tensor checked_order(at::Tensor order, const Sampler& sampler, int64_t num_samples, int64_t dataset_samples) {
  const auto refuse = [&](const auto&... what) { throw Error(Errc::kInvalidArgument, concat("sampler '", sampler.kind(), "': ", what...)); };
  if (!order.defined()) {
    if (num_samples > dataset_samples) refuse("its order ends at sample ", num_samples - 1, ", but the data set has ", dataset_samples);
    return order;
  }
  if (order.dim() != 1 || order.size(0) != num_samples || order.scalar_type() != at::kLong || !order.device().is_cpu()) {
    refuse("its order must be int64 [", num_samples, "] on the CPU, and is ", order.scalar_type(), " ", order.sizes(), " on ", order.device());
  }
  const auto [least, greatest] = at::aminmax(order);
  if (least.item<int64_t>() < 0) refuse("its order holds sample ", least.item<int64_t>());
  if (greatest.item<int64_t>() >= dataset_samples) refuse("its order holds sample ", greatest.item<int64_t>(), ", but the data set has ", dataset_samples);
  return order.contiguous();
}

}  // namespace

Range rank_slice(int64_t num_global_samples, int rank, int world_size) {
  const int64_t share = num_global_samples / world_size;
  const int64_t longer = num_global_samples % world_size;  // the first so many ranks have one sample more
  const int64_t begin = rank * share + std::min<int64_t>(rank, longer);
  return {begin, begin + share + (rank < longer ? 1 : 0)};
}

void check_request(const LoaderRequest& request) {
  if (request.batch_size < 1) throw Error(Errc::kInvalidArgument, concat("batch_size must be at least 1, got ", request.batch_size));
  if (request.world_size < 1 || request.rank < 0 || request.rank >= request.world_size) {
    throw Error(Errc::kInvalidArgument, concat("rank ", request.rank, " of ", request.world_size, " is out of range"));
  }
}

std::shared_ptr<const Sampler> detail::chosen_sampler(int64_t dataset_samples, const LoaderRequest& request, std::optional<bool> shuffle,
                                                      std::shared_ptr<const Sampler> sampler) {
  if (!sampler) return usual_sampler(dataset_samples, shuffle.value_or(request.stage == Stage::kTrain));
  if (shuffle) throw Error(Errc::kInvalidArgument, "a loader takes shuffle or a sampler, not both: the sampler decides the order");
  return sampler;
}

EpochOrder::EpochOrder(int64_t num_samples, const LoaderRequest& request, bool shuffle, bool drop_last)
    : EpochOrder(num_samples, request, usual_sampler(num_samples, shuffle), drop_last) {}

EpochOrder::EpochOrder(int64_t dataset_samples, const LoaderRequest& request, std::shared_ptr<const Sampler> sampler, bool drop_last, Fingerprint fingerprint)
    : dataset_samples_(dataset_samples), request_(request), sampler_(std::move(sampler)), drop_last_(drop_last), make_fingerprint_(std::move(fingerprint)), made_for_(own_order(0)) {
  if (!sampler_) throw Error(Errc::kInvalidArgument, "an order needs a sampler, this one is null");
  if (dataset_samples < 1) throw Error(Errc::kInvalidArgument, concat("a data set must have at least one sample, this one has ", dataset_samples));
  num_samples_ = sampler_->num_samples();
  if (num_samples_ < 1) throw Error(Errc::kInvalidArgument, concat("sampler '", sampler_->kind(), "': an epoch must have at least one sample, this one has ", num_samples_));
  check_request(request);
}

void EpochOrder::make_for(const OrderRequest& order) {
  if (order.epoch != made_for_.epoch || order.seed != made_for_.seed || order.batch_size != made_for_.batch_size) order_.reset();
  made_for_ = order;
}

void EpochOrder::begin_epoch(int64_t epoch) {
  make_for(own_order(epoch));
  position_ = 0;
}

std::optional<EpochOrder::Slice> EpochOrder::next() {
  const int64_t left = num_samples_ - position_;
  if (left == 0 || (drop_last_ && left < request_.batch_size)) return std::nullopt;
  const int64_t size = std::min(left, request_.batch_size);
  const Range own = rank_slice(size, request_.rank, request_.world_size);
  const Slice slice{position_ + own.begin, position_ + own.end, size};
  position_ += size;
  return slice;
}

at::Tensor EpochOrder::indices(int64_t begin, int64_t end) const {
  // Drawn when first asked for: a loader that is moved to a position at once draws one order, not two.
  if (!order_) order_ = checked_order(sampler_->order(made_for_), *sampler_, num_samples_, dataset_samples_);
  if (!order_->defined() || (begin == 0 && end == num_samples_)) return *order_;
  return order_->narrow(0, begin, end - begin);
}

const std::string& EpochOrder::fingerprint() const {
  if (!fingerprint_) {
    fingerprint_ = make_fingerprint_ ? make_fingerprint_() : std::string();
    make_fingerprint_ = {};
  }
  return *fingerprint_;
}

StateDict EpochOrder::get_state() const {
  StateDict state{{"epoch", made_for_.epoch},
                  {"consumed_samples", position_},
                  {"num_samples", num_samples_},
                  {"seed", static_cast<int64_t>(made_for_.seed)},
                  {"sampler", sampler_->kind()},
                  {"order_batch_size", made_for_.batch_size},
                  {"dataset_samples", dataset_samples_}};
  if (!fingerprint().empty()) state.set("fingerprint", fingerprint());
  return state;
}

std::vector<std::string> EpochOrder::differences(const StateDict& state) const {
  std::vector<std::string> found;
  const auto* samples = optional_entry<int64_t>(state, "num_samples");
  const auto* dataset_samples = optional_entry<int64_t>(state, "dataset_samples");
  const bool other_length = samples != nullptr && *samples != num_samples_;
  const bool other_data = dataset_samples != nullptr && *dataset_samples != dataset_samples_;
  if (other_length) found.push_back(concat("data set: ", *samples, " samples an epoch in the file, ", num_samples_, " in this run"));
  if (other_data && !(other_length && *samples == *dataset_samples && num_samples_ == dataset_samples_)) {
    found.push_back(concat("data set: ", *dataset_samples, " samples to choose from in the file, ", dataset_samples_, " in this run"));
  }
  const auto* theirs = optional_entry<std::string>(state, "fingerprint");
  if (found.empty() && theirs != nullptr && !fingerprint().empty() && *theirs != fingerprint()) {
    found.push_back(concat("data set: other samples, fingerprint ", *theirs, " in the file, ", fingerprint(), " in this run"));
  }
  return found;
}

void EpochOrder::update_state(const StateDict& state) {
  const int64_t epoch = entry(state, "epoch");
  const int64_t consumed = entry(state, "consumed_samples");
  (void)entry(state, "num_samples");
  if (const std::vector<std::string> found = differences(state); !found.empty()) throw Error(Errc::kMismatch, join(found, "; "));
  const auto* kind = optional_entry<std::string>(state, "sampler");
  if (kind != nullptr && *kind != sampler_->kind()) {
    throw Error(Errc::kMismatch, concat("loader position: it is in the order of a sampler '", *kind, "', this run has '", sampler_->kind(), "'"));
  }
  if (epoch < 0 || consumed < 0 || consumed > num_samples_) {
    throw Error(Errc::kMismatch, concat("loader position: epoch ", epoch, ", sample ", consumed, " of ", num_samples_, " does not exist"));
  }
  OrderRequest saved = own_order(epoch);
  if (const auto* seed = optional_entry<int64_t>(state, "seed")) saved.seed = static_cast<uint64_t>(*seed);
  if (const auto* size = optional_entry<int64_t>(state, "order_batch_size"); size != nullptr && *size >= 1) saved.batch_size = *size;
  make_for(saved);
  position_ = consumed;
}

}  // namespace marlin
