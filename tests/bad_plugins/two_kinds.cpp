// Sets two factories where there must be one.
#include "marlin/sdk/plugin.h"

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }
static marlin::Writer* make_writer(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "two_kinds", .version = "1", .make_checkpointer = &make, .make_writer = &make_writer);
