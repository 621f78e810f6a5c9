// A static initialiser throws, which nobody can catch.
#include <stdexcept>

#include "bad_checkpointer.h"

static int initialise() { throw std::runtime_error("no licence for this machine"); }
static const int initialised = initialise();

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "throws_at_load", .version = "1", .make_checkpointer = &make);
