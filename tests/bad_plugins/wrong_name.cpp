// Its descriptor says another name than its file.
#include "marlin/sdk/plugin.h"

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "right_name", .version = "1", .make_checkpointer = &make);
