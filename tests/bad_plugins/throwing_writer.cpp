// A writer that throws a type of its own in the call that its option names.
#include <string>

#include "marlin/sdk/plugin.h"
#include "marlin/sdk/writer.h"

namespace mine {
struct Oops {};

class Writer : public marlin::Writer {
 public:
  explicit Writer(std::string call) : call_(std::move(call)) {}
  void open() override { fault("open"); }
  void write(const marlin::MetricsEvent&) override { fault("write"); }
  void flush() override { fault("flush"); }

 private:
  void fault(const char* call) const {
    if (call_ == call) throw Oops();
  }
  std::string call_;
};
}  // namespace mine

static marlin::OptionTable table() { return {{.name = "call", .default_value = "write", .help = "The call that throws."}}; }
static marlin::Writer* make(marlin::HostContext&, const marlin::Options& options) { return new mine::Writer(options.text("call")); }

MARLIN_PLUGIN(.name = "throwing_writer", .version = "1", .options = &table, .make_writer = &make);
