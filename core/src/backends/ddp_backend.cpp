#include "marlin/core/backends/ddp_backend.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <cmath>

#include "backends/gradient_buckets.h"
#include "backends/replica_check.h"
#include "distributed/agreement.h"
#include "distributed/value_bytes.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {

std::vector<OptionField<DdpOptions>> DdpOptions::option_fields() {
  using O = DdpOptions;
  return {
      option_field("timeout_seconds", &O::timeout_seconds, "Give up when another rank does not answer for so long.", {.unit = "seconds", .min = 1.0, .max = 1e6}),
      option_field("bucket_mb", &O::bucket_mb, "Sum gradients of about so many MiB together, while backward runs on.", {.unit = "MiB", .min = 1e-6, .max = 1e6}),
      option_field("broadcast_buffers", &O::broadcast_buffers, "After each step, and before each validation, all ranks take rank 0's buffers."),
      option_field("shared_memory", &O::shared_memory, "Ranks of one machine sum in memory that they share; false: over Gloo."),
      option_field("gather_outputs", &O::gather_outputs, "What steps return as outputs reaches the callbacks of all ranks, in data set order; false: each has its own."),
      option_field("check_every", &O::check_every, "Compare the bits of parameters and buffers on all ranks every so many steps.", {.min = 1}),
  };
}

namespace {

constexpr size_t kTotals = 3;   // numbers before those of the metrics

NamedTensors named_buffers(const ModuleInterface& module) {
  NamedTensors buffers;
  for (const auto& buffer : module.named_buffers()) buffers.emplace_back(buffer.key(), buffer.value());
  return buffers;
}

void check_replicas(const ModuleInterface& module, Communicator& ranks, int64_t global_step) {
  const std::optional<std::string> difference = difference_between_ranks(ranks, named_tensors(module));
  if (difference) throw Error(Errc::kTraining, concat("after ", global_step, " steps the ranks' models are no longer the same: ", *difference));
}

size_t num_trained(const std::vector<std::vector<at::Tensor>>& parameters) {
  size_t count = 0;
  for (const std::vector<at::Tensor>& of_one : parameters) count += static_cast<size_t>(std::count_if(of_one.begin(), of_one.end(), [](const at::Tensor& parameter) { return parameter.requires_grad(); }));
  return count;
}

}  // namespace

// What there is only with several ranks.
struct DistributedBackend::Parts {
  Parts(const BackendSetup& setup, const DdpOptions& options) : ranks(*setup.ranks), agreement(*setup.ranks), wishes_of_this_rank(setup.wishes) {
    buckets_options.bucket_bytes = std::max<int64_t>(1, std::llround(options.bucket_mb * 1048576.0));
    buckets_options.first_bucket_bytes = std::min(buckets_options.first_bucket_bytes, buckets_options.bucket_bytes);
  }

  GradientBuckets& buckets_of(int64_t optimizer, const std::vector<std::vector<at::Tensor>>& parameters);
  [[nodiscard]] bool has_buckets(int64_t optimizer) const;
  void send(const std::string& what, int64_t global_step, const MetricSums& metrics, const Totals& totals, const Wishes& wished);
  void receive();
  void meet(const std::string& what, int64_t global_step);
  void equalise(ModuleInterface& module, bool with_buffers);

  Communicator& ranks;
  Agreement agreement;
  const std::function<Wishes()> wishes_of_this_rank;
  GradientBucketsOptions buckets_options;
  std::vector<std::unique_ptr<GradientBuckets>> gradients;   // of all parameters; then, where optimizers are stepped by hand, of each optimizer

  ReplicaBroadcast buffers;         // of the module, as the epoch or validation began; none if they are not to be sent
  bool equalised = false;           // all ranks have rank 0's parameters
  bool contributes = true;          // this rank has samples of the batch
  int64_t epoch = 0;
  std::vector<double> sums;         // over all ranks, as received: kTotals, then the metrics
  Wishes wishes;                    // of any rank, as of the batch
};

