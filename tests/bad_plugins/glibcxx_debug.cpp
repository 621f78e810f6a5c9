// Built with -D_GLIBCXX_DEBUG; see CMakeLists.txt.
#include "marlin/sdk/plugin.h"

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "glibcxx_debug", .version = "1", .make_checkpointer = &make);
