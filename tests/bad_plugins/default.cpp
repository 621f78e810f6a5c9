// Takes the name of the built-in checkpointer.
#include "marlin/sdk/plugin.h"

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "default", .version = "1", .make_checkpointer = &make);
