// Built with the other std::string, by -D_GLIBCXX_USE_CXX11_ABI=0; see CMakeLists.txt.
#include "marlin/sdk/plugin.h"

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "cxx11_abi", .version = "1", .make_checkpointer = &make);
