#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <limits>
#include <string_view>
#include <utility>

#include "marlin/checkpointers/file_system.h"

namespace marlin {
namespace fs = std::filesystem;
namespace {

int error_of(int result) { return result == 0 ? 0 : errno; }

// close() must not be called again after EINTR: on Linux the descriptor is gone by then.
int close_once(int file) {
  const int error = error_of(::close(file));
  return error == EINTR ? 0 : error;
}

class PosixFile final : public WritableFile {
 public:
  PosixFile(const FileSystem& file_system, fs::path said, int file) : WritableFile(file_system, std::move(said)), file_(file) {}
  ~PosixFile() override {
    if (file_ >= 0) ::close(file_);
  }

 protected:
  // fallocate() rather than posix_fallocate(): where the file system cannot reserve, the latter writes to every block instead.
  int do_reserve(uint64_t size_bytes) override {
    if (size_bytes > static_cast<uint64_t>(std::numeric_limits<off_t>::max())) return EFBIG;
    const auto size = static_cast<off_t>(size_bytes);
    if (size == 0) return error_of(::ftruncate(file_, 0));
    const int error = error_of(::fallocate(file_, 0, 0, size));
    return error == EOPNOTSUPP || error == ENOSYS ? error_of(::ftruncate(file_, size)) : error;
  }

  int do_write_at(uint64_t offset, std::span<const std::byte> bytes, size_t& written) override {
    const ssize_t result = ::pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (result < 0) return errno;
    written = static_cast<size_t>(result);
    return 0;
  }

  // A hint: that it cannot be given is no failure, that a write before it failed is one.
  int do_start_flush(uint64_t offset, uint64_t size_bytes) override {
    const int error = error_of(::sync_file_range(file_, static_cast<off_t>(offset), static_cast<off_t>(size_bytes), SYNC_FILE_RANGE_WRITE));
    return error == EIO || error == ENOSPC || error == EDQUOT ? error : 0;
  }

  int do_sync() override { return error_of(::fdatasync(file_)); }
  int do_close() override { return close_once(std::exchange(file_, -1)); }

 private:
  int file_;
};

class PosixFileSystem final : public FileSystem {
 protected:
  int do_create(const fs::path& path, const fs::path& said, std::unique_ptr<WritableFile>& file) override {
    const int opened = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (opened < 0) return errno;
    file = std::make_unique<PosixFile>(*this, said, opened);
    return 0;
  }

  int do_rename(const fs::path& from, const fs::path& to) override { return error_of(::rename(from.c_str(), to.c_str())); }
  int do_remove(const fs::path& path) override { return error_of(::unlink(path.c_str())); }

  int do_sync_directory(const fs::path& folder) override {
    const int opened = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (opened < 0) return errno;
    const int error = error_of(::fsync(opened));
    const int close_error = close_once(opened);
    if (error == EINVAL || error == EROFS) return 0;  // this file system has nothing to sync there
    return error != 0 ? error : close_error;
  }

  int do_make_directories(const fs::path& folder) override {
    struct stat status {};
    if (::stat(folder.c_str(), &status) == 0) return S_ISDIR(status.st_mode) ? 0 : ENOTDIR;
    if (errno != ENOENT) return errno;
    const fs::path parent = folder.parent_path() == folder ? fs::path() : folder.parent_path();
    if (!parent.empty()) {
      if (const int error = do_make_directories(parent); error != 0) return error;
    }
    // Somebody else may have made it meanwhile; a name that ends in a slash was made as its own parent.
    if (::mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST) return errno;
    return do_sync_directory(parent.empty() ? fs::path(".") : parent);
  }

  int do_free_space(const fs::path& folder, uint64_t& size_bytes) const override {
    struct statvfs status {};
    if (::statvfs(folder.c_str(), &status) != 0) return errno;
    const bool says = status.f_blocks > 0;
    size_bytes = says ? uint64_t{status.f_bavail} * status.f_frsize : std::numeric_limits<uint64_t>::max();
    return 0;
  }

  int do_list(const fs::path& folder, std::vector<std::string>& names) const override {
    DIR* directory = ::opendir(folder.c_str());
    if (directory == nullptr) return errno;
    for (errno = 0; const dirent* entry = ::readdir(directory); errno = 0) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
    }
    const int error = errno;
    ::closedir(directory);
    return error;
  }
};

}  // namespace

FileSystem& posix_file_system() noexcept {
  static PosixFileSystem& file_system = *new PosixFileSystem;  // never destroyed: a thread may still save while the process ends
  return file_system;
}

}  // namespace marlin
