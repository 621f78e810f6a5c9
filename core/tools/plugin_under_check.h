// A plugin that is checked: loaded and made in the process of the check.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "marlin/core/plugin_host.h"
#include "marlin/testing/check.h"
#include "marlin/tools/command.h"

namespace marlin::plugin_tool {

struct PluginUnderCheck {
  std::string file;  ///< Absolute.
  PluginKind kind = PluginKind::kCheckpointer;
  std::vector<tool::Arguments::Other> options;  ///< As typed.

  /// Each loads the plugin, so that it is called in the process of a check only; what it makes goes before that process.
  /// @throws Error as PluginHost, kInvalidArgument for an option.
  [[nodiscard]] std::unique_ptr<AbstractCheckpointer> make_checkpointer(const HostContext& host) const;
  [[nodiscard]] std::unique_ptr<Writer> make_writer(const HostContext& host) const;
  [[nodiscard]] std::unique_ptr<TrainerBackend> make_backend(const HostContext& host) const;
  [[nodiscard]] std::unique_ptr<DeviceSupport> make_device(const HostContext& host) const;
};

/// A check of plugins that are no checkpointers, whose contract is marlin/testing's.
struct PartCheck {
  std::string name;
  std::string (*run)(const PluginUnderCheck& plugin, const std::filesystem::path& folder);
};
[[nodiscard]] const std::vector<PartCheck>& writer_checks();
[[nodiscard]] const std::vector<PartCheck>& backend_checks();
[[nodiscard]] const std::vector<PartCheck>& device_checks();

}  // namespace marlin::plugin_tool
