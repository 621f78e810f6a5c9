// Numbers of the ZIP format (PKWARE's APPNOTE.TXT 6.3) and how bytes are put together. No LibTorch header.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <string>

namespace marlin::archive {

static_assert(std::endian::native == std::endian::little, "the archive is little-endian and is written and read in place");

inline constexpr uint32_t kLocalHeader = 0x04034b50;
inline constexpr uint32_t kDescriptor = 0x08074b50;
inline constexpr uint32_t kCentralHeader = 0x02014b50;
inline constexpr uint32_t kZip64End = 0x06064b50;
inline constexpr uint32_t kZip64Locator = 0x07064b50;
inline constexpr uint32_t kEnd = 0x06054b50;

inline constexpr uint64_t kLocalHeaderSize = 30;
inline constexpr uint64_t kCentralHeaderSize = 46;
inline constexpr uint64_t kZip64EndSize = 56;
inline constexpr uint64_t kZip64LocatorSize = 20;
inline constexpr uint64_t kEndSize = 22;

inline constexpr uint16_t kEncryptedFlag = 0x0001;
inline constexpr uint16_t kDescriptorFlag = 0x0008;  ///< CRC-32 and sizes follow the data.
inline constexpr uint16_t kUtf8Flag = 0x0800;
inline constexpr uint16_t kZip64Extra = 0x0001;
inline constexpr uint32_t kSeeZip64 = 0xffffffff;    ///< The number is too large for its field: a ZIP64 field has it.

/// Where storages start in the file: multiples of this, so that a mapping of it can be used as it is.
inline constexpr uint64_t kAlignment = 64;

template <std::unsigned_integral T>
void put(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

}  // namespace marlin::archive
