#include "marlin/core/backends/sp_backend.h"

#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "output_collector.h"

namespace marlin {

std::vector<int64_t> micro_batch_sizes(int64_t num_samples, std::optional<int64_t> limit) {
  if (num_samples <= 0) return {};
  if (!limit || *limit >= num_samples) return {num_samples};
  const int64_t count = (num_samples + *limit - 1) / *limit;
  std::vector<int64_t> sizes(static_cast<size_t>(count), num_samples / count);
  for (int64_t i = 0; i < num_samples % count; ++i) ++sizes[static_cast<size_t>(i)];
  return sizes;
}

namespace {
void scale_gradients(const std::vector<at::Tensor>& parameters, double factor) {
  for (const at::Tensor& parameter : parameters) {
    if (parameter.grad().defined()) parameter.mutable_grad().mul_(factor);
  }
}
}  // namespace

void SingleProcessBackend::init(const BackendSetup& setup) {
  setup_ = setup;
  parameters_.clear();
  for (const auto& optimizer : setup_.optimizers) {
    std::vector<at::Tensor> parameters;
    for (const auto& group : optimizer->param_groups()) {
      for (const at::Tensor& parameter : group.params()) {
        if (parameter.requires_grad()) parameters.push_back(parameter);
      }
    }
    parameters_.push_back(std::move(parameters));
  }
}

EpochResult SingleProcessBackend::train(DataLoader& loader, int64_t epoch, int64_t steps_done, StepListener& listener) {
  setup_.module->train();
  step_metrics_ = {};
  epoch_ = epoch;
  EpochResult result;
  Batch batch;
  const auto cap = setup_.max_train_steps_per_epoch;
  while (!(cap && steps_done >= *cap) && loader.next(batch)) {
    OutputCollector outputs;
    train_step(batch, epoch, outputs);
    ++steps_done;

    const double loss = loss_weight_ > 0.0 ? loss_total_ / loss_weight_ : std::numeric_limits<double>::quiet_NaN();
    StepSummary summary{epoch, global_step_, loss, outputs.joined()};
    setup_.module->on_end_train_step(summary);
    if (!listener.on_train_step({epoch, global_step_, loss, &step_metrics_, &summary.outputs})) {
      result.complete = (cap && steps_done >= *cap) || loader.at_end().value_or(false);
      break;
    }
  }
  return result;
}

void SingleProcessBackend::train_step(Batch& batch, int64_t epoch, OutputCollector& outputs) {
  for (const auto& optimizer : setup_.optimizers) optimizer->zero_grad();
  step_metrics_.clear();
  touched_.assign(setup_.optimizers.size(), 0);
  manual_ = false;
  weight_seen_ = loss_total_ = loss_weight_ = 0.0;

  const std::vector<int64_t> sizes = micro_batch_sizes(batch.num_samples, setup_.micro_batch_limit);
  StepContext context;
  context.epoch = epoch;
  context.global_step = global_step_;
  context.num_micro_batches = static_cast<int64_t>(sizes.size());
  context.device = setup_.device;
  context.optimizer = this;
  int64_t begin = 0;
  for (const int64_t size : sizes) {
    closes_step_ = context.micro_batch + 1 == context.num_micro_batches;
    if (sizes.size() == 1) {
      micro_step(batch, context, static_cast<double>(batch.num_samples), outputs);
    } else {
      Batch micro = batch.slice(begin, begin + size);
      micro_step(micro, context, static_cast<double>(batch.num_samples), outputs);
    }
    begin += size;
    ++context.micro_batch;
  }
  for (size_t i = 0; manual_ && i < touched_.size(); ++i) {
    if (touched_[i] == kTouched) fail(concat("step.optimize for optimizer ", i, " was called in an early micro-batch of the step, but not in its last, which steps it: call it in all of them"));
  }
  if (!manual_) finish_step(static_cast<double>(batch.num_samples), sizes.size());
  ++global_step_;
  for (const auto& scheduler : setup_.schedulers) {
    if (scheduler->per() == optim::LRScheduler::Per::kStep) scheduler->step();
  }
}

void SingleProcessBackend::micro_step(Batch& micro, const StepContext& context, double step_samples, OutputCollector& outputs) {
  if (!setup_.device.is_cpu()) micro.to(setup_.device);
  weight_ = static_cast<double>(micro.num_samples) / step_samples;
  StepOutput output = setup_.module->train_step(context, micro);

  const double samples = static_cast<double>(output.num_samples.value_or(micro.num_samples));
  weight_seen_ += samples;
  if (!manual_) {
    const double loss = checked_loss(output.loss, "the loss that train_step returned");
    backward(output.loss, context.num_micro_batches == 1 ? 1.0 : samples / step_samples, false, {});
    record_loss(loss, samples);
  } else if (output.loss.defined()) {
    record_loss(output.loss.item<double>(), samples);
  }
  ++batches_;
  for (const auto& [name, value] : output.metrics) step_metrics_.add(name, value, samples);
  outputs.add(output.outputs);
}

void SingleProcessBackend::record_loss(double loss, double samples) {
  loss_total_ += loss * samples;
  loss_weight_ += samples;
  step_metrics_.add("loss", loss, samples);
}

void SingleProcessBackend::backward(const at::Tensor& loss, double weight, bool retain_graph, const std::vector<at::Tensor>& inputs) {
  const at::Tensor weighted = weight == 1.0 ? loss : loss * weight;
  if (inputs.empty()) {
    weighted.backward({}, retain_graph);
  } else {
    weighted.backward({}, retain_graph, /*create_graph=*/false, inputs);
  }
  setup_.module->on_end_backward(global_step_, loss.detach());
}

// Automatic optimisation: one clip over all parameters, then every optimizer.
void SingleProcessBackend::finish_step(double step_samples, size_t num_micro_batches) {
  // Modules may count other things than samples (tokens, say); then the micro-batches' weights do not add up to one yet.
  const bool rescale = num_micro_batches > 1 && weight_seen_ != step_samples && weight_seen_ > 0.0;
  std::vector<at::Tensor> all;
  if (setup_.clip_grads || rescale) {
    for (const auto& parameters : parameters_) all.insert(all.end(), parameters.begin(), parameters.end());
  }
  if (rescale) scale_gradients(all, step_samples / weight_seen_);
  if (setup_.clip_grads) clip(all);
  setup_.before_optimizer_step();
  for (const auto& optimizer : setup_.optimizers) optimizer->step();
}

void SingleProcessBackend::optimize(const at::Tensor& loss, size_t index, bool retain_graph) {
  if (index >= setup_.optimizers.size()) {
    throw Error(Errc::kInvalidArgument, concat("step.optimize: there is no optimizer ", index, "; get_optimizers_schedulers made ", setup_.optimizers.size()));
  }
  manual_ = true;
  static_cast<void>(checked_loss(loss, "the loss given to step.optimize"));
  if (touched_[index] == kStepped) setup_.optimizers[index]->zero_grad();  // a second step within this train_step
  backward(loss, weight_, retain_graph, parameters_[index]);
  touched_[index] = kTouched;
  if (!closes_step_) return;
  if (setup_.clip_grads) clip(parameters_[index]);
  setup_.before_optimizer_step();
  setup_.optimizers[index]->step();
  touched_[index] = kStepped;
}

void SingleProcessBackend::clip(const std::vector<at::Tensor>& parameters) {
  std::vector<at::Tensor> gradients;
  gradients.reserve(parameters.size());
  bool dense = true;
  for (const at::Tensor& parameter : parameters) {
    if (!parameter.grad().defined()) continue;
    gradients.push_back(parameter.grad());
    dense &= gradients.back().layout() == at::kStrided;
  }
  if (gradients.empty()) return;
  if (!dense) {
    torch::nn::utils::clip_grad_norm_(parameters, setup_.max_grad_norm);
    return;
  }
  const torch::NoGradGuard no_grad;
  const double norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, 2)), 2).item<double>();
  if (!std::isfinite(norm)) fail(concat("the norm of the gradients is ", std::isnan(norm) ? "nan" : "inf", ": a smaller learning rate may help, or look for such values in the data"));
  if (const double factor = setup_.max_grad_norm / (norm + 1e-6); factor < 1.0) at::_foreach_mul_(gradients, factor);
}

