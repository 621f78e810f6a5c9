#include "distributed/gloo_group.h"

#define USE_C10D_GLOO  // it is in libtorch_cpu; its headers, as far as this one needs them, are in gloo/
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <cstdlib>
#include <exception>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::distributed {
namespace {

using Gloo = c10d::ProcessGroupGloo;
using Devices = std::vector<std::shared_ptr<::gloo::transport::Device>>;

constexpr const char* kInterfaces = "GLOO_SOCKET_IFNAME";  // Python's, too

Devices devices_of(const std::string& address) {
  const char* given = std::getenv(kInterfaces);
  Devices devices;
  std::string at;
  try {
    if (given == nullptr || *given == '\0') return {Gloo::createDeviceForHostname(at = address)};
    for (const std::string& interface : split(given, ',')) devices.push_back(Gloo::createDeviceForInterface(at = interface));
    return devices;
  } catch (const std::exception&) {  // a text with Gloo's source lines
    if (given == nullptr || *given == '\0') {
      throw Error(Errc::kInvalidArgument, concat("the other ranks reach this machine at ", at, ", which is no address of its own; name its network interface: set ", kInterfaces, " (as in ", kInterfaces, "=eth0)"));
    }
    throw Error(Errc::kInvalidArgument, concat(kInterfaces, "='", one_line(given), "': there is no network interface '", one_line(at), "' with an address; correct it, or unset it"));
  }
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> make_gloo_group(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, std::chrono::milliseconds limit, const std::string& address) {
  const auto options = Gloo::Options::create(limit);
  options->devices = devices_of(address);
  return c10::make_intrusive<Gloo>(store, rank, size, options);
}

}  // namespace marlin::distributed
