// A library that it is linked with is linked with a LibTorch under another name; see CMakeLists.txt.
#include "marlin/sdk/plugin.h"

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "torch_below", .version = "1", .make_checkpointer = &make);
