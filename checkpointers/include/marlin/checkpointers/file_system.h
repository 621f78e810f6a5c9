// Files and folders as saving needs them, behind an interface: a test can fail any call, or forget all that was not synced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "marlin/sdk/abi.h"
#include "marlin/sdk/host.h"

namespace marlin {

class FileSystem;

/// A file that is being written; FileSystem::create() makes it. Public calls retry interrupted system calls, go on after short
/// writes and turn what is left into Error kIo, "cannot write <path>: <reason of the system>"; "No space left on device" goes
/// with how much the file needs and how much is free. An implementation writes the do_ hooks.
///
/// write_at() and start_flush() may be called from several threads for ranges that do not overlap; all else from one at a time.
class MARLIN_ABI WritableFile {
 public:
  /// Closes it if close() was not called; what that reports is lost.
  virtual ~WritableFile();
  WritableFile(const WritableFile&) = delete;
  WritableFile& operator=(const WritableFile&) = delete;

  /// How messages name it.
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

  /// Makes the file `size_bytes` long and keeps room for all of it on the device, where that can be done.
  void reserve(uint64_t size_bytes);
  void write_at(uint64_t offset, std::span<const std::byte> bytes);
  /// Lets the device begin to write a range, and does not wait for it: a sync() later on takes less time. Promises nothing.
  void start_flush(uint64_t offset, uint64_t size_bytes);
  /// When it returns, the file's bytes are on the device. Its name need not be: see FileSystem::sync_directory().
  void sync();
  void close();

 protected:
  /// @param file_system  lives longer than the file.
  WritableFile(const FileSystem& file_system, std::filesystem::path path);

  /// Each: errno of the failure, or 0. EINTR: it is called again.
  [[nodiscard]] virtual int do_reserve(uint64_t size_bytes) = 0;
  /// `written`: how many of the first bytes, at least 1, if there is no failure. `bytes` is not empty.
  [[nodiscard]] virtual int do_write_at(uint64_t offset, std::span<const std::byte> bytes, size_t& written) = 0;
  [[nodiscard]] virtual int do_start_flush(uint64_t offset, uint64_t size_bytes) = 0;
  [[nodiscard]] virtual int do_sync() = 0;
  /// Leaves the file closed, also if it fails.
  [[nodiscard]] virtual int do_close() = 0;

 private:
  void check(int error) const;

  const FileSystem& file_system_;
  std::filesystem::path path_;
  uint64_t size_bytes_ = 0;  // that was reserved
};

/// Every failure is Error kIo with path and the system's reason. Calls may come from several threads.
class MARLIN_ABI FileSystem {
 public:
  FileSystem() = default;
  FileSystem(const FileSystem&) = delete;
  FileSystem& operator=(const FileSystem&) = delete;
  virtual ~FileSystem();

  /// An empty file; one that is there is emptied. Permissions follow the umask.
  /// @param said  how messages name it, if not by its path: the name that it is meant for.
  [[nodiscard]] std::unique_ptr<WritableFile> create(const std::filesystem::path& path, const std::filesystem::path& said = {});
  /// Replaces what is at `to` in one step: at every moment it is what it was or what it is now.
  void rename(const std::filesystem::path& from, const std::filesystem::path& to);
  /// Makes a symbolic link at `link` that leads to `target`, as given.
  void symlink(const std::filesystem::path& target, const std::filesystem::path& link);
  /// Removes a file; that there is none is no failure.
  void remove(const std::filesystem::path& path);
  /// When it returns, what was created, renamed and removed directly in `folder` (empty: the working directory) is on the device.
  void sync_directory(const std::filesystem::path& folder);
  /// Makes the folder and those above it that are missing; what it made is on the device when it returns.
  void make_directories(const std::filesystem::path& folder);
  /// Bytes that this process may still write there; UINT64_MAX if the file system does not say.
  [[nodiscard]] uint64_t free_space(const std::filesystem::path& folder) const;
  /// Names of what is directly in the folder, in no order; a folder that is not there has none.
  [[nodiscard]] std::vector<std::string> list(const std::filesystem::path& folder) const;

 protected:
  /// Each: errno of the failure, or 0. EINTR: it is called again. `folder` is never empty.
  [[nodiscard]] virtual int do_create(const std::filesystem::path& path, const std::filesystem::path& said, std::unique_ptr<WritableFile>& file) = 0;
  [[nodiscard]] virtual int do_rename(const std::filesystem::path& from, const std::filesystem::path& to) = 0;
  /// Default: the operating system's.
  [[nodiscard]] virtual int do_symlink(const std::filesystem::path& target, const std::filesystem::path& link);
  [[nodiscard]] virtual int do_remove(const std::filesystem::path& path) = 0;
  [[nodiscard]] virtual int do_sync_directory(const std::filesystem::path& folder) = 0;
  [[nodiscard]] virtual int do_make_directories(const std::filesystem::path& folder) = 0;
  [[nodiscard]] virtual int do_free_space(const std::filesystem::path& folder, uint64_t& size_bytes) const = 0;
  [[nodiscard]] virtual int do_list(const std::filesystem::path& folder, std::vector<std::string>& names) const = 0;
};

/// The operating system's. Lives as long as the process.
[[nodiscard]] MARLIN_ABI FileSystem& posix_file_system() noexcept;

/// What the host gives a plugin to write files with: host.file_system or, if it is null, the operating system's.
[[nodiscard]] MARLIN_ABI FileSystem& file_system_of(const HostContext& host) noexcept;

/// What is still to be written does not fit: Error kIo, "cannot write <path>: No space left on device (...)".
[[noreturn]] MARLIN_ABI void throw_no_space(const std::filesystem::path& path, uint64_t needed_bytes, uint64_t free_bytes);

}  // namespace marlin
