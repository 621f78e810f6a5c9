// A backend that steps as "sp" does, and throws a type of its own in the call that its option names.
#include <string>

#include "marlin/core/backends/sp_backend.h"
#include "marlin/sdk/plugin.h"

namespace mine {
struct Oops {};

class Backend : public marlin::SingleProcessBackend {
 public:
  explicit Backend(std::string call) : call_(std::move(call)) {}
  void init(const marlin::BackendSetup& setup) override { return fault("init"), SingleProcessBackend::init(setup); }
  marlin::EpochResult train(marlin::DataLoader& loader, int64_t epoch, int64_t steps_done, marlin::StepListener& listener) override {
    return fault("train"), SingleProcessBackend::train(loader, epoch, steps_done, listener);
  }
  marlin::StateDict get_state() const override { return fault("get_state"), SingleProcessBackend::get_state(); }

 private:
  void fault(const char* call) const {
    if (call_ == call) throw Oops();
  }
  std::string call_;
};
}  // namespace mine

static marlin::OptionTable table() { return {{.name = "call", .default_value = "none", .help = "The call that throws."}}; }
static marlin::TrainerBackend* make(marlin::HostContext&, const marlin::Options& options) { return new mine::Backend(options.text("call")); }

MARLIN_PLUGIN(.name = "throwing_backend", .version = "1", .options = &table, .make_backend = &make);
