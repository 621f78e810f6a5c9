#include "elf_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

#if defined(__x86_64__)
constexpr Elf64_Half kMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr Elf64_Half kMachine = EM_AARCH64;
#else
#error "plugins are read on x86-64 and AArch64 only"
#endif

[[noreturn]] void refuse(const std::string& file, const std::string& why) { throw Error(Errc::kPlugin, concat("plugin ", file, ": ", why)); }

std::string_view text_at(const std::vector<char>& strings, uint64_t offset) {
  if (offset >= strings.size()) return {};
  const std::string_view rest(strings.data() + offset, strings.size() - offset);
  return rest.substr(0, rest.find('\0'));
}

}  // namespace

ElfFile::ElfFile(const std::string& path) : path_(path) {
  open();
  try {
    check_header();
    if (header_.e_shentsize != sizeof(Elf64_Shdr) || header_.e_phentsize != sizeof(Elf64_Phdr)) damaged();
    sections_ = table<Elf64_Shdr>(header_.e_shoff, uint64_t{header_.e_shnum} * sizeof(Elf64_Shdr));
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

ElfFile::~ElfFile() { ::close(descriptor_); }

void ElfFile::open() {
  struct stat status {};
  if (::stat(path_.c_str(), &status) != 0) refuse(path_, errno == ENOENT ? "no such file, or a link to none" : std::strerror(errno));
  if (S_ISDIR(status.st_mode)) refuse(path_, "this is a folder; name the .so file in it");
  if (!S_ISREG(status.st_mode)) refuse(path_, "this is not a regular file");
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) refuse(path_, concat("cannot be opened: ", std::strerror(errno), "; make it readable for this user"));
  size_ = static_cast<uint64_t>(status.st_size);
}

void ElfFile::check_header() {
  if (size_ == 0) refuse(path_, "the file is empty; build or copy it again");
  unsigned char start[EI_NIDENT] = {};
  read(0, start, std::min<uint64_t>(size_, sizeof start));
  if (std::memcmp(start, ELFMAG, SELFMAG) != 0) refuse(path_, "not a shared library (no ELF file); name the .so that the plugin's build made");
  if (size_ < sizeof start) damaged();
  if (start[EI_CLASS] == ELFCLASS32) refuse(path_, "a 32-bit library; build it for this 64-bit machine");
  header_ = at<Elf64_Ehdr>(0);
  if (header_.e_ident[EI_CLASS] != ELFCLASS64 || header_.e_machine != kMachine) refuse(path_, "a library for another kind of machine; build it for this one");
  if (header_.e_type != ET_DYN) refuse(path_, "an ELF file, but not a shared library; link it with -shared");
}

void ElfFile::damaged() const { refuse(path_, "a damaged library (its tables point outside of the file); build or copy it again"); }

void ElfFile::read(uint64_t offset, void* into, uint64_t bytes) const {
  if (offset > size_ || bytes > size_ - offset) damaged();
  for (auto* to = static_cast<char*>(into); bytes > 0;) {
    const ssize_t got = ::pread(descriptor_, to, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refuse(path_, concat("cannot be read: ", std::strerror(errno)));
    if (got == 0) damaged();
    to += got, offset += static_cast<uint64_t>(got), bytes -= static_cast<uint64_t>(got);
  }
}

template <class T>
T ElfFile::at(uint64_t offset) const {
  T value;
  read(offset, &value, sizeof value);
  return value;
}

template <class T>
std::vector<T> ElfFile::table(uint64_t offset, uint64_t bytes) const {
  if (offset > size_ || bytes > size_ - offset) damaged();  // before memory is asked for
  std::vector<T> items(bytes / sizeof(T));
  read(offset, items.data(), items.size() * sizeof(T));
  return items;
}

std::vector<char> ElfFile::strings_of(const Elf64_Shdr& section) const {
  if (section.sh_link >= sections_.size()) damaged();
  return table<char>(sections_[section.sh_link].sh_offset, sections_[section.sh_link].sh_size);
}

std::optional<Elf64_Sym> ElfFile::exported(std::string_view name) const {
  for (const Elf64_Shdr& section : sections_) {
    if (section.sh_type != SHT_DYNSYM) continue;
    const std::vector<char> names = strings_of(section);
    for (const auto& symbol : table<Elf64_Sym>(section.sh_offset, section.sh_size)) {
      if (symbol.st_shndx != SHN_UNDEF && text_at(names, symbol.st_name) == name) return symbol;
    }
  }
  return std::nullopt;
}

std::vector<std::string> ElfFile::needed() const {
  std::vector<std::string> result;
  for (const Elf64_Shdr& section : sections_) {
    if (section.sh_type != SHT_DYNAMIC) continue;
    const std::vector<char> names = strings_of(section);
    for (const auto& entry : table<Elf64_Dyn>(section.sh_offset, section.sh_size)) {
      if (entry.d_tag == DT_NULL) break;
      if (entry.d_tag == DT_NEEDED) result.emplace_back(text_at(names, entry.d_un.d_val));
    }
  }
  return result;
}

std::string ElfFile::initial_value(uint64_t address, uint64_t bytes) const {
  for (const auto& segment : table<Elf64_Phdr>(header_.e_phoff, uint64_t{header_.e_phnum} * sizeof(Elf64_Phdr))) {
    if (segment.p_type != PT_LOAD || address < segment.p_vaddr || address - segment.p_vaddr >= segment.p_filesz) continue;
    const uint64_t within = address - segment.p_vaddr;
    if (segment.p_offset > size_) damaged();
    const auto value = table<char>(segment.p_offset + within, std::min(bytes, segment.p_filesz - within));
    return {value.begin(), value.end()};
  }
  return {};
}

}  // namespace marlin
