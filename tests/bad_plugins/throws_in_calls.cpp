// Throws a type of its own in the call that its option names.
#include "bad_checkpointer.h"

namespace mine {
struct Oops {};
}  // namespace mine

static void fault(std::string_view call, const marlin::Options& options) {
  if (options.text("call") == call) throw mine::Oops();
}
static marlin::OptionTable table() { return {{.name = "call", .default_value = "save", .help = "The call that throws."}}; }
static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options& options) { return new bad::Checkpointer(&fault, options); }

MARLIN_PLUGIN(.name = "throws_in_calls", .version = "1", .options = &table, .make_checkpointer = &make);
