// A plugin that is in order, without options and linked without a symbol table of its own (-s): a writer.
#include "marlin/sdk/plugin.h"
#include "marlin/sdk/writer.h"

namespace {

class NoWriter final : public marlin::Writer {
 public:
  void write(const marlin::MetricsEvent&) override {}
};

marlin::Writer* make(marlin::HostContext&, const marlin::Options&) { return new NoWriter; }

}  // namespace

MARLIN_PLUGIN(.name = "good_writer", .version = "1", .make_writer = &make);
