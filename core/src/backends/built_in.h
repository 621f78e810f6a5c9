// The backends that need no plugin.
#pragma once

#include <memory>
#include <string>

#include "marlin/core/trainer_backend.h"
#include "marlin/sdk/options.h"

namespace marlin {

/// What --backend.<option> a built-in backend has.
[[nodiscard]] OptionTable built_in_backend_options(const std::string& name);
/// @param name "sp", "sp-amp", "ddp" or "ddp-amp".
[[nodiscard]] std::unique_ptr<TrainerBackend> make_built_in_backend(const std::string& name, const Options& options);
/// Whether it is made for several processes.
[[nodiscard]] bool is_distributed(const std::string& name);

}  // namespace marlin
