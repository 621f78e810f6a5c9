#include "marlin/core/device_support.h"

namespace marlin {

DeviceSupport::~DeviceSupport() = default;  // here, so that there is one typeinfo

}  // namespace marlin
