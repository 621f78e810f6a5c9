#include "marlin/core/backends/sp_backend.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/autocast.h"
#include "backends/output_collector.h"
#include "marlin/core/communicator.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

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

constexpr int kMostSkipsInARow = 40;  // a scale of 65536 has then come down to 6e-8

void scale_gradients(const std::vector<at::Tensor>& parameters, double factor) {
  for (const at::Tensor& parameter : parameters) {
    if (parameter.grad().defined()) parameter.mutable_grad().mul_(factor);
  }
}

const char* shown(double value) { return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf"; }

}  // namespace

std::vector<OptionField<AmpOptions>> AmpOptions::option_fields() {
  using O = AmpOptions;
  return {
      option_field("dtype", &O::dtype, "What forward passes are computed in where that is safe; auto: bfloat16 on the CPU, float16 on CUDA.", {.choices = {"auto", "bfloat16", "float16"}}),
      option_field("grad_scaler", &O::grad_scaler, "Scale losses, and skip steps whose gradients overflow; auto: for float16.", {.choices = {"auto", "on", "off"}}),
      option_field("init_scale", &O::init_scale, "The scale that a run begins with.", {.min = 1e-30, .max = 1e38}),
      option_field("growth_factor", &O::growth_factor, "The scale grows by it after growth_interval steps without overflow.", {.min = 1.000001, .max = 1e6}),
      option_field("backoff_factor", &O::backoff_factor, "The scale shrinks by it after an overflow.", {.min = 1e-6, .max = 0.999999}),
      option_field("growth_interval", &O::growth_interval, "Steps without overflow after which the scale grows.", {.min = 1}),
  };
}

struct SingleProcessBackend::Amp {
  AmpOptions options;
  at::ScalarType type = at::kBFloat16;
  std::optional<GradScaler> scaler = {};
  int skips_in_a_row = 0;
};

SingleProcessBackend::SingleProcessBackend() = default;
SingleProcessBackend::~SingleProcessBackend() = default;

SingleProcessBackend::SingleProcessBackend(const AmpOptions& amp) : amp_(std::make_unique<Amp>(Amp{amp})) {
  marlin::validate(amp);
}

void SingleProcessBackend::init(const BackendSetup& setup) {
  setup_ = setup;
  if (amp_) {
    const AmpOptions& options = amp_->options;
    const bool half = options.dtype == "auto" ? !setup.device.is_cpu() : options.dtype == "float16";
    if (half && setup.device.is_cpu()) throw Error(Errc::kUnsupported, "--backend.dtype float16: mixed precision on the CPU is bfloat16; give --backend.dtype bfloat16, or --device cuda");
    amp_->type = half ? at::kHalf : at::kBFloat16;
    amp_->scaler.reset();
    if (options.grad_scaler == "on" || (options.grad_scaler == "auto" && half)) {
      amp_->scaler.emplace(GradScalerOptions{options.init_scale, options.growth_factor, options.backoff_factor, options.growth_interval});
    }
  }
  parameters_.clear();
  for (const auto& optimizer : setup_.optimizers) {
    std::vector<at::Tensor> parameters;
    for (const auto& group : optimizer->param_groups()) {
      parameters.insert(parameters.end(), group.params().begin(), group.params().end());  // frozen ones, too: they may be trained later
    }
    parameters_.push_back(std::move(parameters));
  }
}

