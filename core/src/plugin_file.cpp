#include "plugin_file.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <optional>
#include <string_view>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

static_assert(offsetof(PluginDescriptor, size) == offsetof(DescriptorHead, size) && offsetof(PluginDescriptor, facts) == offsetof(DescriptorHead, facts),
              "the head is the beginning of the descriptor");

#if defined(__x86_64__)
constexpr Elf64_Half kMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr Elf64_Half kMachine = EM_AARCH64;
#else
#error "plugins are read on x86-64 and AArch64 only"
#endif

[[noreturn]] void refuse(const std::string& file, const std::string& why) { throw Error(Errc::kPlugin, concat("plugin ", file, ": ", why)); }

// Reads pieces of an ELF file and trusts none of its numbers. (Boost.DLL 1.74's library_info looks at .symtab only, which
// stripped libraries lack, with the names of whatever string table comes last, and allocates what the file says.)
class ElfFile {
 public:
  explicit ElfFile(const std::string& path) : path_(path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) refuse(path, errno == ENOENT ? "no such file, or a link to none" : std::strerror(errno));
    if (S_ISDIR(status.st_mode)) refuse(path, "this is a folder; name the .so file in it");
    if (!S_ISREG(status.st_mode)) refuse(path, "this is not a regular file");
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) refuse(path, concat("cannot be opened: ", std::strerror(errno), "; make it readable for this user"));
    size_ = static_cast<uint64_t>(status.st_size);
  }
  ElfFile(const ElfFile&) = delete;
  ElfFile& operator=(const ElfFile&) = delete;
  ~ElfFile() { ::close(descriptor_); }

  [[nodiscard]] uint64_t size() const { return size_; }
  [[noreturn]] void damaged() const { refuse(path_, "a damaged library (its tables point outside of the file); build or copy it again"); }

  void read(uint64_t offset, void* into, uint64_t bytes) const {
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
  [[nodiscard]] T at(uint64_t offset) const {
    T value;
    read(offset, &value, sizeof value);
    return value;
  }
  template <class T>
  [[nodiscard]] std::vector<T> table(uint64_t offset, uint64_t bytes) const {
    if (offset > size_ || bytes > size_ - offset) damaged();  // before memory is asked for
    std::vector<T> items(bytes / sizeof(T));
    read(offset, items.data(), items.size() * sizeof(T));
    return items;
  }

 private:
  std::string path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

Elf64_Ehdr header_of(const std::string& path, const ElfFile& file) {
  if (file.size() == 0) refuse(path, "the file is empty; build or copy it again");
  char magic[SELFMAG] = {};
  if (file.size() >= SELFMAG) file.read(0, magic, SELFMAG);
  if (std::memcmp(magic, ELFMAG, SELFMAG) != 0) refuse(path, "not a shared library (no ELF file); name the .so that the plugin's build made");
  const auto header = file.at<Elf64_Ehdr>(0);
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kMachine) refuse(path, "a library for another kind of machine; build it for this one");
  if (header.e_type != ET_DYN) refuse(path, "an ELF file, but not a shared library; link it with -shared");
  return header;
}

std::optional<Elf64_Sym> exported_symbol(const ElfFile& file, const Elf64_Ehdr& header, std::string_view name) {
  if (header.e_shentsize != sizeof(Elf64_Shdr)) file.damaged();
  const auto sections = file.table<Elf64_Shdr>(header.e_shoff, uint64_t{header.e_shnum} * sizeof(Elf64_Shdr));
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_DYNSYM) continue;
    if (section.sh_link >= sections.size()) file.damaged();
    const auto names = file.table<char>(sections[section.sh_link].sh_offset, sections[section.sh_link].sh_size);
    for (const auto& symbol : file.table<Elf64_Sym>(section.sh_offset, section.sh_size)) {
      if (symbol.st_shndx == SHN_UNDEF || symbol.st_name >= names.size()) continue;
      const std::string_view rest(names.data() + symbol.st_name, names.size() - symbol.st_name);
      if (rest.substr(0, rest.find('\0')) == name) return symbol;
    }
  }
  return std::nullopt;
}

const char* sanitizer_name(uint32_t sanitizer) {
  constexpr const char* kNames[] = {"none", "AddressSanitizer", "ThreadSanitizer"};
  return sanitizer < std::size(kNames) ? kNames[sanitizer] : "unknown";
}

}  // namespace

DescriptorHead read_descriptor_head(const std::string& path) {
  const ElfFile file(path);
  const Elf64_Ehdr header = header_of(path, file);
  const auto symbol = exported_symbol(file, header, "marlin_plugin");
  if (!symbol) refuse(path, "a shared library, but no plugin of libmarlin: it exports no marlin_plugin; put MARLIN_PLUGIN(...) into one of its sources");
  if (header.e_phentsize != sizeof(Elf64_Phdr)) file.damaged();
  for (const auto& segment : file.table<Elf64_Phdr>(header.e_phoff, uint64_t{header.e_phnum} * sizeof(Elf64_Phdr))) {
    const uint64_t within = symbol->st_value - segment.p_vaddr;
    if (segment.p_type != PT_LOAD || symbol->st_value < segment.p_vaddr || within > segment.p_filesz) continue;
    if (segment.p_filesz - within < sizeof(DescriptorHead) || segment.p_offset > file.size()) file.damaged();
    return file.at<DescriptorHead>(segment.p_offset + within);
  }
  refuse(path, "its marlin_plugin is not a constant; make it with MARLIN_PLUGIN(...)");
}

void check_build(const std::string& file, const DescriptorHead& head) {
  const PluginDescriptor here;
  if (std::memcmp(head.magic, here.magic, sizeof here.magic) != 0) {
    refuse(file, "its marlin_plugin is no plugin descriptor of libmarlin; make it with MARLIN_PLUGIN(...)");
  }
  std::vector<std::string> differences, remedies;
  const auto compare = [&](const char* what, const auto& there, const auto& ours, const std::string& remedy) {
    if (there == ours) return;
    differences.push_back(concat(what, " ", there, " (here ", ours, ")"));
    remedies.push_back(remedy);
  };
  const BuildFacts &theirs = head.facts, &ours = here.facts;
  const std::string headers = concat("with the headers of libmarlin " MARLIN_VERSION);
  const auto torch = [](const BuildFacts& facts) { return concat(facts.torch_major, ".", facts.torch_minor); };
  compare("SDK ABI", theirs.abi, ours.abi, headers);
  if (theirs.abi == ours.abi) compare("descriptor size", head.size, here.size, headers);
  compare("LibTorch", torch(theirs), torch(ours), concat("against LibTorch ", torch(ours)));
  compare("_GLIBCXX_USE_CXX11_ABI", theirs.cxx11_abi, ours.cxx11_abi, concat("with -D_GLIBCXX_USE_CXX11_ABI=", ours.cxx11_abi));
  compare("_GLIBCXX_DEBUG", theirs.glibcxx_debug, ours.glibcxx_debug, concat(ours.glibcxx_debug ? "with" : "without", " -D_GLIBCXX_DEBUG"));
  compare("sanitizer", std::string(sanitizer_name(theirs.sanitizer)), std::string(sanitizer_name(ours.sanitizer)),
          ours.sanitizer == 0 ? "without a sanitizer" : concat("with ", sanitizer_name(ours.sanitizer)));
  if (!differences.empty()) refuse(file, concat("built with ", join(differences), "; build it again ", join(remedies)));
}

}  // namespace marlin
