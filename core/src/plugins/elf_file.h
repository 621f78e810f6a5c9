// Pieces of a shared library's file, read without loading it.
#pragma once

#include <elf.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace marlin {

/// An ELF shared library of this machine. Trusts none of the file's numbers: whatever points outside of the file is an Error.
/// (Boost.DLL 1.74's library_info looks at .symtab only, which stripped libraries lack, with the names of whatever string table
/// comes last, and allocates what the file says.)
/// @throws Error kPlugin, text beginning "plugin <file>: ".
class ElfFile {
 public:
  explicit ElfFile(const std::string& path);
  ElfFile(const ElfFile&) = delete;
  ElfFile& operator=(const ElfFile&) = delete;
  ~ElfFile();

  /// A symbol that the library defines and exports.
  [[nodiscard]] std::optional<Elf64_Sym> exported(std::string_view name) const;
  /// The names of the libraries that it is linked with, as the loader looks for them.
  [[nodiscard]] std::vector<std::string> needed() const;
  /// Up to `bytes` of the initial value of the object at that address; fewer if the file holds fewer there, none if it holds no value.
  [[nodiscard]] std::string initial_value(uint64_t address, uint64_t bytes) const;

 private:
  void open();
  void check_header();
  [[noreturn]] void damaged() const;
  void read(uint64_t offset, void* into, uint64_t bytes) const;
  template <class T> [[nodiscard]] T at(uint64_t offset) const;
  template <class T> [[nodiscard]] std::vector<T> table(uint64_t offset, uint64_t bytes) const;
  [[nodiscard]] std::vector<char> strings_of(const Elf64_Shdr& section) const;

  std::string path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
  Elf64_Ehdr header_{};
  std::vector<Elf64_Shdr> sections_;
};

}  // namespace marlin
