#include "marlin/core/connect_ranks.h"

#include <cmath>

#include "distributed/process_group.h"
#include "launch/ranks.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {

std::shared_ptr<Communicator> connect_ranks(const ConnectRanksOptions& options) {
  if (!(options.timeout_seconds >= 1.0 && options.timeout_seconds <= 1e6)) {
    throw Error(Errc::kInvalidArgument, concat("timeout_seconds: must be 1 to 1000000, got ", options.timeout_seconds));
  }
  distributed::ConnectOptions connect;
  connect.ranks = launch::find_ranks();
  if (connect.ranks.world_size == 1) return nullptr;
  connect.timeout = std::chrono::milliseconds(std::llround(options.timeout_seconds * 1e3));
  connect.logger = options.logger;
  connect.shared_memory = options.shared_memory;
  connect.on_stuck = options.on_stuck;
  if (options.device != nullptr) connect.make_device_group = distributed::group_factory(*options.device);
  return distributed::connect(connect);
}

}  // namespace marlin
