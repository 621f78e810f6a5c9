// Named numbers of a step, an epoch or a validation.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "marlin/sdk/abi.h"

namespace marlin {

/// Name -> value, in the order of first use. Names: "train/loss", "val/accuracy", "val/<loader>/accuracy".
class MARLIN_ABI Metrics {
 public:
  using Entry = std::pair<std::string, double>;

  /// Sets or replaces.
  void set(std::string_view name, double value);
  /// Null if there is none of that name.
  [[nodiscard]] const double* find(std::string_view name) const noexcept;
  /// @throws Error kNotFound that lists the names there are.
  [[nodiscard]] double at(std::string_view name) const;
  /// Sets all of the other's entries here, too.
  void merge(const Metrics& other);

  [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }
  [[nodiscard]] size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] auto begin() const noexcept { return entries_.begin(); }
  [[nodiscard]] auto end() const noexcept { return entries_.end(); }
  friend bool operator==(const Metrics&, const Metrics&) = default;

 private:
  std::vector<Entry> entries_;
};

}  // namespace marlin
