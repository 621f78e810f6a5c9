// The one exception type of libmarlin.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "marlin/sdk/abi.h"

namespace marlin {

/// What the caller can do about it. Branch on this, never on the text.
enum class Errc : uint8_t {
  kInvalidArgument,  ///< A flag, option or argument is wrong: correct it.
  kNotFound,         ///< A file, plugin or entry that was named is not there.
  kCorrupt,          ///< A file is broken: take another one.
  kMismatch,         ///< A checkpoint is whole, but of another model or another set-up.
  kIo,               ///< The operating system refused; the text ends with its reason.
  kPlugin,           ///< A plugin cannot be used, or failed.
  kUnsupported,      ///< Valid, but not something this build can do.
  kTraining,         ///< A training or validation step failed.
};

/// The code's name as users read it, e.g. "corrupt".
[[nodiscard]] MARLIN_ABI const char* to_string(Errc code) noexcept;

/// Every failure that libmarlin reports. what(): one line that says what, on what, why, and what to do.
class MARLIN_ABI Error : public std::runtime_error {
 public:
  Error(Errc code, const std::string& message);
  ~Error() override;  // out of line: one typeinfo for the process
  Error(const Error&) = default;
  Error& operator=(const Error&) = default;

  [[nodiscard]] Errc code() const noexcept { return code_; }

 private:
  Errc code_;
};

}  // namespace marlin
