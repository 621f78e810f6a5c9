#include "marlin/core/optim/lr_scheduler.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::optim {
namespace {

void require_positive(const char* schedule, const char* name, int64_t value) {
  if (value < 1) throw Error(Errc::kInvalidArgument, concat(schedule, ": ", name, " must be at least 1, got ", value));
}

List list_of(const std::vector<double>& numbers) {
  List list;
  for (const double number : numbers) list.items.emplace_back(number);
  return list;
}

// A rate of Python's may be a tensor of one element.
double as_rate(const Value& value) {
  if (const auto* tensor = value.get_if<at::Tensor>(); tensor != nullptr && tensor->defined() && tensor->numel() == 1) return tensor->item<double>();
  return value.as_double();
}

const Value& entry(const StateDict& state, const char* name) {
  if (const Value* value = state.find(name)) return *value;
  throw Error(Errc::kMismatch, concat("learning-rate schedule: the state has no '", name, "'"));
}

}  // namespace

LRScheduler::LRScheduler(torch::optim::Optimizer& optimizer, Per per) : optimizer_(optimizer), per_(per) { base_lrs_ = get_last_lr(); }
LRScheduler::~LRScheduler() = default;

std::vector<double> LRScheduler::get_last_lr() const {
  std::vector<double> rates;
  for (const torch::optim::OptimizerParamGroup& group : std::as_const(optimizer_).param_groups()) rates.push_back(group.options().get_lr());
  return rates;
}

void LRScheduler::step() {
  ++last_epoch_;
  apply();
}

double LRScheduler::rate(int64_t count, size_t group) const { return base_lrs_.at(group) * factor(count, group); }

void LRScheduler::apply() {
  std::vector<torch::optim::OptimizerParamGroup>& groups = optimizer_.param_groups();
  if (groups.size() != base_lrs_.size()) {
    throw Error(Errc::kInvalidArgument, concat("the optimizer has ", groups.size(), " parameter groups, its learning-rate schedule was made for ",
                                               base_lrs_.size(), "; add groups before the schedule is made"));
  }
  for (size_t i = 0; i < groups.size(); ++i) groups[i].options().set_lr(rate(last_epoch_, i));
}

StateDict LRScheduler::get_state() const {
  return {{"base_lrs", list_of(base_lrs_)}, {"last_epoch", last_epoch_}, {"_step_count", last_epoch_ + 1}, {"_last_lr", list_of(get_last_lr())}};
}

struct LRScheduler::Position {
  int64_t last_epoch = 0;
  std::vector<double> base_lrs;
};

LRScheduler::Position LRScheduler::read(const StateDict& state) const {
  Position position{entry(state, "last_epoch").as_int(), {}};
  for (const Value& item : entry(state, "base_lrs").as_items()) position.base_lrs.push_back(as_rate(item));
  if (position.last_epoch < 0) {
    throw Error(Errc::kMismatch, concat("learning-rate schedule: last_epoch must be at least 0, found ", position.last_epoch));
  }
  if (position.base_lrs.size() != base_lrs_.size()) {
    throw Error(Errc::kMismatch, concat("learning-rate schedule: the state is of ", position.base_lrs.size(),
                                        " parameter groups, the optimizer has ", base_lrs_.size()));
  }
  return position;
}

std::vector<std::string> LRScheduler::differences(const StateDict& state) const {
  try {
    static_cast<void>(read(state));
    return {};
  } catch (const Error& error) {
    return {error.what()};
  }
}

void LRScheduler::update_state(const StateDict& state) {
  Position position = read(state);
  last_epoch_ = position.last_epoch;
  base_lrs_ = std::move(position.base_lrs);
  apply();
}

LambdaLR::LambdaLR(torch::optim::Optimizer& optimizer, std::function<double(int64_t)> function, Per per)
    : LRScheduler(optimizer, per), function_(std::move(function)) {
  if (!function_) throw Error(Errc::kInvalidArgument, "LambdaLR: the function is empty");
  apply();
}

double LambdaLR::factor(int64_t count, size_t) const { return function_(count); }

StepLR::StepLR(torch::optim::Optimizer& optimizer, int64_t step_size, double gamma, Per per)
    : LRScheduler(optimizer, per), step_size_(step_size), gamma_(gamma) {
  require_positive("StepLR", "step_size", step_size);
  apply();
}

double StepLR::factor(int64_t count, size_t) const { return std::pow(gamma_, static_cast<double>(count / step_size_)); }

LinearLR::LinearLR(torch::optim::Optimizer& optimizer, double start_factor, double end_factor, int64_t total_iters, Per per)
    : LRScheduler(optimizer, per), start_factor_(start_factor), end_factor_(end_factor), total_iters_(total_iters) {
  require_positive("LinearLR", "total_iters", total_iters);
  for (const double factor : {start_factor, end_factor}) {
    if (factor >= 0.0 && std::isfinite(factor)) continue;
    throw Error(Errc::kInvalidArgument, concat("LinearLR: factors must be finite and at least 0, got ", factor));
  }
  apply();
}

double LinearLR::factor(int64_t count, size_t) const {
  if (count >= total_iters_) return end_factor_;  // the line may miss its end by a rounding
  return start_factor_ + (end_factor_ - start_factor_) * static_cast<double>(count) / static_cast<double>(total_iters_);
}

CosineAnnealingLR::CosineAnnealingLR(torch::optim::Optimizer& optimizer, int64_t T_max, double eta_min, Per per)
    : LRScheduler(optimizer, per), T_max_(T_max), eta_min_(eta_min) {
  require_positive("CosineAnnealingLR", "T_max", T_max);
  apply();
}

double CosineAnnealingLR::rate(int64_t count, size_t group) const {
  const double angle = std::numbers::pi * static_cast<double>(count) / static_cast<double>(T_max_);
  return eta_min_ + (base_lrs().at(group) - eta_min_) * (1.0 + std::cos(angle)) / 2.0;
}

double CosineAnnealingLR::factor(int64_t count, size_t group) const { return rate(count, group) / base_lrs().at(group); }

}  // namespace marlin::optim
