#include "marlin/checkpointers/file_system.h"

#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace fs = std::filesystem;
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

template <class Call>
int retry(const Call& call) {
  int error = 0;
  do {
    error = call();
  } while (error == EINTR);
  return error;
}

template <class Call, class... What>
void require(const Call& call, const What&... what) {
  if (const int error = retry(call); error != 0) throw Error(Errc::kIo, concat(what..., ": ", reason(error)));
}

fs::path or_here(const fs::path& folder) { return folder.empty() ? fs::path(".") : folder; }

}  // namespace

void throw_no_space(const fs::path& path, uint64_t needed_bytes, uint64_t free_bytes) {
  throw Error(Errc::kIo, concat("cannot write ", path.string(), ": ", reason(ENOSPC), " (the file needs ", needed_bytes, " bytes, ", free_bytes, " are free)"));
}

WritableFile::WritableFile(const FileSystem& file_system, fs::path path) : file_system_(file_system), path_(std::move(path)) {}
WritableFile::~WritableFile() = default;

void WritableFile::check(int error) const {
  if (error == 0) return;
  if (error == ENOSPC && size_bytes_ > 0) {
    uint64_t free_bytes = 0;
    try {
      free_bytes = file_system_.free_space(path_.parent_path());
    } catch (const Error&) {  // then it is not told
      throw Error(Errc::kIo, concat("cannot write ", path_.string(), ": ", reason(error), " (the file needs ", size_bytes_, " bytes)"));
    }
    throw_no_space(path_, size_bytes_, free_bytes);
  }
  throw Error(Errc::kIo, concat("cannot write ", path_.string(), ": ", reason(error)));
}

void WritableFile::reserve(uint64_t size_bytes) {
  size_bytes_ = size_bytes;
  check(retry([&] { return do_reserve(size_bytes); }));
}

void WritableFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    size_t written = 0;
    check(retry([&] { return do_write_at(offset, bytes, written); }));
    if (written == 0 || written > bytes.size()) check(EIO);  // or it would never end
    offset += written;
    bytes = bytes.subspan(written);
  }
}

void WritableFile::start_flush(uint64_t offset, uint64_t size_bytes) {
  check(retry([&] { return do_start_flush(offset, size_bytes); }));
}

void WritableFile::sync() {
  check(retry([&] { return do_sync(); }));
}

void WritableFile::close() {
  check(retry([&] { return do_close(); }));
}

FileSystem::~FileSystem() = default;

std::unique_ptr<WritableFile> FileSystem::create(const fs::path& path, const fs::path& said) {
  const fs::path& name = said.empty() ? path : said;
  std::unique_ptr<WritableFile> file;
  require([&] { return do_create(path, name, file); }, "cannot write ", name.string());
  return file;
}

void FileSystem::rename(const fs::path& from, const fs::path& to) {
  require([&] { return do_rename(from, to); }, "cannot write ", to.string());
}

void FileSystem::symlink(const fs::path& target, const fs::path& link) {
  require([&] { return do_symlink(target, link); }, "cannot make the link ", link.string());
}

int FileSystem::do_symlink(const fs::path& target, const fs::path& link) { return ::symlink(target.c_str(), link.c_str()) == 0 ? 0 : errno; }

void FileSystem::remove(const fs::path& path) {
  const int error = retry([&] { return do_remove(path); });
  if (error != 0 && error != ENOENT) throw Error(Errc::kIo, concat("cannot remove ", path.string(), ": ", reason(error)));
}

void FileSystem::sync_directory(const fs::path& folder) {
  require([&] { return do_sync_directory(or_here(folder)); }, "cannot sync folder ", or_here(folder).string());
}

void FileSystem::make_directories(const fs::path& folder) {
  require([&] { return do_make_directories(or_here(folder)); }, "cannot make folder ", or_here(folder).string());
}

uint64_t FileSystem::free_space(const fs::path& folder) const {
  uint64_t size_bytes = 0;
  require([&] { return do_free_space(or_here(folder), size_bytes); }, "cannot ask for the free space of ", or_here(folder).string());
  return size_bytes;
}

std::vector<std::string> FileSystem::list(const fs::path& folder) const {
  std::vector<std::string> names;
  const auto call = [&] {
    names.clear();
    return do_list(or_here(folder), names);
  };
  if (const int error = retry(call); error != 0 && error != ENOENT) {
    throw Error(Errc::kIo, concat("cannot list folder ", or_here(folder).string(), ": ", reason(error)));
  }
  return names;
}

FileSystem& file_system_of(const HostContext& host) noexcept { return host.file_system ? *host.file_system : posix_file_system(); }

}  // namespace marlin
