// A trainer program made of one module class.
#pragma once

#include <concepts>
#include <functional>
#include <memory>

#include "marlin/core/module_interface.h"
#include "marlin/core/trainer.h"
#include "marlin/sdk/options.h"

namespace marlin {

/// What a trainer program is made of.
struct Application {
  OptionTable module_options;   ///< Offered as --module.<name>.
  TrainerOptions defaults;      ///< Of the trainer's flags.
  std::function<std::shared_ptr<ModuleInterface>(const Options&)> make_module;
};

/// Parses the command line, builds the parts, trains, and prints one last line to standard output.
/// @return 0 done, 1 training failed, 2 bad flags, configuration or plugin, 3 a checkpoint that was asked for is missing, broken or
/// of another model, 4 trained, but a last save failed, 5 stopped by max_seconds, 128 + N stopped by signal N, both saved and with more
/// to do. Never throws: failures are one line on standard error.
[[nodiscard]] MARLIN_ABI int run_application(int argc, char** argv, const Application& application);

/// The application of a module class that is made from Options. Its static `options()` says which there are (none: no --module
/// flags); its static `trainer_defaults()` gives own defaults for the trainer's flags.
template <std::derived_from<ModuleInterface> Module>
[[nodiscard]] Application application_of() {
  Application application;
  if constexpr (requires { Module::options(); }) application.module_options = Module::options();
  if constexpr (requires { Module::trainer_defaults(); }) application.defaults = Module::trainer_defaults();
  application.make_module = [](const Options& options) -> std::shared_ptr<ModuleInterface> {
    if constexpr (std::constructible_from<Module, const Options&>) return std::make_shared<Module>(options);
    else return std::make_shared<Module>();
  };
  return application;
}

}  // namespace marlin

/// The main function of a trainer program for one module class.
#define MARLIN_MAIN(Module) \
  int main(int argc, char** argv) { return ::marlin::run_application(argc, argv, ::marlin::application_of<Module>()); }
