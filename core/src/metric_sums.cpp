#include "marlin/core/metric_sums.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

// The one element of a tensor on the CPU. item() costs most of a microsecond; the usual types are read in place.
double cpu_scalar(const at::Tensor& value) {
  if (value.layout() == at::kStrided && !value.is_neg()) {
    switch (value.scalar_type()) {
      case at::kFloat: return *value.const_data_ptr<float>();
      case at::kDouble: return *value.const_data_ptr<double>();
      case at::kLong: return static_cast<double>(*value.const_data_ptr<int64_t>());
      default: break;
    }
  }
  return value.item<double>();
}

void add_on_device(at::Tensor& total, const at::Tensor& value, double weight) {
  const at::NoGradGuard no_grad;
  if (!total.defined()) total = at::zeros({}, value.options().dtype(value.is_mps() ? at::kFloat : at::kDouble).requires_grad(false));
  total.add_(value.detach().reshape({}), weight);
}

}  // namespace

MetricSums::Sum& MetricSums::sum(std::string_view name) {
  for (Sum& sum : sums_) {
    if (sum.name == name) return sum;
  }
  Sum& added = sums_.emplace_back();
  added.name = name;
  return added;
}

void MetricSums::add(std::string_view name, const MetricValue& value, double weight) {
  const auto* tensor = std::get_if<at::Tensor>(&value);
  if (tensor != nullptr && (!tensor->defined() || tensor->numel() != 1)) {
    throw Error(Errc::kTraining, concat("metric '", name, "' must be a number or a tensor of one element, got ",
                                        tensor->defined() ? concat("shape ", tensor->sizes()) : "an undefined tensor"));
  }
  Sum& into = sum(name);
  if (weight == 0.0) return;  // a rank without samples may bring the mean of nothing, NaN, which times 0 is still NaN
  if (tensor == nullptr) {
    into.total += std::get<double>(value) * weight;
  } else if (tensor->is_cpu()) {
    into.total += cpu_scalar(*tensor) * weight;
  } else {
    if (into.device_total.defined() && into.device_total.device() != tensor->device()) {
      into.total += into.device_total.item<double>();
      into.device_total.reset();
    }
    add_on_device(into.device_total, *tensor, weight);
  }
  into.weight += weight;
}

void MetricSums::add(const MetricSums& other) {
  for (const Sum& theirs : other.sums_) {
    Sum& ours = sum(theirs.name);
    ours.total += theirs.total;
    ours.weight += theirs.weight;
    if (!theirs.device_total.defined()) continue;
    if (!ours.device_total.defined()) {
      ours.device_total = theirs.device_total.clone();
    } else if (ours.device_total.device() == theirs.device_total.device()) {
      ours.device_total.add_(theirs.device_total);
    } else {
      ours.total += theirs.device_total.item<double>();
    }
  }
}

void MetricSums::clear() {
  for (Sum& sum : sums_) {
    sum.total = sum.weight = 0.0;
    sum.device_total.reset();
  }
}

bool MetricSums::empty() const noexcept {
  return std::all_of(sums_.begin(), sums_.end(), [](const Sum& sum) { return sum.weight == 0.0; });
}

Metrics MetricSums::means(std::string_view prefix) const {
  Metrics means;
  for (const Sum& sum : sums_) {
    if (sum.weight == 0.0) continue;
    means.set(concat(prefix, sum.name), total_of(sum) / sum.weight);
  }
  return means;
}

double MetricSums::total_of(const Sum& sum) { return sum.total + (sum.device_total.defined() ? sum.device_total.item<double>() : 0.0); }

std::string MetricSums::names() const {
  std::vector<std::string> names;
  for (const Sum& sum : sums_) names.push_back(sum.name);
  return join(names);
}

void MetricSums::append_to(std::vector<double>& numbers) const {
  for (const Sum& sum : sums_) {
    numbers.push_back(total_of(sum));
    numbers.push_back(sum.weight);
  }
}

void MetricSums::take(const double* numbers) {
  for (Sum& sum : sums_) {
    sum.total = *numbers++;
    sum.weight = *numbers++;
    sum.device_total.reset();
  }
}

StateDict MetricSums::get_state() const {
  StateDict state;
  for (const Sum& sum : sums_) {
    state.set(sum.name, Tuple{{total_of(sum), sum.weight}});
  }
  return state;
}

void MetricSums::update_state(const StateDict& state) {
  std::vector<Sum> sums;
  for (const auto& [name, value] : state) {
    const std::vector<Value>& pair = value.as_items();
    const auto* text = std::get_if<std::string>(&name);
    if (text == nullptr || pair.size() != 2) throw Error(Errc::kMismatch, concat("sum of a metric '", to_string(name), "': must be a pair of sum and weight"));
    Sum& sum = sums.emplace_back();
    sum.name = *text;
    sum.total = pair[0].as_double();
    sum.weight = pair[1].as_double();
  }
  sums_ = std::move(sums);
}

}  // namespace marlin
