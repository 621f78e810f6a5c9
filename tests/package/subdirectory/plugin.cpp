#include <marlin/checkpointers/default_checkpointer.h>
#include <marlin/sdk/plugin.h>

static marlin::AbstractCheckpointer* make(marlin::HostContext& host, const marlin::Options&) { return new marlin::DefaultCheckpointer({}, host); }
MARLIN_PLUGIN(.name = "plugin", .version = "1.0.0", .make_checkpointer = &make);