double SingleProcessBackend::begin_step(const Batch& batch) { return static_cast<double>(batch.num_samples); }
std::vector<int64_t> SingleProcessBackend::micro_batches(const Batch& batch) const { return micro_batch_sizes(batch.num_samples, setup_.micro_batch_limit); }
void SingleProcessBackend::before_last_backward(const MetricSums&, const Totals&) {}
void SingleProcessBackend::sum_gradients(int64_t) {}
void SingleProcessBackend::end_step() {}
void SingleProcessBackend::join_step(MetricSums&, Totals&) {}
void SingleProcessBackend::join_val_step(const Batch&, MetricSums&) {}
void SingleProcessBackend::gather_outputs(std::vector<at::Tensor>&) {}
Wishes SingleProcessBackend::wishes() const { return setup_.wishes(); }

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
    end_step();
    const double loss = totals_.loss_weight > 0.0 ? totals_.loss / totals_.loss_weight : std::numeric_limits<double>::quiet_NaN();
    StepSummary summary{epoch, global_step_, loss, {}};
    if (!skipped_) {
      ++steps_done;
      summary.outputs = outputs.joined();
      gather_outputs(summary.outputs);
      setup_.module->on_end_train_step(summary);
    }
    if (!listener.on_train_step({epoch, global_step_, loss, &step_metrics_, &summary.outputs, skipped_, wishes()})) {
      result.complete = (cap && steps_done >= *cap) || loader.at_end().value_or(false);
      break;
    }
  }
  return result;
}

void SingleProcessBackend::train_step(Batch& batch, int64_t epoch, OutputCollector& outputs) {
  for (const auto& optimizer : setup_.optimizers) optimizer->zero_grad();
  step_metrics_.clear();
  touched_.assign(setup_.optimizers.size(), kUntouched);
  manual_ = skipped_ = false;
  totals_ = {};
  step_samples_ = begin_step(batch);

  const std::vector<int64_t> sizes = micro_batches(batch);
  undivided_ = sizes.size() == 1 && (setup_.ranks == nullptr || setup_.ranks->world_size() == 1);
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
      micro_step(batch, context, outputs);
    } else {
      Batch micro = batch.slice(begin, begin + size);
      micro_step(micro, context, outputs);
    }
    begin += size;
    ++context.micro_batch;
  }
  if (manual_) end_manual_step();
  else finish_step();
  if (skipped_) {
    ++skipped_steps_;
    return;
  }
  ++global_step_;
  for (const auto& scheduler : setup_.schedulers) {
    if (scheduler->per() == optim::LRScheduler::Per::kStep) scheduler->step();
  }
}

StepOutput SingleProcessBackend::forward(const StepContext& context, Batch& micro) {
  std::optional<AutocastScope> autocast;
  if (amp_) autocast.emplace(setup_.device.type(), true, amp_->type);
  return context.stage == Stage::kTrain ? setup_.module->train_step(context, micro) : setup_.module->val_step(context, micro);
}

void SingleProcessBackend::micro_step(Batch& micro, const StepContext& context, OutputCollector& outputs) {
  if (!setup_.device.is_cpu()) micro.to(setup_.device);
  weight_ = static_cast<double>(micro.num_samples) / step_samples_;
  has_samples_ = micro.num_samples > 0;
  StepOutput output = forward(context, micro);

  num_outputs_ = output.outputs.size();
  const double samples = static_cast<double>(output.num_samples.value_or(micro.num_samples));
  totals_.weight_seen += samples;
  if (!manual_ && has_samples_) {
    record_loss(checked_loss(output.loss, "the loss that train_step returned"), samples);
  } else if (output.loss.defined()) {
    record_loss(output.loss.item<double>(), samples);
  }
  for (const auto& [name, value] : output.metrics) step_metrics_.add(name, value, samples);
  if (!manual_) {
    if (closes_step_) before_last_backward(step_metrics_, totals_);
    if (has_samples_) backward(output.loss, undivided_ ? 1.0 : samples / step_samples_, false, {});
  }
  ++batches_;
  outputs.add(output.outputs);
}

void SingleProcessBackend::record_loss(double loss, double samples) {
  const bool overflowed = amp_ && amp_->scaler && !std::isfinite(loss);  // the step will be skipped
  step_metrics_.add("loss", loss, overflowed ? 0.0 : samples);            // on all ranks the same names
  if (overflowed) return;
  if (samples == 0.0) return;  // NaN, the mean of nothing
  totals_.loss += loss * samples;
  totals_.loss_weight += samples;
}

