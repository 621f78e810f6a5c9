// Running means of metrics.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "marlin/sdk/metrics.h"
#include "marlin/sdk/state_dict.h"

namespace marlin {

/// A metric of one step: a number, or a tensor of one element on any device.
using MetricValue = std::variant<double, at::Tensor>;
using NamedValues = std::vector<std::pair<std::string, MetricValue>>;

/// Means weighted by samples, over steps. A value on a GPU is summed there and read only by means(): reading one scalar per
/// step would stall the device. One thread at a time.
class MARLIN_ABI MetricSums {
 public:
  /// With weight 0 (a rank without samples) only the name is taken, for the value may be the mean of nothing.
  /// @throws Error kTraining naming the metric if the tensor has not exactly one element.
  void add(std::string_view name, const MetricValue& value, double weight);
  void add(const MetricSums& other);
  /// Forgets the values; keeps the names' places.
  void clear();
  /// Whether nothing has any weight.
  [[nodiscard]] bool empty() const noexcept;
  /// `prefix` + name -> sum / weight, names without any weight left out.
  [[nodiscard]] Metrics means(std::string_view prefix) const;

  /// Names in their order, joined by ", ".
  [[nodiscard]] std::string names() const;
  /// Sum and weight of each name, in their order. What is summed on a device is read.
  void append_to(std::vector<double>& numbers) const;
  /// Takes what append_to() gave, of the same names. @param numbers two for each name.
  void take(const double* numbers);

  /// Name -> (sum, weight). What is summed on a device is read.
  [[nodiscard]] StateDict get_state() const;
  /// Goes on from there: what is then added comes to what it would have come to; of values on the CPU bit for bit.
  /// @throws Error kMismatch: not such a state. Nothing is then changed.
  void update_state(const StateDict& state);

 private:
  struct Sum {
    std::string name;
    double total = 0.0, weight = 0.0;
    at::Tensor device_total;  // float64 where the device has it; undefined: nothing was summed on a device
  };
  Sum& sum(std::string_view name);
  [[nodiscard]] static double total_of(const Sum& sum);

  std::vector<Sum> sums_;
};

}  // namespace marlin
