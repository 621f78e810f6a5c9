// Which code in memory belongs to which plugin.
#pragma once

#include <cstdint>
#include <string>

namespace marlin {

/// Remembers where the code of a loaded library lies. @param within  any address of it. `title` is kept for the life of the process.
void remember_plugin_code(const void* within, const std::string& title);

/// The title of the plugin whose code that address belongs to; null: of none. Safe in a signal handler.
[[nodiscard]] const char* plugin_at(uintptr_t address) noexcept;

}  // namespace marlin
