#include "marlin/core/plugin_host.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <stdexcept>
#include <string_view>
#include <utility>

#define BOOST_DLL_USE_STD_FS  // its paths are ours, and Boost.Filesystem need not be linked for them
#include <boost/dll/runtime_symbol_info.hpp>
#include <boost/dll/shared_library.hpp>

#include "call_watch.h"
#include "guarded_parts.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "plugin_checks.h"
#include "plugin_code.h"
#include "plugin_file.h"

namespace marlin {
namespace {

namespace fs = std::filesystem;
using Phase = Seam::Phase;
using Watch = Seam::Watch;

[[noreturn]] void refuse(const std::string& what, const std::string& why) { throw Error(Errc::kPlugin, concat(what, ": ", why)); }

// Boost wraps the loader's text in its own: "boost::dll::shared_library::load() failed (dlerror system message: TEXT): ...".
// What has no such text comes from the library's own code.
std::string why_not_loaded(std::string_view what) {
  constexpr std::string_view kBegin = "dlerror system message: ";
  const size_t begin = what.find(kBegin);
  if (begin == std::string_view::npos) return concat("a static initialiser threw: ", one_line(what));
  what.remove_prefix(begin + kBegin.size());
  return concat(one_line(what.substr(0, what.rfind("): "))), "; link the plugin with what it uses, or build it again with the headers of libmarlin " MARLIN_VERSION);
}

// glibc declares dlopen() as a function that throws nothing, but the static initialisers that it runs may throw. Called by its name, it would end the process
// where the compiler has believed that; this pointer's type says nothing of the kind, and the compiler cannot see what it holds.
void* (*const volatile open_library)(const char*, int) = &::dlopen;

// Runs the library's static initialisers: its file must have been checked.
const PluginDescriptor* link(const LoadedPlugin& plugin) {
  try {
    static_cast<void>(open_library(plugin.file.c_str(), RTLD_NOW | RTLD_LOCAL));  // Boost then finds it open, or says why it cannot be
    const boost::dll::shared_library library(fs::path(plugin.file), boost::dll::load_mode::rtld_now);
    // LibTorch, spdlog and thread-locals of a library do not survive its unloading, so it is pinned: the handle may go.
    if (!::dlopen(plugin.file.c_str(), RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE)) throw std::runtime_error(::dlerror());
    return &library.get<const PluginDescriptor>("marlin_plugin");
  } catch (const std::exception& error) {
    refuse(plugin.title(), concat("cannot be loaded: ", why_not_loaded(error.what())));
  }
}

// Files of LibTorch's libraries in this process, by their names without what a packager may have added.
std::map<std::string, std::set<std::string>> loaded_torch() {
  std::map<std::string, std::set<std::string>> files;
  const auto note = [](dl_phdr_info* info, size_t, void* data) {
    const std::string file = fs::path(info->dlpi_name).filename().string();
    for (const std::string library : {"libtorch_cpu", "libc10"}) {
      if (file.starts_with(library) && file.size() > library.size() && (file[library.size()] == '.' || file[library.size()] == '-')) {
        (*static_cast<decltype(files)*>(data))[library].insert(info->dlpi_name);
      }
    }
    return 0;
  };
  ::dl_iterate_phdr(note, &files);
  return files;
}

// Not through the plugin itself, whose needs are known, but through a library that it needs.
void refuse_second_torch(const std::string& what) {
  for (const auto& [library, files] : loaded_torch()) {
    if (files.size() < 2) continue;
    refuse(what, concat("with it a second LibTorch came into the process (", join({files.begin(), files.end()}, " and "),
                        "), and two of them cannot share tensors; link it and the libraries that it uses with one LibTorch"));
  }
}

}  // namespace

PluginHost::PluginHost(std::vector<std::string> plugin_path, HostContext context, double slow_call_seconds)
    : folders_(std::move(plugin_path)), context_(std::move(context)) {
  if (const char* more = std::getenv("MARLIN_PLUGIN_PATH")) {
    for (std::string& folder : split(more, ':')) folders_.push_back(std::move(folder));
  }
  std::erase(folders_, "");
  folders_.push_back((fs::absolute(boost::dll::this_line_location()).parent_path() / "marlin" / "plugins").string());
  if (!context_.logger) context_.logger = &null_logger();
  watch_ = std::make_unique<CallWatch>(*context_.logger, slow_call_seconds);
}

PluginHost::~PluginHost() = default;

std::vector<std::string> PluginHost::folders() const { return folders_; }

std::vector<std::string> PluginHost::available() const {
  std::set<std::string> names;
  for (const std::string& folder : folders_) {
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
      if (std::string name = plugin_name_of(entry->path().filename().string()); !name.empty()) names.insert(std::move(name));
    }
  }
  return {names.begin(), names.end()};
}

