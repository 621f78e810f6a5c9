#include "marlin/sdk/metrics.h"

#include <algorithm>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {

void Metrics::set(std::string_view name, double value) {
  for (Entry& entry : entries_) {
    if (entry.first == name) {
      entry.second = value;
      return;
    }
  }
  entries_.emplace_back(name, value);
}

const double* Metrics::find(std::string_view name) const noexcept {
  for (const Entry& entry : entries_) {
    if (entry.first == name) return &entry.second;
  }
  return nullptr;
}

double Metrics::at(std::string_view name) const {
  if (const double* value = find(name)) return *value;
  std::vector<std::string> names;
  for (const Entry& entry : entries_) names.push_back(entry.first);
  throw Error(Errc::kNotFound, concat("no metric '", name, "'; there are: ", names.empty() ? "none" : join(names)));
}

void Metrics::merge(const Metrics& other) {
  for (const Entry& entry : other.entries_) set(entry.first, entry.second);
}

}  // namespace marlin
