// Built with -fsanitize=address; see CMakeLists.txt.
#include "marlin/sdk/plugin.h"

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "sanitized", .version = "1", .make_checkpointer = &make);
