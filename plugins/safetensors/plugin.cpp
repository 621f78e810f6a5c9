// --checkpointer safetensors: the checkpointer itself is in marlin::checkpointers, for programs that link it.
#include "marlin/checkpointers/safetensors_checkpointer.h"
#include "marlin/sdk/plugin.h"

namespace {

marlin::AbstractCheckpointer* make(marlin::HostContext& host, const marlin::Options& options) {
  return new marlin::SafetensorsCheckpointer(marlin::parse<marlin::SafetensorsCheckpointerOptions>(options), host);
}

}  // namespace

MARLIN_PLUGIN(.name = "safetensors", .version = "1.0.0", .options = &marlin::options_of<marlin::SafetensorsCheckpointerOptions>, .make_checkpointer = &make);
