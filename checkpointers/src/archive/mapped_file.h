// A file in memory. No LibTorch header.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace marlin::archive {

/// A private, writable mapping of a whole file: what is written to it stays in this process. The file may be renamed or
/// removed meanwhile.
class MappedFile {
 public:
  /// @throws Error kNotFound, kIo; the text is the reason alone.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

/// Maps the pages of a range in one go, before they are read. A page that the device cannot deliver is an Error here, and would
/// end the process (SIGBUS) if it were just read. @throws Error kIo; the text is the reason alone.
void bring_in(std::span<const std::byte> bytes);

}  // namespace marlin::archive
