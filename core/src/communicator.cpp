#include "marlin/core/communicator.h"

namespace marlin {

PeerLost::~PeerLost() = default;
Communicator::~Communicator() = default;
Communicator::Work::~Work() = default;

}  // namespace marlin
