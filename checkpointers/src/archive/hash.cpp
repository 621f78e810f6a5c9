#include "archive/hash.h"

// libxxhash picks AVX2 or AVX-512 at run time in the functions named _dispatch, which only x86 has; its plain ones are compiled
// for SSE2 and take four times as long.
#ifdef MARLIN_XXHASH_DISPATCH
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#include <new>

namespace marlin::archive {

std::string to_hex(const Hash128& hash) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string digits;
  for (const uint64_t half : {hash.high, hash.low}) {
    for (int shift = 60; shift >= 0; shift -= 4) digits += kDigits[(half >> shift) & 15];
  }
  return digits;
}

std::optional<Hash128> hash_of_hex(std::string_view digits) {
  if (digits.size() != kHexDigits) return std::nullopt;
  Hash128 hash;
  for (size_t i = 0; i < kHexDigits; ++i) {
    const char c = digits[i];
    const bool is_letter = c >= 'a' && c <= 'f';
    if (!is_letter && (c < '0' || c > '9')) return std::nullopt;
    uint64_t& half = i < kHexDigits / 2 ? hash.high : hash.low;
    half = half << 4 | static_cast<uint64_t>(is_letter ? c - 'a' + 10 : c - '0');
  }
  return hash;
}

void Hasher::Free::operator()(XXH3_state_s* state) const noexcept { XXH3_freeState(state); }

Hasher::Hasher() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state_.get());
}

void Hasher::update(std::span<const std::byte> bytes) {
#ifdef MARLIN_XXHASH_DISPATCH
  XXH3_128bits_update_dispatch(state_.get(), bytes.data(), bytes.size());
#else
  XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
#endif
}

Hash128 Hasher::digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
  return {hash.high64, hash.low64};
}

Hash128 hash_of(std::string_view bytes) {
  Hasher hasher;
  hasher.update(std::as_bytes(std::span(bytes)));
  return hasher.digest();
}

}  // namespace marlin::archive
