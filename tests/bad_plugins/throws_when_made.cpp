// Its factory throws: what is out of order in the options, or a standard exception.
#include <stdexcept>

#include "marlin/sdk/error.h"
#include "marlin/sdk/plugin.h"

static marlin::OptionTable table() { return {{.name = "how", .help = "What to throw.", .choices = {"standard", "marlin"}}}; }

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options& options) {
  if (options.text("how") == "marlin") throw marlin::Error(marlin::Errc::kIo, "the store is closed");
  throw std::runtime_error("two\nlines");
}

MARLIN_PLUGIN(.name = "throws_when_made", .version = "1", .options = &table, .make_checkpointer = &make);
