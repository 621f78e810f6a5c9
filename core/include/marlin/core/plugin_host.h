// Finds, checks and loads plugins.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "marlin/core/trainer_backend.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/checkpointer.h"
#include "marlin/sdk/host.h"
#include "marlin/sdk/options.h"
#include "marlin/sdk/plugin.h"
#include "marlin/sdk/writer.h"

namespace marlin {

enum class PluginKind : uint8_t { kCheckpointer, kBackend, kWriter };
[[nodiscard]] MARLIN_ABI const char* to_string(PluginKind kind) noexcept;  ///< "checkpointer", "backend" or "writer"

/// A plugin that passed every check.
struct LoadedPlugin {
  std::string name;     ///< As its file and its descriptor say.
  std::string version;
  std::string file;     ///< Absolute.
  PluginKind kind = PluginKind::kCheckpointer;
  OptionTable options;  ///< The plugin's own; those that every checkpointer has from the host are not in it.
  const PluginDescriptor* descriptor = nullptr;
};

/// Loads plugins and makes things with them. It outlives what it makes. One thread at a time.
///
/// A library that was loaded stays loaded for the life of the process, also one that was refused afterwards.
/// Every Error is of code kPlugin; its one line says what, which file, why, and what to do.
class MARLIN_ABI PluginHost {
 public:
  /// Folders searched for a plain name, in this order: those given, those of the environment's MARLIN_PLUGIN_PATH (separated
  /// by ':'), and marlin/plugins beside the libmarlin.so that is running.
  PluginHost(std::vector<std::string> plugin_path, HostContext context);
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

  /// The folders that are searched, whether they exist or not.
  [[nodiscard]] std::vector<std::string> folders() const;
  /// The names of the lib*.so files in them, sorted. None is opened.
  [[nodiscard]] std::vector<std::string> available() const;

 private:
  [[nodiscard]] std::string find(const std::string& name) const;

  std::vector<std::string> folders_;
  HostContext context_;
  std::vector<std::unique_ptr<LoadedPlugin>> loaded_;
};

}  // namespace marlin
