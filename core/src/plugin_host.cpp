#include "marlin/core/plugin_host.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <set>
#include <stdexcept>
#include <string_view>
#include <typeinfo>
#include <utility>

#define BOOST_DLL_USE_STD_FS  // its paths are ours, and Boost.Filesystem need not be linked for them
#include <boost/core/demangle.hpp>
#include <boost/dll/runtime_symbol_info.hpp>
#include <boost/dll/shared_library.hpp>

#include "logging/one_line.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "plugin_file.h"

namespace marlin {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "lib", kSuffix = ".so";

[[noreturn]] void refuse(const std::string& what, const std::string& why) { throw Error(Errc::kPlugin, concat(what, ": ", why)); }

std::string file_name_of(const std::string& name) { return concat(kPrefix, name, kSuffix); }

// The N of libN.so; empty if it is not of that form.
std::string name_of(const std::string& file_name) {
  const std::string_view name = file_name;
  if (name.size() <= kPrefix.size() + kSuffix.size() || !name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return {};
  return std::string(name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size()));
}

bool consists_of(std::string_view text, std::string_view extra) {
  const auto allowed = [extra](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || extra.find(c) != std::string_view::npos; };
  return !text.empty() && std::all_of(text.begin(), text.end(), allowed);
}

// Calls into a plugin; whatever it throws becomes an Error of ours that says whose call it was.
template <class Call>
auto guarded(const std::string& what, const char* call, Call&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::exception& error) {
    refuse(what, concat(call, " failed: ", one_line(error.what())));
  } catch (...) {
    const std::type_info* type = abi::__cxa_current_exception_type();
    refuse(what, concat(call, " failed with an exception of type ", type ? boost::core::demangle(type->name()) : "unknown", ", which is no std::exception"));
  }
}

// Boost wraps the loader's text in its own: "boost::dll::shared_library::load() failed (dlerror system message: TEXT): ...".
std::string loader_text(std::string_view what) {
  constexpr std::string_view kBegin = "dlerror system message: ";
  const size_t begin = what.find(kBegin);
  if (begin == std::string_view::npos) return one_line(what);
  what.remove_prefix(begin + kBegin.size());
  return one_line(what.substr(0, what.rfind("): ")));
}

// Runs the library's static initialisers: its file must have been checked.
const PluginDescriptor* descriptor_of(const std::string& file) {
  try {
    const boost::dll::shared_library library(fs::path(file), boost::dll::load_mode::rtld_now);
    // LibTorch, spdlog and thread-locals of a library do not survive its unloading, so it is pinned: the handle may go.
    if (!::dlopen(file.c_str(), RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE)) throw std::runtime_error(::dlerror());
    return &library.get<const PluginDescriptor>("marlin_plugin");
  } catch (const std::exception& error) {
    refuse("plugin " + file, concat("cannot be loaded: ", loader_text(error.what()),
                                    "; link the plugin with what it uses, or build it again with the headers of libmarlin " MARLIN_VERSION));
  }
}

PluginKind kind_of(const std::string& file, const PluginInfo& info) {
  const int made = (info.make_checkpointer != nullptr) + (info.make_backend != nullptr) + (info.make_writer != nullptr);
  if (made != 1) {
    refuse("plugin " + file, concat("its descriptor sets ", made, " of make_checkpointer, make_backend and make_writer; it must set exactly one"));
  }
  if (info.make_checkpointer) return PluginKind::kCheckpointer;
  return info.make_backend ? PluginKind::kBackend : PluginKind::kWriter;
}

const char* flag_of(PluginKind kind) {
  switch (kind) {
    case PluginKind::kCheckpointer: return "--checkpointer";
    case PluginKind::kBackend: return "--backend";
    case PluginKind::kWriter: return "--writers";
  }
  return "";
}

std::string titled(const LoadedPlugin& plugin) { return concat("plugin '", plugin.name, "' (", plugin.file, ")"); }