std::string PluginHost::find(const std::string& name) const {
  const std::string file_name = plugin_file_name(name);
  std::vector<std::string> searched;
  for (const std::string& folder : folders_) {
    std::error_code error;
    const fs::path file = fs::path(folder) / file_name;
    if (fs::symlink_status(file, error).type() != fs::file_type::not_found && !error) return file.string();
    searched.push_back(fs::is_directory(folder, error) ? folder : folder + " (no such folder)");
  }
  const std::vector<std::string> names = available();
  const bool looks_like_file = !plugin_name_of(name).empty();
  const std::string close = nearest(looks_like_file ? plugin_name_of(name) : name, names);
  refuse(concat("no plugin '", one_line(name), "'"),
         concat("there is no ", one_line(file_name), " in ", join(searched), "; plugins found there: ", names.empty() ? "none" : join(names),
                close.empty() ? "" : concat(" (did you mean ", close, "?)"), "; ",
                looks_like_file ? concat("a file is named with a path, ./", one_line(name)) : "name its folder with --plugin_path, or its file with a path"));
}

// The same file again, however it is named, or null.
const LoadedPlugin* PluginHost::loaded_before(const std::string& file, const std::string& name, PluginKind wanted) const {
  std::error_code error;
  for (const auto& plugin : loaded_) {
    if (fs::equivalent(plugin->file, file, error)) {
      check_kind(plugin->title(), plugin->kind, wanted);
      return plugin.get();
    }
    if (plugin->name == name && plugin->kind == wanted) {
      refuse("plugin " + file, concat("there is a ", to_string(wanted), " '", name, "' already, from ", plugin->file, "; two of one name cannot be told apart: rename one of them"));
    }
  }
  return nullptr;
}

const LoadedPlugin& PluginHost::load(const std::string& name_or_path, PluginKind wanted) {
  if (name_or_path.empty()) refuse(flag_of(wanted), "the name of a plugin is empty; name one, or give the path of its file");
  const bool is_path = name_or_path.find('/') != std::string::npos;
  const std::string path = fs::absolute(is_path ? name_or_path : find(name_or_path)).lexically_normal().string();
  std::error_code error;
  if (is_path && fs::status(path, error).type() == fs::file_type::not_found) {
    refuse("plugin " + path, concat("no such file; '", one_line(name_or_path), "' holds '/', so it is a path from the working folder; a plain name is searched for"));
  }
  const PluginFile file = read_plugin_file(path);
  const PluginKind kind = check_before_loading(file);
  if (const LoadedPlugin* before = loaded_before(path, file.name, wanted)) return *before;
  auto plugin = std::make_unique<LoadedPlugin>(LoadedPlugin{file.name, file.version, path, kind, {}, nullptr});
  check_kind(plugin->title(), kind, wanted);

  const auto seam = seam_of(*plugin);
  plugin->descriptor = seam->call("load", Watch::kCall, [&] { return link(*plugin); }, Phase::kMaking);
  remember_plugin_code(plugin->descriptor, plugin->title());
  refuse_second_torch(plugin->title());
  if (const auto table = plugin->descriptor->info.options) {
    plugin->options = seam->call("options", Watch::kCall, [&] { return table(); }, Phase::kMaking);
  }
  check_options(*plugin);
  loaded_.push_back(std::move(plugin));
  return *loaded_.back();
}

std::shared_ptr<const Seam> PluginHost::seam_of(const LoadedPlugin& plugin) const {
  auto seam = std::make_shared<const Seam>(plugin.title(), true, context_.logger);
  watch_->add(seam);
  return seam;
}

template <class Make>
auto* PluginHost::made(const LoadedPlugin& plugin, PluginKind kind, const char* call, Make make, const Options& options) {
  check_kind(plugin.title(), plugin.kind, kind);
  auto* result = seam_of(plugin)->call(call, Watch::kCall, [&] { return make(context_, options); }, Phase::kMaking);
  if (!result) refuse(plugin.title(), concat(call, " returned null; it must return what it made, or throw"));
  return result;
}

std::unique_ptr<AbstractCheckpointer> PluginHost::make_checkpointer(const LoadedPlugin& plugin, const Options& options) {
  std::unique_ptr<AbstractCheckpointer> result(made(plugin, PluginKind::kCheckpointer, "make_checkpointer", plugin.descriptor->info.make_checkpointer, options));
  result->set_name(plugin.name);
  result->set_seam(seam_of(plugin));
  return result;
}

std::unique_ptr<Writer> PluginHost::make_writer(const LoadedPlugin& plugin, const Options& options) {
  std::unique_ptr<Writer> writer(made(plugin, PluginKind::kWriter, "make_writer", plugin.descriptor->info.make_writer, options));
  return guarded_writer(seam_of(plugin), std::move(writer));
}

std::unique_ptr<TrainerBackend> PluginHost::make_backend(const LoadedPlugin& plugin, const Options& options) {
  std::unique_ptr<TrainerBackend> backend(made(plugin, PluginKind::kBackend, "make_backend", plugin.descriptor->info.make_backend, options));
  return guarded_backend(seam_of(plugin), std::move(backend));
}

std::unique_ptr<DeviceSupport> PluginHost::make_device(const LoadedPlugin& plugin, const Options& options) {
  std::unique_ptr<DeviceSupport> device(made(plugin, PluginKind::kDevice, "make_device", plugin.descriptor->info.make_device, options));
  return guarded_device(seam_of(plugin), std::move(device));
}

}  // namespace marlin
