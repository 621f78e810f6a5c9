#include "marlin/core/data/sample_context.h"

#include <ATen/CPUGeneratorImpl.h>

#include "data/seeds.h"

namespace marlin {

void SampleContext::move_to(uint64_t seed, int64_t epoch, int64_t index) noexcept {
  seed_ = seed;
  epoch_ = epoch;
  index_ = index;
  seeded_ = false;
}

at::Generator& SampleContext::generator() {
  if (seeded_) return generator_;
  const uint64_t seed = detail::mixed(detail::mixed(seed_, epoch_), index_);
  if (generator_.defined()) generator_.set_current_seed(seed);
  else generator_ = at::detail::createCPUGenerator(seed);
  seeded_ = true;
  return generator_;
}

}  // namespace marlin
