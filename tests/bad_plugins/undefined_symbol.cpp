// Uses a function that no library has.
#include "marlin/sdk/plugin.h"

extern "C" marlin::AbstractCheckpointer* marlin_test_function_that_is_nowhere();

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return marlin_test_function_that_is_nowhere(); }

MARLIN_PLUGIN(.name = "undefined_symbol", .version = "1", .make_checkpointer = &make);
