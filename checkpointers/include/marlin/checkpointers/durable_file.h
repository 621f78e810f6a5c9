// Files that are either whole under their name or not there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "marlin/checkpointers/file_system.h"
#include "marlin/sdk/abi.h"

namespace marlin {

/// Whether a call returns only when what it wrote outlives a power cut.
enum class Durability : uint8_t {
  kDurable,
  kUnsynced,  ///< The system writes it back when it sees fit. For files that can be made again, and for measuring.
};

/// `.<name>.<host>.<pid>.<starttime>.tmp`: no two live processes of one host ever make the same. `starttime`: the process's, in
/// clock ticks since the host started.
[[nodiscard]] MARLIN_ABI std::string temporary_name(std::string_view name);

/// Writes beside `target` under a temporary name and renames onto it, so that `target` is at every moment what it was before or
/// what it is now. Makes missing folders. Permissions follow the umask. Order, if durable: data, sync, rename, sync of the
/// folder; when it returns, older files may be removed.
/// @param size_bytes  of the whole file: checked against what is free before anything is written, and reserved.
/// @param write  fills the file, which is reserved; it need not flush, and neither syncs nor closes.
/// @throws Error kIo (path, reason), or whatever `write` throws. The temporary file is then gone and `target` as it was; only
///   if the folder cannot be synced at the end, `target` is new and whole, but a power cut may take it back.
MARLIN_ABI void write_atomically(const std::filesystem::path& target, uint64_t size_bytes, const std::function<void(WritableFile&)>& write,
                                 Durability durability = Durability::kDurable, FileSystem& file_system = posix_file_system());

/// Removes the temporary files in `folder` whose processes, on this host, have ended, if `ours` says so of the name they were
/// meant for. @return how many. Never throws for what it may not read or remove.
MARLIN_ABI int remove_stale_temporaries(const std::filesystem::path& folder, const std::function<bool(std::string_view)>& ours);

}  // namespace marlin
