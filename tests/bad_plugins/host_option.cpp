// Declares options that every checkpointer has from the host.
#include "marlin/sdk/plugin.h"

static marlin::OptionTable table() { return {{.name = "period", .help = "Mine."}, {.name = "verify", .help = "Mine, too."}}; }

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "host_option", .version = "1", .options = &table, .make_checkpointer = &make);
