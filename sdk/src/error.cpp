#include "marlin/sdk/error.h"

namespace marlin {

const char* to_string(Errc code) noexcept {
  switch (code) {
    case Errc::kInvalidArgument: return "invalid argument";
    case Errc::kNotFound: return "not found";
    case Errc::kCorrupt: return "corrupt";
    case Errc::kMismatch: return "mismatch";
    case Errc::kIo: return "input/output";
    case Errc::kPlugin: return "plugin";
    case Errc::kUnsupported: return "unsupported";
    case Errc::kTraining: return "training";
  }
  return "unknown";
}

Error::Error(Errc code, const std::string& message) : std::runtime_error(message), code_(code) {}
Error::~Error() = default;

}  // namespace marlin