GradientBuckets& DistributedBackend::Parts::buckets_of(int64_t optimizer, const std::vector<std::vector<at::Tensor>>& parameters) {
  const auto place = static_cast<size_t>(optimizer + 1);
  if (gradients.size() <= place) gradients.resize(place + 1);
  if (!gradients[place]) {
    std::vector<at::Tensor> all;
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (optimizer < 0 || static_cast<size_t>(optimizer) == i) all.insert(all.end(), parameters[i].begin(), parameters[i].end());
    }
    gradients[place] = std::make_unique<GradientBuckets>(std::move(all), ranks, buckets_options);
  }
  return *gradients[place];
}

// Whether buckets_of() and arming them take no call of the Communicator.
bool DistributedBackend::Parts::has_buckets(int64_t optimizer) const {
  const auto place = static_cast<size_t>(optimizer + 1);
  return place < gradients.size() && gradients[place] && gradients[place]->is_current();
}

DistributedBackend::DistributedBackend(const DdpOptions& options) : options_(options) { marlin::validate(options_); }
DistributedBackend::DistributedBackend(const DdpOptions& options, const AmpOptions& amp) : SingleProcessBackend(amp), options_(options) { marlin::validate(options_); }
DistributedBackend::~DistributedBackend() = default;

void DistributedBackend::init(const BackendSetup& setup) {
  SingleProcessBackend::init(setup);
  parts_.reset();
  if (setup.ranks == nullptr || setup.ranks->world_size() == 1) return;
  parts_ = std::make_unique<Parts>(setup, options_);
}

// The wishes that went with the step.
Wishes DistributedBackend::wishes() const { return parts_ ? parts_->wishes : SingleProcessBackend::wishes(); }

EpochResult DistributedBackend::train(DataLoader& loader, int64_t epoch, int64_t steps_done, StepListener& listener) {
  if (parts_) {
    parts_->epoch = epoch;
    parts_->meet("the begin of an epoch's training", global_step_completed());
    parts_->equalise(*setup().module, options_.broadcast_buffers);
  }
  const EpochResult result = SingleProcessBackend::train(loader, epoch, steps_done, listener);
  // One that gets fewer batches than the others comes here first, and all are told so.
  if (parts_ && result.complete) parts_->meet("the end of its batches", global_step_completed());
  return result;
}

EpochResult DistributedBackend::validate(DataLoader& loader, const std::string& name, int64_t epoch, StepListener& listener) {
  if (parts_) {
    parts_->epoch = epoch;
    parts_->meet(concat("the begin of validation '", name, "'"), global_step_completed());
    parts_->equalise(*setup().module, options_.broadcast_buffers);
  }
  const EpochResult result = SingleProcessBackend::validate(loader, name, epoch, listener);
  if (parts_ && result.complete) parts_->meet(concat("the end of validation '", name, "'"), global_step_completed());
  return result;
}

// By the first call a checkpoint, or weights to begin with, have been taken.
void DistributedBackend::Parts::equalise(ModuleInterface& module, bool with_buffers) {
  const NamedTensors own_buffers = named_buffers(module);
  const bool sends_buffers = with_buffers && !own_buffers.empty();  // all ranks' models are alike, or the first call says so
  if (!equalised) broadcast_from_rank_0(ranks, named_tensors(module));
  buffers = sends_buffers ? ReplicaBroadcast(ranks, own_buffers) : ReplicaBroadcast();
  if (equalised) buffers.send();
  equalised = true;
}

double DistributedBackend::begin_step(const Batch& batch) {
  if (!parts_) return SingleProcessBackend::begin_step(batch);
  if (batch.num_global_samples < std::max<int64_t>(batch.num_samples, 1)) {
    fail(concat("a batch of ", batch.num_samples, " samples says that it is part of a global batch of ", batch.num_global_samples, ": a loader for several ranks must set num_global_samples"));
  }
  parts_->contributes = batch.num_samples > 0;
  return static_cast<double>(batch.num_global_samples);
}

// A rank without samples makes the calls that the others make.
std::vector<int64_t> DistributedBackend::micro_batches(const Batch& batch) const {
  if (!parts_ || batch.num_samples > 0) return SingleProcessBackend::micro_batches(batch);
  return {0};
}

