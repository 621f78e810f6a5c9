// Fails when it is asked for its options.
#include "marlin/sdk/plugin.h"

static marlin::OptionTable table() { throw 42; }

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "throwing_options", .version = "1", .options = &table, .make_checkpointer = &make);
