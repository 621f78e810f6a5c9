#include "backends/gradient_buckets.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/real.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "backends/replica_check.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

constexpr int64_t kAlignment = 64;  // bytes: gradients begin where vector instructions like it

// A hook of the node that accumulates a parameter's gradient. Unlike a parameter's own (post_acc_grad_hooks) there may be many, and it is
// also called when backward comes by without a gradient.
class ArrivalHook final : public torch::autograd::FunctionPostHook {
 public:
  explicit ArrivalHook(std::function<void()> arrive) : arrive_(std::move(arrive)) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs, const torch::autograd::variable_list&) override {
    arrive_();
    return outputs;
  }

 private:
  std::function<void()> arrive_;
};

// Where the gradient of a parameter lies in a buffer: laid out as the parameter is, which is what optimizers want.
at::Tensor view_for(const at::Tensor& parameter, const at::Tensor& buffer, int64_t offset) {
  if (parameter.is_non_overlapping_and_dense()) return buffer.as_strided(parameter.sizes(), parameter.strides(), offset);
  return buffer.narrow(0, offset, parameter.numel()).view(parameter.sizes());
}

}  // namespace

GradientBuckets::GradientBuckets(std::vector<at::Tensor> parameters, Communicator& communicator, const GradientBucketsOptions& options)
    : parameters_(std::move(parameters)), communicator_(communicator), options_(options) {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (!parameters_[i].defined()) throw Error(Errc::kInvalidArgument, concat("ddp: parameter ", i, " is undefined"));
    if (!parameters_[i].is_leaf()) throw Error(Errc::kInvalidArgument, concat("ddp: parameter ", i, " is computed from other tensors: give those to the optimizer"));
  }
  build();
}

GradientBuckets::~GradientBuckets() { remove_hooks(); }

std::vector<bool> GradientBuckets::trained() const {
  std::vector<bool> result;
  result.reserve(parameters_.size());
  for (const at::Tensor& parameter : parameters_) result.push_back(parameter.requires_grad());
  return result;
}

// Changes nothing if it throws.
void GradientBuckets::build() {
  std::vector<bool> trained_now = trained();
  std::vector<size_t> places;
  std::vector<std::string> lines;
  std::unordered_set<const at::TensorImpl*> seen;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (!trained_now[i] || !seen.insert(parameters_[i].unsafeGetTensorImpl()).second) continue;
    places.push_back(i);
    lines.push_back(concat("parameter ", i, ": ", describe(parameters_[i])));
  }
  // Gloo ends a process that gets more bytes than it expects.
  require_same_on_all_ranks(communicator_, lines, "ranks train different parameters; make model and optimizers alike on all of them, in the same order");

  std::reverse(places.begin(), places.end());
  std::vector<Bucket> buckets = assign(places);
  for (Bucket& bucket : buckets) allocate(bucket);
  remove_hooks();
  buckets_ = std::move(buckets);
  trained_ = std::move(trained_now);
  for (size_t i = 0; i < buckets_.size(); ++i) add_hooks(i);
}

std::vector<GradientBuckets::Bucket> GradientBuckets::assign(const std::vector<size_t>& places) const {
  std::vector<Bucket> full, open;
  for (const size_t place : places) {
    const at::Tensor& parameter = parameters_[place];
    const auto is_alike = [&](const Bucket& bucket) {
      const at::Tensor& first = parameters_[bucket.slots.front().place];
      return first.scalar_type() == parameter.scalar_type() && first.device() == parameter.device();
    };
    auto bucket = std::find_if(open.begin(), open.end(), is_alike);
    if (bucket == open.end()) bucket = open.emplace(open.end());
    int64_t begin = 0;
    if (!bucket->slots.empty()) {
      const Slot& last = bucket->slots.back();
      const int64_t unit = std::max<int64_t>(kAlignment / static_cast<int64_t>(parameter.element_size()), 1);
      begin = (last.offset + parameters_[last.place].numel() + unit - 1) / unit * unit;
    }
    Slot slot;
    slot.place = place;
    slot.offset = begin;
    bucket->slots.push_back(std::move(slot));

    const int64_t bytes = (begin + parameter.numel()) * static_cast<int64_t>(parameter.element_size());
    if (bytes < (full.empty() ? options_.first_bucket_bytes : options_.bucket_bytes)) continue;
    full.push_back(std::move(*bucket));
    open.erase(bucket);
  }
  for (Bucket& bucket : open) full.push_back(std::move(bucket));
  // A bucket can be sent when its last gradient is there, that of the parameter which stands first.
  std::stable_sort(full.begin(), full.end(), [](const Bucket& a, const Bucket& b) { return a.slots.back().place > b.slots.back().place; });
  return full;
}

