#include "plugin_under_check.h"

#include <algorithm>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::plugin_tool {
namespace {

// Hosts outlive what is made with them: for as long as the process of the check.
PluginHost& new_host(const HostContext& context) {
  static std::vector<std::unique_ptr<PluginHost>> hosts;
  hosts.push_back(std::make_unique<PluginHost>(std::vector<std::string>{}, context));
  return *hosts.back();
}

// Of a program's flags, --checkpointer.prefix, only the last part is wanted here.
void refuse_prefix(const OptionTable& table, const std::string& name) {
  const std::string last = name.substr(name.rfind('.') + 1);
  if (last == name || std::ranges::find(table, name, &OptionSpec::name) != table.end() || std::ranges::find(table, last, &OptionSpec::name) == table.end()) return;
  throw Error(Errc::kInvalidArgument, concat("--", name, ": the plugin's own options have no prefix here; did you mean --", last, "?"));
}

Options options_of(const LoadedPlugin& plugin, const std::vector<tool::Arguments::Other>& given) {
  Options options(plugin.options);
  for (const auto& [name, value] : given) {
    const std::string flag = "--" + name;
    refuse_prefix(plugin.options, name);
    if (value) {
      options.set(name, *value, flag);
      continue;
    }
    for (const OptionSpec& spec : plugin.options) {
      if (spec.name == name && spec.type != OptionType::kBool) throw Error(Errc::kInvalidArgument, concat(flag, ": a value is missing"));
    }
    options.set(name, "true", flag);
  }
  return options;
}

template <class Made>
Made made_of(const PluginUnderCheck& plugin, const HostContext& context, Made (PluginHost::*make)(const LoadedPlugin&, const Options&)) {
  PluginHost& host = new_host(context);
  const LoadedPlugin& loaded = host.load(plugin.file, plugin.kind);
  return (host.*make)(loaded, options_of(loaded, plugin.options));
}

}  // namespace

std::unique_ptr<AbstractCheckpointer> PluginUnderCheck::make_checkpointer(const HostContext& host) const { return made_of(*this, host, &PluginHost::make_checkpointer); }
std::unique_ptr<Writer> PluginUnderCheck::make_writer(const HostContext& host) const { return made_of(*this, host, &PluginHost::make_writer); }
std::unique_ptr<TrainerBackend> PluginUnderCheck::make_backend(const HostContext& host) const { return made_of(*this, host, &PluginHost::make_backend); }
std::unique_ptr<DeviceSupport> PluginUnderCheck::make_device(const HostContext& host) const { return made_of(*this, host, &PluginHost::make_device); }

}  // namespace marlin::plugin_tool
