// Takes the name of a built-in writer.
#include "marlin/sdk/plugin.h"

static marlin::Writer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "stdout", .version = "1", .make_writer = &make);