void GradientBuckets::allocate(Bucket& bucket) const {
  const Slot& last = bucket.slots.back();
  const at::Tensor& some = parameters_[last.place];
  const int64_t size = last.offset + some.numel();
  const auto num_slots = static_cast<int64_t>(bucket.slots.size());
  bucket.buffer = at::zeros({size + num_slots}, at::TensorOptions().dtype(some.scalar_type()).device(some.device()));
  const at::AutoDispatchBelowADInplaceOrView untracked;
  bucket.counts = bucket.buffer.narrow(0, size, num_slots);
  for (Slot& slot : bucket.slots) slot.view = view_for(parameters_[slot.place], bucket.buffer, slot.offset);
}

void GradientBuckets::add_hooks(size_t bucket) {
  if (!options_.overlap) return;
  std::vector<Slot>& slots = buckets_[bucket].slots;
  for (size_t i = 0; i < slots.size(); ++i) {
    slots[i].accumulator = torch::autograd::impl::grad_accumulator(parameters_[slots[i].place]);
    slots[i].hook = slots[i].accumulator->add_post_hook(std::make_unique<ArrivalHook>([this, bucket, i] { arrive(bucket, i); }));
  }
}

void GradientBuckets::remove_hooks() noexcept {
  for (Bucket& bucket : buckets_) {
    for (Slot& slot : bucket.slots) {
      if (slot.accumulator) slot.accumulator->del_post_hook(slot.hook);
    }
  }
}

std::string GradientBuckets::name(const Slot& slot) const { return concat("parameter ", slot.place, " (", describe(parameters_[slot.place]), ")"); }

std::vector<int64_t> GradientBuckets::bucket_sizes() const {
  std::vector<int64_t> result;
  for (const Bucket& bucket : buckets_) result.push_back(static_cast<int64_t>(bucket.buffer.nbytes()));
  return result;
}

void GradientBuckets::arm(bool contribute, BeforeFirst before_first) {
  const std::lock_guard lock(mutex_);
  if (std::exchange(armed_, false)) {
    contribute_ = false;
    send(/*incomplete=*/true);
    const bool known = failure_ != nullptr;
    if (const std::exception_ptr failure = wait(); failure && !known) std::rethrow_exception(failure);
  }
  if (trained() != trained_) build();

  for (Bucket& bucket : buckets_) {
    bucket.num_missing = bucket.slots.size();
    for (Slot& slot : bucket.slots) slot.arrived = slot.used = false;
  }
  num_sent_ = 0;
  failure_ = nullptr;
  abandoned_ = false;
  contribute_ = contribute;
  before_first_ = std::move(before_first);
  armed_ = true;
}

// Called from within backward, on its threads. An exception would leave backward half done, and on a GPU's thread lose its type: it waits
// for finish().
void GradientBuckets::arrive(size_t bucket, size_t slot) noexcept {
  const std::lock_guard lock(mutex_);
  if (!armed_ || !contribute_ || abandoned_ || failure_) return;
  Slot& here = buckets_[bucket].slots[slot];
  if (bucket < num_sent_) {
    failure_ = std::make_exception_ptr(Error(Errc::kUnsupported, concat("ddp: the gradient of ", name(here), " was changed after it had been sent to the other ranks: "
      "run one backward a step (add losses up), and none within backward, or set overlap=false")));
    return;
  }
  if (std::exchange(here.arrived, true)) return;
  --buckets_[bucket].num_missing;
  send(/*incomplete=*/false);
}

