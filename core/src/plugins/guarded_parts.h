// What plugins make, behind the seam: whatever it throws becomes an Error that says whose call it was.
#pragma once

#include <memory>

#include "marlin/core/device_support.h"
#include "marlin/core/trainer_backend.h"
#include "marlin/sdk/seam.h"
#include "marlin/sdk/writer.h"

namespace marlin {

[[nodiscard]] std::unique_ptr<DeviceSupport> guarded_device(std::shared_ptr<const Seam> seam, std::unique_ptr<DeviceSupport> device);
[[nodiscard]] std::unique_ptr<Writer> guarded_writer(std::shared_ptr<const Seam> seam, std::unique_ptr<Writer> writer);

/// Errors that leave train() and validate() stay as they are, and nobody watches how long they take.
[[nodiscard]] std::unique_ptr<TrainerBackend> guarded_backend(std::shared_ptr<const Seam> seam, std::unique_ptr<TrainerBackend> backend);

}  // namespace marlin
