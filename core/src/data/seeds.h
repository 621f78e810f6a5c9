// Seeds made of several numbers.
#pragma once

#include <cstdint>

namespace marlin::detail {

inline uint64_t splitmix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Neighbouring seeds and epochs must not share orders, as seed + epoch would: (0, 1) and (1, 0).
inline uint64_t mixed(uint64_t seed, int64_t number) { return splitmix64(splitmix64(seed) ^ static_cast<uint64_t>(number)); }

}  // namespace marlin::detail
