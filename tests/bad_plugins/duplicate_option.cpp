// An option table with everything that can be wrong in one.
#include "marlin/sdk/plugin.h"

static marlin::OptionTable table() {
  return {{.name = "a", .help = "First."},
          {.name = "a", .help = "Again."},
          {.name = "", .help = "No name."},
          {.name = "B c", .help = "Not a name."},
          {.name = "d", .type = marlin::OptionType::kInt, .default_value = "many", .help = "A default that is no number."},
          {.name = "e", .type = marlin::OptionType::kDouble, .default_value = "0", .help = "A default out of range.", .min = 1},
          {.name = "f", .type = static_cast<marlin::OptionType>(77), .help = "No type."}};
}

static marlin::AbstractCheckpointer* make(marlin::HostContext&, const marlin::Options&) { return nullptr; }

MARLIN_PLUGIN(.name = "duplicate_option", .version = "1", .options = &table, .make_checkpointer = &make);
