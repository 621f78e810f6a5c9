#include "marlin/core/trainer_backend.h"

namespace marlin {

TrainerBackend::~TrainerBackend() = default;

}  // namespace marlin
