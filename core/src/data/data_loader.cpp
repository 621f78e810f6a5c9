#include "marlin/core/data/data_loader.h"

#include "marlin/sdk/text.h"

namespace marlin {

DataLoader::~DataLoader() = default;

bool DataLoader::drop_last() const { return false; }

bool DataLoader::interrupted() const { return false; }

std::optional<int64_t> DataLoader::num_batches() const {
  const std::optional<int64_t> samples = num_samples();
  if (!samples) return std::nullopt;
  const int64_t whole = *samples / batch_size();
  const bool short_one = *samples % batch_size() != 0 && !drop_last();
  return whole + (short_one ? 1 : 0);
}

std::optional<bool> DataLoader::at_end() const {
  const std::optional<int64_t> samples = num_samples();
  if (!samples) return std::nullopt;
  return *samples - consumed_samples() < (drop_last() ? batch_size() : 1);
}

std::vector<std::string> DataLoader::differences(const StateDict& state) const {
  const Value* value = state.find("num_samples");
  const auto* theirs = value == nullptr ? nullptr : value->get_if<int64_t>();
  const std::optional<int64_t> ours = num_samples();
  if (theirs == nullptr || !ours || *theirs == *ours) return {};
  return {concat("data set: ", *theirs, " samples an epoch in the file, ", *ours, " in this run")};
}

}  // namespace marlin
