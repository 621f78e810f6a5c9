// Its factory throws a type that only this library knows.
#include "marlin/sdk/plugin.h"

namespace mine {
struct Oops {};
}  // namespace mine

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { throw mine::Oops(); }

MARLIN_PLUGIN(.name = "throws_own_type", .version = "1", .make_checkpointer = &make);
