#include "marlin/core/data/data_loader.h"

namespace marlin {

DataLoader::~DataLoader() = default;

bool DataLoader::drop_last() const { return false; }

std::optional<int64_t> DataLoader::num_batches() const {
  const std::optional<int64_t> samples = num_samples();
  if (!samples) return std::nullopt;
  const int64_t whole = *samples / batch_size();
  const bool short_one = *samples % batch_size() != 0 && !drop_last();
  return whole + (short_one ? 1 : 0);
}

}  // namespace marlin
