// A backend that steps as "sp" does, and in the call that its option names throws a type of its own or ends the process.
#include <cstdlib>
#include <string>

#include "marlin/core/backends/sp_backend.h"
#include "marlin/sdk/plugin.h"

namespace mine {
struct Oops {};

int* volatile nothing = nullptr;

class Backend : public marlin::SingleProcessBackend {
 public:
  Backend(std::string call, std::string how) : call_(std::move(call)), how_(std::move(how)) {}
  void init(const marlin::BackendSetup& setup) override { return fault("init"), SingleProcessBackend::init(setup); }
  marlin::EpochResult train(marlin::DataLoader& loader, int64_t epoch, int64_t steps_done, marlin::StepListener& listener) override {
    return fault("train"), SingleProcessBackend::train(loader, epoch, steps_done, listener);
  }
  marlin::StateDict get_state() const override { return fault("get_state"), SingleProcessBackend::get_state(); }

 private:
  void fault(const char* call) const {
    if (call_ != call) return;
    if (how_ == "exit") std::exit(0);
    if (how_ == "null") *nothing = 1;
    throw Oops();
  }
  std::string call_, how_;
};
}  // namespace mine

static marlin::OptionTable table() { return {{.name = "call", .default_value = "none", .help = "The call that goes wrong."}, {.name = "how", .default_value = "throw", .help = "How."}}; }
static marlin::TrainerBackend* make(marlin::HostContext&, const marlin::Options& options) { return new mine::Backend(options.text("call"), options.text("how")); }

MARLIN_PLUGIN(.name = "throwing_backend", .version = "1", .options = &table, .make_backend = &make);
