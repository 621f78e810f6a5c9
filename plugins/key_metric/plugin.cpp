// --checkpointer key_metric: the checkpointer itself is in marlin::checkpointers, for programs that link it.
#include "marlin/checkpointers/key_metric_checkpointer.h"
#include "marlin/sdk/plugin.h"

namespace {

marlin::AbstractCheckpointer* make(marlin::HostContext& host, const marlin::Options& options) {
  return new marlin::KeyMetricCheckpointer(marlin::parse<marlin::KeyMetricOptions>(options), host);
}

}  // namespace

MARLIN_PLUGIN(.name = "key_metric", .version = "1.0.0", .options = &marlin::options_of<marlin::KeyMetricOptions>, .make_checkpointer = &make);