void check_kind(const LoadedPlugin& plugin, PluginKind wanted) {
  if (plugin.kind == wanted) return;
  refuse(titled(plugin), concat("is a ", to_string(plugin.kind), ", not a ", to_string(wanted), "; name it with ", flag_of(plugin.kind)));
}

void check_names(const std::string& file, const PluginInfo& info, const std::string& expected) {
  const std::string what = "plugin " + file;
  if (!info.name || !info.version) refuse(what, concat("its descriptor has no ", info.name ? "version" : "name", "; set it in MARLIN_PLUGIN(...)"));
  if (info.name != expected) {
    refuse(what, concat("its descriptor says that it is '", one_line(info.name), "', its file name that it is '", expected, "'; rename the file or set .name = \"",
                        expected, "\" in MARLIN_PLUGIN(...)"));
  }
}

// What is wrong with one option; the default must be a value that the option would take.
void check_option(const OptionSpec& spec, std::vector<std::string>& problems) {
  if (!consists_of(spec.name, "_.") || spec.name.front() == '.' || spec.name.back() == '.') {
    problems.push_back(concat("'", one_line(spec.name), "' is not a name (lower-case letters, digits, _ and .)"));
  } else if (spec.type > OptionType::kList) {
    problems.push_back(concat("option ", spec.name, " has no type"));
  } else if (spec.default_value) {
    try {
      Options(OptionTable{spec}).set(spec.name, *spec.default_value, "the default of " + spec.name);
    } catch (const Error& error) {
      problems.push_back(one_line(error.what()));
    }
  }
}

bool is_the_hosts(const std::string& option) {
  static const OptionTable kTable = option_table<SaveSchedule>();
  return std::any_of(kTable.begin(), kTable.end(), [&](const OptionSpec& spec) { return spec.name == option; });
}

void check_options(const LoadedPlugin& plugin) {
  std::vector<std::string> problems;
  std::set<std::string_view> names;
  for (const OptionSpec& spec : plugin.options) {
    check_option(spec, problems);
    if (!names.insert(spec.name).second) problems.push_back(concat("option ", one_line(spec.name), " is there twice"));
    if (plugin.kind == PluginKind::kCheckpointer && is_the_hosts(spec.name)) {
      problems.push_back(concat("option ", spec.name, " is one that every checkpointer has from the host"));
    }
  }
  if (!problems.empty()) refuse(titled(plugin), concat("its option table is not in order: ", join(problems, "; "), "; correct the table"));
}

template <class Make>
auto* made(const LoadedPlugin& plugin, PluginKind kind, const char* call, Make make, HostContext& context, const Options& options) {
  check_kind(plugin, kind);
  auto* result = guarded(titled(plugin), call, [&] { return make(context, options); });
  if (!result) refuse(titled(plugin), concat(call, " returned null; it must return what it made, or throw"));
  return result;
}

}  // namespace

const char* to_string(PluginKind kind) noexcept {
  switch (kind) {
    case PluginKind::kCheckpointer: return "checkpointer";
    case PluginKind::kBackend: return "backend";
    case PluginKind::kWriter: return "writer";
  }
  return "unknown";
}

PluginHost::PluginHost(std::vector<std::string> plugin_path, HostContext context) : folders_(std::move(plugin_path)), context_(context) {
  if (const char* more = std::getenv("MARLIN_PLUGIN_PATH")) {
    for (std::string& folder : split(more, ':')) folders_.push_back(std::move(folder));
  }
  std::erase(folders_, "");
  folders_.push_back((fs::absolute(boost::dll::this_line_location()).parent_path() / "marlin" / "plugins").string());
  if (!context_.logger) context_.logger = &null_logger();
}

PluginHost::~PluginHost() = default;

std::vector<std::string> PluginHost::folders() const { return folders_; }

std::vector<std::string> PluginHost::available() const {
  std::set<std::string> names;
  for (const std::string& folder : folders_) {
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
      if (std::string name = name_of(entry->path().filename().string()); !name.empty()) names.insert(std::move(name));
    }
  }
  return {names.begin(), names.end()};
}

