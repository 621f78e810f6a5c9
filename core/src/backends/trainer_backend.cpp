#include "marlin/core/trainer_backend.h"

namespace marlin {

TrainerBackend::~TrainerBackend() = default;
int64_t TrainerBackend::skipped_steps() const { return 0; }
std::vector<std::string> TrainerBackend::differences(const StateDict&) const { return {}; }

}  // namespace marlin