// What a rank says: where it is, what it wishes, and numbers to be summed.
void DistributedBackend::Parts::send(const std::string& what, int64_t global_step, const MetricSums& metrics, const Totals& totals, const Wishes& wished) {
  const std::string names = metrics.names();
  std::vector<double> numbers = {totals.loss, totals.loss_weight, totals.weight_seen};
  metrics.append_to(numbers);
  const auto describe = [what, names, global_step, epoch = epoch] {
    return concat(what, " (epoch ", epoch, ", ", global_step, " steps done", names.empty() ? "" : ", metrics: " + names, ")");
  };
  agreement.send({mark_of(what, names, epoch, global_step), describe}, wished, numbers);
}

void DistributedBackend::Parts::receive() { wishes = agreement.receive(sums); }

void DistributedBackend::Parts::meet(const std::string& what, int64_t global_step) {
  send(what, global_step, {}, {}, {});
  std::vector<double> none;
  static_cast<void>(agreement.receive(none));
}

void DistributedBackend::before_last_backward(const MetricSums& metrics, const Totals& totals) {
  if (!parts_) return;
  parts_->send(concat("a training step with ", num_outputs(), " outputs and ", num_trained(parameters()), " parameters that are trained"), global_step_completed(), metrics, totals,
               parts_->wishes_of_this_rank());
  if (parts_->has_buckets(-1)) {
    parts_->buckets_of(-1, parameters()).arm(parts_->contributes, [this] { return parts_->receive(), true; });
  } else {  // what ranks do to make them they do once they know that all are here
    parts_->receive();
    parts_->buckets_of(-1, parameters()).arm(parts_->contributes);
  }
}

void DistributedBackend::sum_gradients(int64_t optimizer) {
  if (!parts_) return;
  if (optimizer >= 0) {
    parts_->meet(concat("step.optimize for optimizer ", optimizer), global_step_completed());
    parts_->buckets_of(optimizer, parameters()).arm(parts_->contributes);
  }
  static_cast<void>(parts_->buckets_of(optimizer, parameters()).finish());
}

void DistributedBackend::join_step(MetricSums& metrics, Totals& totals) {
  if (!parts_) return;
  if (manual()) parts_->send(concat("a training step by hand with ", num_outputs(), " outputs"), global_step_completed(), metrics, totals, parts_->wishes_of_this_rank());
  if (parts_->agreement.is_sent()) parts_->receive();
  const std::vector<double>& sums = parts_->sums;
  totals = {sums.at(0), sums.at(1), sums.at(2)};
  metrics.take(sums.data() + kTotals);
  parts_->buffers.send();  // now, as all ranks have just said that they are at the same place
}

void DistributedBackend::end_step() {
  const int64_t steps = global_step_completed();
  if (parts_ && options_.check_every && steps > 0 && steps % *options_.check_every == 0) check_replicas(*setup().module, parts_->ranks, steps);
}

void DistributedBackend::join_val_step(const Batch& batch, MetricSums& metrics) {
  if (!parts_) return;
  parts_->contributes = batch.num_samples > 0;
  parts_->send(concat("a validation step with ", num_outputs(), " outputs"), global_step_completed(), metrics, {}, parts_->wishes_of_this_rank());
  parts_->receive();
  metrics.take(parts_->sums.data() + kTotals);
}

// Ranks have contiguous slices of a batch, in their order.
void DistributedBackend::gather_outputs(std::vector<at::Tensor>& outputs) {
  if (!parts_ || !options_.gather_outputs || num_outputs() == 0) return;
  List mine;
  for (size_t i = 0; parts_->contributes && i < outputs.size(); ++i) mine.items.emplace_back(outputs[i]);
  const std::string bytes = to_bytes(Value(std::move(mine)));
  std::vector<std::vector<at::Tensor>> positions(num_outputs());
  for (int rank = 0; rank < parts_->ranks.world_size(); ++rank) {
    const Value theirs = value_of_bytes(parts_->ranks.broadcast_bytes(rank == parts_->ranks.rank() ? bytes : "", rank));
    for (size_t i = 0; i < theirs.as_items().size(); ++i) positions.at(i).push_back(theirs.as_items()[i].as_tensor());
  }
  outputs.clear();
  for (const std::vector<at::Tensor>& tensors : positions) outputs.push_back(at::cat(tensors));
}

}  // namespace marlin