std::string PluginHost::find(const std::string& name) const {
  const std::string file_name = file_name_of(name);
  std::vector<std::string> searched;
  for (const std::string& folder : folders_) {
    std::error_code error;
    const fs::path file = fs::path(folder) / file_name;
    if (fs::symlink_status(file, error).type() != fs::file_type::not_found && !error) return file.string();
    searched.push_back(fs::is_directory(folder, error) ? folder : folder + " (no such folder)");
  }
  const std::vector<std::string> names = available();
  const bool looks_like_file = name.ends_with(kSuffix);
  const std::string close = nearest(looks_like_file && !name_of(name).empty() ? name_of(name) : name, names);
  refuse(concat("no plugin '", one_line(name), "'"),
         concat("there is no ", one_line(file_name), " in ", join(searched), "; plugins found there: ", names.empty() ? "none" : join(names),
                close.empty() ? "" : concat("; did you mean ", close, "?"), "; ",
                looks_like_file ? concat("a file is named with a path, ./", one_line(name)) : "name its folder with --plugin_path, or its file with a path"));
}

const LoadedPlugin& PluginHost::load(const std::string& name_or_path, PluginKind wanted) {
  if (name_or_path.empty()) refuse(flag_of(wanted), "the name of a plugin is empty; name one, or give the path of its file");
  const bool is_path = name_or_path.find('/') != std::string::npos;
  const std::string file = fs::absolute(is_path ? name_or_path : find(name_or_path)).lexically_normal().string();
  std::error_code error;
  if (is_path && fs::status(file, error).type() == fs::file_type::not_found) {
    refuse("plugin " + file, concat("no such file; '", one_line(name_or_path), "' holds '/', so it is a path from the working folder; a plain name is searched for"));
  }
  const DescriptorHead head = read_descriptor_head(file);
  const std::string name = name_of(fs::path(file).filename().string());
  if (!consists_of(name, "_-ABCDEFGHIJKLMNOPQRSTUVWXYZ")) {
    refuse("plugin " + file, "a plugin's file is named libNAME.so, with letters, digits, _ and - in NAME; rename it");
  }
  if (name == "default") refuse("plugin " + file, "'default' is the name of the built-in checkpointer; give the plugin another one");

  for (const auto& plugin : loaded_) {
    if (!fs::equivalent(plugin->file, file, error)) continue;
    check_names(file, plugin->descriptor->info, name);
    check_kind(*plugin, wanted);
    return *plugin;
  }
  check_build(file, head);
  const PluginDescriptor* descriptor = descriptor_of(file);
  const PluginInfo& info = descriptor->info;
  check_names(file, info, name);
  auto plugin = std::make_unique<LoadedPlugin>(LoadedPlugin{name, info.version, file, kind_of(file, info), {}, descriptor});
  check_kind(*plugin, wanted);
  if (info.options) plugin->options = guarded(titled(*plugin), "options", [&] { return info.options(); });
  check_options(*plugin);
  loaded_.push_back(std::move(plugin));
  return *loaded_.back();
}

std::unique_ptr<AbstractCheckpointer> PluginHost::make_checkpointer(const LoadedPlugin& plugin, const Options& options) {
  std::unique_ptr<AbstractCheckpointer> result(
      made(plugin, PluginKind::kCheckpointer, "make_checkpointer", plugin.descriptor->info.make_checkpointer, context_, options));
  result->set_name(plugin.name);
  return result;
}

std::unique_ptr<Writer> PluginHost::make_writer(const LoadedPlugin& plugin, const Options& options) {
  return std::unique_ptr<Writer>(made(plugin, PluginKind::kWriter, "make_writer", plugin.descriptor->info.make_writer, context_, options));
}

std::unique_ptr<TrainerBackend> PluginHost::make_backend(const LoadedPlugin& plugin, const Options& options) {
  return std::unique_ptr<TrainerBackend>(made(plugin, PluginKind::kBackend, "make_backend", plugin.descriptor->info.make_backend, context_, options));
}

}  // namespace marlin