void SingleProcessBackend::backward(const at::Tensor& loss, double weight, bool retain_graph, const std::vector<at::Tensor>& inputs) {
  at::Tensor weighted = weight == 1.0 ? loss : loss * weight;
  if (amp_ && amp_->scaler) weighted = amp_->scaler->scale(weighted);
  {
    std::optional<AutocastScope> no_autocast;  // train_step may call this from within its own
    if (amp_) no_autocast.emplace(setup_.device.type(), false, amp_->type);
    if (inputs.empty()) {
      weighted.backward({}, retain_graph);
    } else {
      weighted.backward({}, retain_graph, /*create_graph=*/false, inputs);
    }
  }
  setup_.module->on_end_backward(global_step_, loss.detach());
}

// Automatic optimisation: one clip over all parameters, then every optimizer.
void SingleProcessBackend::finish_step() {
  sum_gradients(-1);
  join_step(step_metrics_, totals_);
  // Modules may count other things than samples (tokens, say); then the micro-batches' weights do not add up to one yet.
  const bool rescale = !undivided_ && totals_.weight_seen != step_samples_ && totals_.weight_seen > 0.0;
  std::vector<at::Tensor> all;
  if (setup_.clip_grads || rescale || (amp_ && amp_->scaler)) {
    for (const auto& parameters : parameters_) all.insert(all.end(), parameters.begin(), parameters.end());
  }
  const bool usable = unscale(all);
  if (amp_ && amp_->scaler) end_scaled_step(!usable);
  if (!usable) {
    skipped_ = true;
    return;
  }
  if (rescale) scale_gradients(all, step_samples_ / totals_.weight_seen);
  if (setup_.clip_grads) clip(all);
  setup_.before_optimizer_step();
  for (const auto& optimizer : setup_.optimizers) optimizer->step();
}

void SingleProcessBackend::end_manual_step() {
  for (size_t i = 0; i < touched_.size(); ++i) {
    if (touched_[i] == kTouched) fail(concat("step.optimize for optimizer ", i, " was called in an early micro-batch of the step, but not in its last, which steps it: call it in all of them"));
  }
  join_step(step_metrics_, totals_);
  if (!amp_ || !amp_->scaler) return;
  const auto ended = [&](char how) { return std::find(touched_.begin(), touched_.end(), how) != touched_.end(); };
  end_scaled_step(ended(kSkipped));
  skipped_ = ended(kSkipped) && !ended(kStepped);
}

void SingleProcessBackend::optimize(const at::Tensor& loss, size_t index, bool retain_graph) {
  if (index >= setup_.optimizers.size()) {
    throw Error(Errc::kInvalidArgument, concat("step.optimize: there is no optimizer ", index, "; get_optimizers_schedulers made ", setup_.optimizers.size()));
  }
  manual_ = true;
  if (touched_[index] == kStepped || touched_[index] == kSkipped) setup_.optimizers[index]->zero_grad();  // a second step within this train_step
  if (has_samples_) {
    static_cast<void>(checked_loss(loss, "the loss given to step.optimize"));
    std::vector<at::Tensor> trained = parameters_[index];
    std::erase_if(trained, [](const at::Tensor& parameter) { return !parameter.requires_grad(); });
    backward(loss, weight_, retain_graph, trained);
  }
  touched_[index] = kTouched;
  if (!closes_step_) return;
  sum_gradients(static_cast<int64_t>(index));
  if (!unscale(parameters_[index])) {
    touched_[index] = kSkipped;
    return;
  }
  if (setup_.clip_grads) clip(parameters_[index]);
  setup_.before_optimizer_step();
  setup_.optimizers[index]->step();
  touched_[index] = kStepped;
}

// Whether the gradients can be used.
bool SingleProcessBackend::unscale(const std::vector<at::Tensor>& parameters) {
  if (!amp_ || !amp_->scaler) return true;
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& parameter : parameters) gradients.push_back(parameter.grad());
  return amp_->scaler->unscale(gradients);
}

