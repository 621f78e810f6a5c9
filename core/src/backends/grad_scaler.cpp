#include "marlin/core/backends/grad_scaler.h"

#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

void check(const GradScalerOptions& options, Errc code) {
  const auto require = [code](bool ok, const char* name, double value, const char* range) {
    if (!ok) throw Error(code, concat("grad scaler: ", name, " is ", value, ", and must be ", range));
  };
  require(std::isfinite(static_cast<float>(options.init_scale)) && static_cast<float>(options.init_scale) > 0.0F, "init_scale", options.init_scale, "above 0");
  require(std::isfinite(options.growth_factor) && options.growth_factor > 1.0, "growth_factor", options.growth_factor, "above 1");
  require(options.backoff_factor > 0.0 && options.backoff_factor < 1.0, "backoff_factor", options.backoff_factor, "above 0 and below 1");
  require(options.growth_interval >= 1, "growth_interval", static_cast<double>(options.growth_interval), "at least 1");
}

// Gradients that one kernel takes together.
struct Group {
  at::Device device;
  at::ScalarType type;
  std::vector<at::Tensor> gradients;
};

std::vector<Group> grouped(const std::vector<at::Tensor>& gradients) {
  std::vector<Group> groups;
  for (const at::Tensor& gradient : gradients) {
    if (!gradient.defined()) continue;
    if (gradient.scalar_type() == at::kHalf) throw Error(Errc::kUnsupported, "grad scaler: a parameter is float16, and so is its gradient: keep parameters in float32, and leave float16 to autocast");
    const at::Tensor values = gradient.is_sparse() ? gradient._values() : gradient;
    Group* into = nullptr;
    for (Group& group : groups) {
      if (group.device == values.device() && group.type == values.scalar_type()) into = &group;
    }
    if (into == nullptr) into = &groups.emplace_back(Group{values.device(), values.scalar_type(), {}});
    into->gradients.push_back(values);
  }
  return groups;
}

}  // namespace

GradScaler::GradScaler(const GradScalerOptions& options) : options_(options), scale_(static_cast<float>(options.init_scale)) { check(options_, Errc::kInvalidArgument); }

at::Tensor GradScaler::scale(const at::Tensor& loss) const { return loss * scale_; }

bool GradScaler::unscale(const std::vector<at::Tensor>& gradients) const {
  bool finite = true;
  for (Group& group : grouped(gradients)) {
    const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat).device(group.device);
    at::Tensor found_inf = at::zeros({1}, options);
    at::_amp_foreach_non_finite_check_and_unscale_(group.gradients, found_inf, at::full({1}, 1.0 / scale_, options));
    finite &= found_inf.item<float>() == 0.0F;
  }
  return finite;
}

void GradScaler::update(bool overflowed) {
  if (overflowed) {
    scale_ = static_cast<float>(scale_ * options_.backoff_factor);
    growth_tracker_ = 0;
  } else if (++growth_tracker_ >= options_.growth_interval) {
    const auto grown = static_cast<float>(scale_ * options_.growth_factor);
    if (std::isfinite(grown)) scale_ = grown;
    growth_tracker_ = 0;
  }
}

StateDict GradScaler::get_state() const {
  return {{"scale", scale_},
          {"growth_factor", options_.growth_factor},
          {"backoff_factor", options_.backoff_factor},
          {"growth_interval", options_.growth_interval},
          {"_growth_tracker", growth_tracker_}};
}

void GradScaler::update_state(const StateDict& state) {
  GradScalerOptions options;
  options.init_scale = state.at("scale").as_double();
  options.growth_factor = state.at("growth_factor").as_double();
  options.backoff_factor = state.at("backoff_factor").as_double();
  options.growth_interval = state.at("growth_interval").as_int();
  const int64_t tracker = state.at("_growth_tracker").as_int();
  check(options, Errc::kMismatch);
  if (tracker < 0) throw Error(Errc::kMismatch, concat("grad scaler: _growth_tracker is ", tracker, ", and must be at least 0"));
  options_ = options;
  scale_ = static_cast<float>(options.init_scale);
  growth_tracker_ = tracker;
}

}  // namespace marlin
