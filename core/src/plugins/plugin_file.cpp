#include "plugin_file.h"

#include <cstddef>
#include <cstring>
#include <iterator>
#include <string_view>

#include "elf_file.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

// The beginning of every descriptor, of whatever version of libmarlin.
struct StableHead {
  char magic[8];
  uint32_t size, abi, torch_major, torch_minor, cxx11_abi, glibcxx_debug, sanitizer;
};
static_assert(offsetof(StableHead, size) == offsetof(PluginDescriptor, size) && offsetof(StableHead, abi) == offsetof(PluginDescriptor, facts) &&
                  offsetof(StableHead, sanitizer) == offsetof(PluginDescriptor, facts) + offsetof(BuildFacts, sanitizer),
              "hosts of all versions read these");

// The part of this version's descriptor that holds no pointer, so that it lies in the file as it will lie in memory.
struct Head {
  char magic[8];
  uint32_t size;
  BuildFacts facts;
  uint32_t kinds;
  PluginText name, version;
};
static_assert(offsetof(Head, facts) == offsetof(PluginDescriptor, facts) && offsetof(Head, kinds) == offsetof(PluginDescriptor, kinds));
static_assert(sizeof(Head) <= offsetof(PluginDescriptor, info) + offsetof(PluginInfo, options) &&
                  offsetof(Head, version) - offsetof(Head, name) == offsetof(PluginInfo, version) - offsetof(PluginInfo, name),
              "name and version begin PluginInfo");

[[noreturn]] void refuse(const std::string& file, const std::string& why) { throw Error(Errc::kPlugin, concat("plugin ", file, ": ", why)); }

const char* sanitizer_name(uint32_t sanitizer) {
  constexpr const char* kNames[] = {"none", "AddressSanitizer", "ThreadSanitizer"};
  return sanitizer < std::size(kNames) ? kNames[sanitizer] : "unknown";
}

template <class T>
T from(const std::string& path, const std::string& bytes, uint64_t offset = 0) {
  T value;
  if (bytes.size() < offset + sizeof value) refuse(path, "its descriptor is cut off; build it again");
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

void read_descriptor(PluginFile& plugin, const std::string& bytes) {
  const auto stable = from<StableHead>(plugin.path, bytes);
  const PluginDescriptor here;
  if (std::memcmp(stable.magic, here.magic, sizeof here.magic) != 0) {
    refuse(plugin.path, "its marlin_plugin is no plugin descriptor of libmarlin; make it with MARLIN_PLUGIN(...)");
  }
  plugin.descriptor_size = stable.size;
  if (stable.abi == here.facts.abi) {
    plugin.facts = from<BuildFacts>(plugin.path, bytes, offsetof(PluginDescriptor, facts));
    const auto kinds = from<uint32_t>(plugin.path, bytes, offsetof(PluginDescriptor, kinds));
    plugin.name = from<PluginText>(plugin.path, bytes, offsetof(PluginDescriptor, info) + offsetof(PluginInfo, name)).view();
    plugin.version = from<PluginText>(plugin.path, bytes, offsetof(PluginDescriptor, info) + offsetof(PluginInfo, version)).view();
    for (const PluginKind kind : kPluginKinds) {
      if (kinds >> static_cast<unsigned>(kind) & 1) plugin.kinds.push_back(kind);
    }
    return;
  }
  BuildFacts& facts = plugin.facts;
  facts.abi = stable.abi;
  facts.torch_major = stable.torch_major, facts.torch_minor = stable.torch_minor;
  facts.cxx11_abi = stable.cxx11_abi, facts.glibcxx_debug = stable.glibcxx_debug, facts.sanitizer = stable.sanitizer;
}

}  // namespace

PluginFile read_plugin_file(const std::string& path) {
  const ElfFile file(path);
  const auto symbol = file.exported("marlin_plugin");
  if (!symbol) refuse(path, "a shared library, but no plugin of libmarlin: it exports no marlin_plugin; put MARLIN_PLUGIN(...) into one of its sources");
  const std::string bytes = file.initial_value(symbol->st_value, sizeof(PluginDescriptor));
  if (bytes.empty()) refuse(path, "its marlin_plugin is not a constant; make it with MARLIN_PLUGIN(...)");
  PluginFile plugin;
  plugin.path = path;
  read_descriptor(plugin, bytes);
  plugin.needed = file.needed();
  plugin.holds_torch = file.exported("_ZN3c1012GetAllocatorERKNS_10DeviceTypeE").has_value();  // c10::GetAllocator: not inline, so only where LibTorch is
  return plugin;
}

std::optional<std::string> build_differences(const PluginFile& file) {
  const PluginDescriptor here;
  std::vector<std::string> differences, remedies;
  const auto compare = [&](const char* what, const auto& there, const auto& ours, const std::string& remedy) {
    if (there == ours) return;
    differences.push_back(concat(what, " ", there, " (here ", ours, ")"));
    remedies.push_back(remedy);
  };
  const BuildFacts &theirs = file.facts, &ours = here.facts;
  const std::string headers = concat("with the headers of libmarlin " MARLIN_VERSION);
  const auto torch = [](const BuildFacts& facts) { return concat(facts.torch_major, ".", facts.torch_minor); };
  compare(theirs.abi > ours.abi ? "the later SDK ABI" : "the earlier SDK ABI", theirs.abi, ours.abi, headers);
  if (theirs.abi == ours.abi) compare("descriptor size", file.descriptor_size, here.size, headers);
  compare("LibTorch", torch(theirs), torch(ours), concat("against LibTorch ", torch(ours)));
  compare("_GLIBCXX_USE_CXX11_ABI", theirs.cxx11_abi, ours.cxx11_abi, concat("with -D_GLIBCXX_USE_CXX11_ABI=", ours.cxx11_abi));
  compare("_GLIBCXX_DEBUG", theirs.glibcxx_debug, ours.glibcxx_debug, concat(ours.glibcxx_debug ? "with" : "without", " -D_GLIBCXX_DEBUG"));
  compare("sanitizer", std::string(sanitizer_name(theirs.sanitizer)), std::string(sanitizer_name(ours.sanitizer)),
          ours.sanitizer == 0 ? "without a sanitizer" : concat("with ", sanitizer_name(ours.sanitizer)));
  if (differences.empty()) return std::nullopt;
  return concat("built with ", join(differences), "; build it again ", join(remedies),
                theirs.abi > ours.abi ? ", or run it with the libmarlin that it was built for: this one is too old" : "");
}

std::optional<std::string> second_torch(const PluginFile& file) {
  const std::string remedy = "; link it with marlin::sdk, which brings the LibTorch of this program, and with no other";
  if (file.holds_torch) return concat("LibTorch's own code is linked into it, and two LibTorchs in one process cannot share tensors", remedy);
  for (const std::string& name : file.needed) {
    for (const std::string_view library : {"libtorch_cpu", "libc10"}) {
      if (!name.starts_with(library) || name == concat(library, ".so")) continue;
      const char next = name[library.size()];
      if (next != '.' && next != '-') continue;  // libc10_cuda.so, say
      return concat("it needs ", one_line(name), ", a second LibTorch beside this program's ", library, ".so, and two of them in one process cannot share tensors", remedy);
    }
  }
  return std::nullopt;
}

}  // namespace marlin
