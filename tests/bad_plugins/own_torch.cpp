// Linked with a LibTorch under another name; see CMakeLists.txt. Its code leaves a trace if it runs.
#include <cstdlib>

#include "marlin/sdk/plugin.h"

static const int ran = ::setenv("MARLIN_TEST_PLUGIN_CODE_RAN", "own_torch", 1);

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "own_torch", .version = "1", .make_checkpointer = &make);
