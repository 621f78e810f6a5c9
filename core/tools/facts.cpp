#include "facts.h"

#include <string_view>
#include <vector>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "plugins/plugin_checks.h"

namespace marlin::plugin_tool {

std::string kinds_text(const PluginFile& file) {
  std::vector<std::string> kinds;
  for (const PluginKind kind : file.kinds) kinds.emplace_back(to_string(kind));
  return kinds.empty() ? "-" : join(kinds);
}

std::string built_for(const PluginFile& file) {
  const std::string_view marlin = file.facts.marlin.view();
  const bool told = file.facts.abi == kPluginAbi;
  return concat(told ? concat("libmarlin ", marlin, ", ") : concat("SDK ABI ", file.facts.abi, ", "), "LibTorch ", file.facts.torch_major, ".", file.facts.torch_minor);
}

std::string refusal(const PluginFile& file) {
  try {
    (void)check_before_loading(file);
    return {};
  } catch (const Error& error) {
    const std::string text = error.what(), start = concat("plugin ", file.path, ": ");
    return text.starts_with(start) ? text.substr(start.size()) : text;
  }
}

}  // namespace marlin::plugin_tool
