#include "backends/built_in.h"

#include "marlin/core/backends/ddp_backend.h"
#include "marlin/core/backends/sp_backend.h"

namespace marlin {
namespace {

bool is_amp(const std::string& name) { return name.ends_with("-amp"); }

}  // namespace

bool is_distributed(const std::string& name) { return name.starts_with("ddp"); }

OptionTable built_in_backend_options(const std::string& name) {
  OptionTable table;
  if (is_distributed(name)) table = option_table<DdpOptions>();
  if (!is_amp(name)) return table;
  for (OptionSpec& spec : option_table<AmpOptions>()) table.push_back(std::move(spec));
  return table;
}

std::unique_ptr<TrainerBackend> make_built_in_backend(const std::string& name, const Options& options) {
  if (is_distributed(name)) {
    const auto ddp = marlin::parse<DdpOptions>(options);
    if (is_amp(name)) return std::make_unique<DistributedBackend>(ddp, marlin::parse<AmpOptions>(options));
    return std::make_unique<DistributedBackend>(ddp);
  }
  if (is_amp(name)) return std::make_unique<SingleProcessBackend>(marlin::parse<AmpOptions>(options));
  return std::make_unique<SingleProcessBackend>();
}

}  // namespace marlin
