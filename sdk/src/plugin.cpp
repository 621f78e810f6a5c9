#include "marlin/sdk/plugin.h"

namespace marlin {

const char* to_string(PluginKind kind) noexcept {
  switch (kind) {
    case PluginKind::kCheckpointer: return "checkpointer";
    case PluginKind::kBackend: return "backend";
    case PluginKind::kWriter: return "writer";
    case PluginKind::kDevice: return "device";
  }
  return "unknown";
}

}  // namespace marlin
