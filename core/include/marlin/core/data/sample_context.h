// What reading one sample may depend on.
#pragma once

#include <ATen/core/Generator.h>

#include <cstdint>

#include "marlin/sdk/abi.h"

namespace marlin {

/// The sample that is to be read, and random numbers for it. Belongs to the thread that reads; valid during the call it is passed to.
class MARLIN_ABI SampleContext {
 public:
  /// Into the data set.
  [[nodiscard]] int64_t index() const noexcept { return index_; }
  [[nodiscard]] int64_t epoch() const noexcept { return epoch_; }
  /// Seeded from (seed, epoch, index): the same numbers for that sample of that epoch, whichever thread reads it, however often,
  /// and after whatever resume. The same generator throughout one call. (LibTorch seeds with 32 bits, so that among many samples two may
  /// now and then draw the same numbers.)
  [[nodiscard]] at::Generator& generator();

  /// For whoever reads: the next sample.
  void move_to(uint64_t seed, int64_t epoch, int64_t index) noexcept;

 private:
  uint64_t seed_ = 0;
  int64_t epoch_ = 0, index_ = 0;
  bool seeded_ = false;
  at::Generator generator_;  // made when first asked for, then seeded anew for each sample: making one costs microseconds
};

}  // namespace marlin
