// Finds, checks and loads plugins.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "marlin/core/device_support.h"
#include "marlin/core/trainer_backend.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/host.h"
#include "marlin/sdk/options.h"
#include "marlin/sdk/plugin.h"
#include "marlin/sdk/seam.h"
#include "marlin/sdk/writer.h"

namespace marlin {

/// A plugin that passed every check.
struct LoadedPlugin {
  std::string name;     ///< As its file and its descriptor say.
  std::string version;
  std::string file;     ///< Absolute.
  PluginKind kind = PluginKind::kCheckpointer;
  OptionTable options;  ///< The plugin's own; those that every checkpointer has from the host are not in it.
  const PluginDescriptor* descriptor = nullptr;

  [[nodiscard]] std::string title() const { return "plugin '" + name + "' (" + file + ")"; }  ///< As messages name it.
};

/// Names that plugins of a kind cannot have: "default" of checkpointers, say.
[[nodiscard]] MARLIN_ABI const std::vector<std::string>& built_in_names(PluginKind kind);

class CallWatch;

/// Loads plugins and makes things with them. It outlives what it makes. One thread at a time.
///
/// A library that was loaded stays loaded for the life of the process, also one that was refused afterwards.
/// Every Error is of code kPlugin or, if a plugin threw an Error, of its code; its one line says what, which file, why, and what to do.
/// What a plugin makes is guarded: whatever it throws becomes an Error that names plugin, file and call; a call that takes long is
/// warned about while it lasts; and the working folder is changed back if a call changed it and no other call ran beside it.
class MARLIN_ABI PluginHost {
 public:
  /// Folders searched for a plain name, in this order: those given, those of the environment's MARLIN_PLUGIN_PATH (separated
  /// by ':'), and marlin/plugins beside the libmarlin.so that is running.
  /// @param slow_call_seconds  a call that takes longer is warned about; epochs of a backend are not. Unit: seconds. Range: 0.001 to 1e8.
  PluginHost(std::vector<std::string> plugin_path, HostContext context, double slow_call_seconds = 5.0);
  PluginHost(const PluginHost&) = delete;
  PluginHost& operator=(const PluginHost&) = delete;
  ~PluginHost();

  /// Loads lib`name`.so of the first folder that has it or, if `name_or_path` holds '/', that file. The same file again: the
  /// same result. How it was built is read from the file before any of its code runs. The reference lives as long as the host.
  /// @throws Error kPlugin: there is none, it cannot be loaded, it was built otherwise than this libmarlin, its descriptor or
  ///   its option table is not in order, or it is not of the kind wanted.
  const LoadedPlugin& load(const std::string& name_or_path, PluginKind wanted);

  /// What the plugin makes of these options, named after the plugin.
  /// @throws Error kPlugin: the plugin threw (of whatever type), returned null, or is of another kind.
  [[nodiscard]] std::unique_ptr<AbstractCheckpointer> make_checkpointer(const LoadedPlugin& plugin, const Options& options);
  [[nodiscard]] std::unique_ptr<Writer> make_writer(const LoadedPlugin& plugin, const Options& options);
  [[nodiscard]] std::unique_ptr<TrainerBackend> make_backend(const LoadedPlugin& plugin, const Options& options);
  [[nodiscard]] std::unique_ptr<DeviceSupport> make_device(const LoadedPlugin& plugin, const Options& options);

  /// The folders that are searched, whether they exist or not.
  [[nodiscard]] std::vector<std::string> folders() const;
  /// The names of the lib*.so files in them, sorted. None is opened.
  [[nodiscard]] std::vector<std::string> available() const;

 private:
  [[nodiscard]] std::string find(const std::string& name) const;
  [[nodiscard]] const LoadedPlugin* loaded_before(const std::string& file, const std::string& name, PluginKind wanted) const;
  [[nodiscard]] std::shared_ptr<const Seam> seam_of(const LoadedPlugin& plugin) const;
  template <class Make> auto* made(const LoadedPlugin& plugin, PluginKind kind, const char* call, Make make, const Options& options);

  std::vector<std::string> folders_;
  HostContext context_;
  std::unique_ptr<CallWatch> watch_;
  std::vector<std::unique_ptr<LoadedPlugin>> loaded_;
};

}  // namespace marlin
