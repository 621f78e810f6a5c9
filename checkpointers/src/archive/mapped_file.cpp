#include "archive/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::archive {
namespace {

[[noreturn]] void fail(const char* what, int error) {
  const bool missing = error == ENOENT || error == ENOTDIR;
  throw Error(missing ? Errc::kNotFound : Errc::kIo, concat(what, ": ", std::generic_category().message(error)));
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) {
  // Without O_NONBLOCK, opening a pipe would wait for its writer.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) fail("open", errno);
  struct Closer {
    int file;
    ~Closer() { ::close(file); }
  } const closer{file};

  struct stat status {};
  if (::fstat(file, &status) != 0) fail("stat", errno);
  if (S_ISDIR(status.st_mode)) fail("open", EISDIR);
  if (!S_ISREG(status.st_mode)) throw Error(Errc::kIo, "open: not a regular file");
  if (status.st_size == 0) return;
  const auto size = static_cast<size_t>(status.st_size);
  void* start = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
  if (start == MAP_FAILED) fail("mmap", errno);
  bytes_ = {static_cast<std::byte*>(start), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
}

void bring_in(std::span<const std::byte> bytes) {
#ifdef MADV_POPULATE_READ
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t first = start / page * page;
  int result = 0;
  do {
    result = ::madvise(reinterpret_cast<void*>(first), start + bytes.size() - first, MADV_POPULATE_READ);
  } while (result != 0 && errno == EINTR);
  // Before Linux 5.14 there is no such call (EINVAL); then pages come when they are read.
  if (result != 0 && (errno == EFAULT || errno == EHWPOISON || errno == EIO)) fail("read", EIO);
#endif
}

}  // namespace marlin::archive
