// Changes the working folder in the call that its option names.
#include <unistd.h>

#include "bad_checkpointer.h"

static void fault(std::string_view call, const marlin::Options& options) {
  if (options.text("call") == call && ::chdir("/") != 0) throw "cannot change to /";
}
static marlin::OptionTable table() { return {{.name = "call", .default_value = "save", .help = "The call that changes the folder."}}; }
static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options& options) {
  fault("make", options);
  return new bad::Checkpointer(&fault, options);
}

MARLIN_PLUGIN(.name = "changes_folder", .version = "1", .options = &table, .make_checkpointer = &make);
