// What is asked of a plugin before it is loaded, and of its options afterwards.
#pragma once

#include <string>

#include "marlin/core/plugin_host.h"
#include "plugin_file.h"

namespace marlin {

/// "libmine.so" of "mine".
[[nodiscard]] std::string plugin_file_name(const std::string& name);
/// The `mine` of "libmine.so"; empty: it is not of that form.
[[nodiscard]] std::string plugin_name_of(const std::string& file_name);

/// The flag that names plugins of that kind: "--checkpointer".
[[nodiscard]] const char* flag_of(PluginKind kind);

/// Everything that can be told from the file. @return its kind. @throws Error kPlugin: how it was built, what it is called, what
/// it makes, or a LibTorch of its own.
PluginKind check_before_loading(const PluginFile& file);

/// @throws Error kPlugin: it is of another kind than the one that was asked for.
void check_kind(const std::string& title, PluginKind kind, PluginKind wanted);

/// @throws Error kPlugin that names everything that is not in order.
void check_options(const LoadedPlugin& plugin);

}  // namespace marlin
