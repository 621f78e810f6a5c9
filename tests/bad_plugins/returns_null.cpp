// Its factory makes nothing.
#include "marlin/sdk/plugin.h"

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "returns_null", .version = "1", .make_checkpointer = &make);
