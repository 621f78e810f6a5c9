// --checkpointer best_k: the checkpointer itself is in marlin::checkpointers, for programs that link it.
#include "marlin/checkpointers/best_k_checkpointer.h"
#include "marlin/sdk/plugin.h"

namespace {

marlin::AbstractCheckpointer* make(marlin::HostContext& host, const marlin::Options& options) {
  return new marlin::BestKCheckpointer(marlin::parse<marlin::BestKOptions>(options), {}, host);
}

}  // namespace

MARLIN_PLUGIN(.name = "best_k", .version = "1.0.0", .options = &marlin::options_of<marlin::BestKOptions>, .make_checkpointer = &make);
