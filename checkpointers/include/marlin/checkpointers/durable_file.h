// Files that are either whole under their name or not there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "marlin/checkpointers/archive.h"

namespace marlin {

/// `.<name>.<host>.<pid>.<starttime>.tmp`: no two live processes of one host ever make the same. `starttime`: the process's, in
/// clock ticks since the host started.
[[nodiscard]] MARLIN_ABI std::string temporary_name(std::string_view name);

/// Writes beside `target` under a temporary name and renames onto it, so that `target` is at every moment what it was before or
/// what it is now. Makes missing folders. Permissions follow the umask.
/// @throws Error kIo (path, reason), or whatever `write` throws. The temporary file is then gone and `target` as it was.
MARLIN_ABI void write_atomically(const std::filesystem::path& target, const std::function<void(ByteSink&)>& write);

/// Removes the temporary files in `folder` whose processes, on this host, have ended, if `ours` says so of the name they were
/// meant for. @return how many. Never throws for what it may not read or remove.
MARLIN_ABI int remove_stale_temporaries(const std::filesystem::path& folder, const std::function<bool(std::string_view)>& ours);

}  // namespace marlin
