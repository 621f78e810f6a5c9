// What is checked of device support: that it says which devices there are, or why there is none.
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "plugin_under_check.h"

namespace marlin::plugin_tool {
namespace {

std::string counts_devices(const PluginUnderCheck& plugin, const std::filesystem::path& folder) {
  const auto device = plugin.make_device({.run_dir = folder});
  int count = 0;
  try {
    count = device->num_devices();
  } catch (const Error& error) {
    if (error.code() != Errc::kUnsupported) throw;
    return concat("it says that there is none: ", error.what());
  }
  if (count < 1) throw Error(Errc::kPlugin, concat("num_devices returned ", count, "; it must throw an Error kUnsupported that says why there is none"));
  for (int index = 0; index < count; ++index) device->use(index);
  return concat(count, count == 1 ? " device" : " devices");
}

}  // namespace

const std::vector<PartCheck>& device_checks() {
  static const std::vector<PartCheck> kChecks = {{"counts devices", &counts_devices}};
  return kChecks;
}

}  // namespace marlin::plugin_tool
