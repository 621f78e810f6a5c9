// XXH3 of 128 bits, as `xxhsum -H2` prints it. No LibTorch header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

struct XXH3_state_s;

namespace marlin::archive {

struct Hash128 {
  uint64_t high = 0, low = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

inline constexpr size_t kHexDigits = 32;
/// Lower-case, the highest digit first.
[[nodiscard]] std::string to_hex(const Hash128& hash);
/// Nothing unless it is exactly what to_hex() writes.
[[nodiscard]] std::optional<Hash128> hash_of_hex(std::string_view digits);

/// Takes bytes piece by piece.
class Hasher {
 public:
  Hasher();
  void update(std::span<const std::byte> bytes);
  [[nodiscard]] Hash128 digest() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const noexcept;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

[[nodiscard]] Hash128 hash_of(std::string_view bytes);

}  // namespace marlin::archive