void SingleProcessBackend::end_scaled_step(bool overflowed) {
  const double scale = amp_->scaler->get_scale();
  amp_->scaler->update(overflowed);
  amp_->skips_in_a_row = overflowed ? amp_->skips_in_a_row + 1 : 0;
  if (amp_->skips_in_a_row < kMostSkipsInARow) return;
  fail(concat("the gradients of ", kMostSkipsInARow, " steps in a row were not finite, down to a loss scale of ", scale, ": a smaller learning rate may help, or look for such values in the data"));
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
  if (!std::isfinite(norm)) fail(concat("the norm of the gradients is ", shown(norm), ": a smaller learning rate may help, or look for such values in the data"));
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
  if (!std::isfinite(value) && !(amp_ && amp_->scaler)) fail(concat(what, " is ", shown(value), ": a smaller learning rate may help, or look for such values in the data"));
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
    std::vector<at::Tensor> joined = outputs.joined();
    gather_outputs(joined);
    if (!listener.on_val_step({epoch, global_step_, std::numeric_limits<double>::quiet_NaN(), &step_metrics_, &joined, false, wishes()})) return {.complete = false};
  }
  return {};
}

void SingleProcessBackend::val_step(Batch& batch, StepContext& context, OutputCollector& outputs) {
  step_metrics_.clear();
  const std::vector<int64_t> sizes = micro_batches(batch);
  context.micro_batch = 0;
  context.num_micro_batches = static_cast<int64_t>(sizes.size());
  int64_t begin = 0;
  for (const int64_t size : sizes) {
    Batch micro = batch.slice(begin, begin + size);
    begin += size;
    if (!setup_.device.is_cpu()) micro.to(setup_.device);
    const StepOutput output = forward(context, micro);
    num_outputs_ = output.outputs.size();
    const double samples = static_cast<double>(output.num_samples.value_or(micro.num_samples));
    if (output.loss.defined()) step_metrics_.add("loss", output.loss, samples);
    for (const auto& [metric, value] : output.metrics) step_metrics_.add(metric, value, samples);
    outputs.add(output.outputs);
    ++context.micro_batch;
  }
  join_val_step(batch, step_metrics_);
}

StateDict SingleProcessBackend::get_state() const {
  StateDict state = {{"global_step_completed", global_step_}, {"batches_completed", batches_}};
  if (amp_) state.set("skipped_steps", skipped_steps_);
  if (amp_ && amp_->scaler) state.set("scaler", amp_->scaler->get_state());
  return state;
}

std::vector<std::string> SingleProcessBackend::differences(const StateDict& state) const {
  try {
    if (const Value* skipped = state.find("skipped_steps")) static_cast<void>(skipped->as_int());
    const Value* scaler = state.find("scaler");
    if (scaler != nullptr) GradScaler().update_state(scaler->as_dict());
  } catch (const Error& error) {
    return {concat("trainer_backend_state: ", error.what())};
  }
  return {};
}

void SingleProcessBackend::update_state(const StateDict& state) {
  const int64_t steps = state.at("global_step_completed").as_int();
  const int64_t batches = state.at("batches_completed").as_int();
  const Value* skipped = state.find("skipped_steps");
  const int64_t skipped_steps = skipped == nullptr ? 0 : skipped->as_int();
  const Value* scaler = state.find("scaler");
  if (amp_ && amp_->scaler) {
    if (scaler != nullptr) amp_->scaler->update_state(scaler->as_dict());
    else setup_.logger->info("the checkpoint has no grad scaler's state: the scale begins at ", amp_->scaler->get_scale());
  } else if (scaler != nullptr) {
    setup_.logger->info("the checkpoint's grad scaler is not used by this run");
  }
  global_step_ = steps;
  batches_ = batches;
  skipped_steps_ = skipped_steps;
}

}  // namespace marlin
