#include "marlin/core/trainer_backend.h"

namespace marlin {

TrainerBackend::~TrainerBackend() = default;
std::vector<std::string> TrainerBackend::differences(const StateDict&) const { return {}; }

}  // namespace marlin