// Sends the buckets that are complete, or all, in their order. What fails is kept in failure_.
void GradientBuckets::send(bool incomplete) noexcept {
  try {
    while (num_sent_ < buckets_.size() && (incomplete || buckets_[num_sent_].num_missing == 0)) {
      if (failure_ || !may_send()) return;
      Bucket& bucket = buckets_[num_sent_];
      fill(bucket);
      bucket.work = communicator_.all_reduce(bucket.buffer.is_complex() ? at::view_as_real(bucket.buffer) : bucket.buffer);
      ++num_sent_;
    }
    if (incomplete && !failure_) may_send();  // also asked where there is nothing to send: the other ranks ask, too
  } catch (...) {
    failure_ = std::current_exception();
  }
}

bool GradientBuckets::may_send() {
  if (const BeforeFirst before_first = std::exchange(before_first_, {})) abandoned_ = !before_first();
  return !abandoned_;
}

void GradientBuckets::fill(Bucket& bucket) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> from, to, none;
  std::vector<float> counts;
  for (Slot& slot : bucket.slots) {
    const at::Tensor& gradient = parameters_[slot.place].grad();
    slot.used = contribute_ && gradient.defined();
    counts.push_back(slot.used ? 1.0F : 0.0F);
    if (!slot.used) {
      none.push_back(slot.view);
    } else if (gradient.layout() != at::kStrided) {
      throw Error(Errc::kUnsupported, concat("ddp: the gradient of ", name(slot), " is sparse, which cannot be summed over ranks: make its layer with sparse=false"));
    } else if (!gradient.is_set_to(slot.view)) {
      from.push_back(gradient.is_alias_of(slot.view) ? gradient.clone() : gradient);  // somebody has moved views around
      to.push_back(slot.view);
    }
  }
  if (!none.empty()) at::_foreach_zero_(none);
  if (!from.empty()) at::_foreach_copy_(to, from);
  if (none.empty()) {
    bucket.counts.fill_(1);
  } else {
    bucket.counts.copy_(at::tensor(counts));
  }
  // Now, so that the memory of gradients that were copied serves those that are still to come.
  for (const Slot& slot : bucket.slots) {
    if (slot.used) parameters_[slot.place].mutable_grad() = slot.view;
  }
}

// For all that is under way, even if some of it fails: buffers are then nobody else's. @return the step's first failure.
std::exception_ptr GradientBuckets::wait() noexcept {
  for (Bucket& bucket : buckets_) {
    try {
      if (bucket.work) bucket.work->wait();
    } catch (...) {
      if (!failure_) failure_ = std::current_exception();
    }
    bucket.work.reset();
  }
  return failure_;
}

bool GradientBuckets::finish() {
  const std::lock_guard lock(mutex_);
  if (!armed_) throw Error(Errc::kInvalidArgument, "ddp: finish() without arm()");
  send(/*incomplete=*/true);
  armed_ = false;
  if (const std::exception_ptr failure = wait()) std::rethrow_exception(failure);
  if (abandoned_) return false;
  for (const Bucket& bucket : buckets_) deliver(bucket);
  return true;
}

// Counts are only looked at if need be, for on a GPU that means to wait for it. They are sums of ones in the gradients' type, bfloat16, say:
// whatever is lost in them beyond 256 ranks, they are not 0.
void GradientBuckets::deliver(const Bucket& bucket) {
  if (std::all_of(bucket.slots.begin(), bucket.slots.end(), [](const Slot& slot) { return slot.used; })) return;
  const at::Tensor counts = (bucket.counts.is_complex() ? at::real(bucket.counts) : bucket.counts).to(at::kCPU, at::kFloat);
  for (size_t i = 0; i < bucket.slots.size(); ++i) {
    const Slot& slot = bucket.slots[i];
    parameters_[slot.place].mutable_grad() = counts.const_data_ptr<float>()[i] > 0 ? slot.view : at::Tensor();
  }
}

}  // namespace marlin
