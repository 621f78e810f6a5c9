// Where an archive's bytes go.
#pragma once

#include <cstddef>
#include <span>

#include "marlin/sdk/abi.h"

namespace marlin {

/// Takes bytes one piece after the other. One thread at a time.
class MARLIN_ABI ByteSink {
 public:
  ByteSink() = default;
  ByteSink(const ByteSink&) = delete;
  ByteSink& operator=(const ByteSink&) = delete;
  virtual ~ByteSink();  // out of line: one vtable, one typeinfo

  /// Appends all of `bytes`, which are borrowed for the call only.
  /// @throws Error kIo (path, reason). The sink then holds an unknown part of the bytes and is to be thrown away.
  virtual void append(std::span<const std::byte> bytes) = 0;
};

}  // namespace marlin