double SingleProcessBackend::checked_loss(const at::Tensor& loss, const char* what) const {
  if (!loss.defined()) fail(concat(what, " is undefined: return a scalar tensor, or call step.optimize"));
  if (loss.numel() != 1 || loss.dim() > 1) {
    std::vector<std::string> sizes;
    for (const int64_t size : loss.sizes()) sizes.push_back(std::to_string(size));
    fail(concat(what, " has shape [", join(sizes), "]: it must be a scalar; take its mean()"));
  }
  if (!loss.requires_grad()) fail(concat(what, " does not require grad: no parameter takes part in it, or it was detached"));
  const double value = loss.item<double>();
  if (!std::isfinite(value)) fail(concat(what, " is ", std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf", ": a smaller learning rate may help, or look for such values in the data"));
  return value;
}

void SingleProcessBackend::fail(const std::string& what) const {
  throw Error(Errc::kTraining, concat("epoch ", epoch_, ", step ", global_step_ + 1, ": ", what));
}

EpochResult SingleProcessBackend::validate(DataLoader& loader, const std::string& name, int64_t epoch, StepListener& listener) {
  const torch::NoGradGuard no_grad;
  setup_.module->eval();
  step_metrics_ = {};  // names stand in the order of this loader's steps, whatever came before
  StepContext context;
  context.stage = Stage::kVal;
  context.epoch = epoch;
  context.global_step = global_step_;
  context.loader = name;
  context.device = setup_.device;
  Batch batch;
  const int64_t cap = setup_.max_val_steps_per_epoch.value_or(std::numeric_limits<int64_t>::max());
  for (int64_t step = 0; step < cap && loader.next(batch); ++step) {
    OutputCollector outputs;
    val_step(batch, context, outputs);
    const std::vector<at::Tensor> joined = outputs.joined();
    if (!listener.on_val_step({epoch, global_step_, std::numeric_limits<double>::quiet_NaN(), &step_metrics_, &joined})) return {.complete = false};
  }
  return {};
}

void SingleProcessBackend::val_step(Batch& batch, StepContext& context, OutputCollector& outputs) {
  step_metrics_.clear();
  const std::vector<int64_t> sizes = micro_batch_sizes(batch.num_samples, setup_.micro_batch_limit);
  context.micro_batch = 0;
  context.num_micro_batches = static_cast<int64_t>(sizes.size());
  int64_t begin = 0;
  for (const int64_t size : sizes) {
    Batch micro = batch.slice(begin, begin + size);
    begin += size;
    if (!setup_.device.is_cpu()) micro.to(setup_.device);
    const StepOutput output = setup_.module->val_step(context, micro);
    const double samples = static_cast<double>(output.num_samples.value_or(micro.num_samples));
    if (output.loss.defined()) step_metrics_.add("loss", output.loss, samples);
    for (const auto& [metric, value] : output.metrics) step_metrics_.add(metric, value, samples);
    outputs.add(output.outputs);
    ++context.micro_batch;
  }
}

StateDict SingleProcessBackend::get_state() const {
  return {{"global_step_completed", global_step_}, {"batches_completed", batches_}};
}

void SingleProcessBackend::update_state(const StateDict& state) {
  const int64_t steps = state.at("global_step_completed").as_int();
  const int64_t batches = state.at("batches_completed").as_int();
  global_step_ = steps;
  batches_ = batches;
}

}  // namespace marlin
