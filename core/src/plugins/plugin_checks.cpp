#include "plugin_checks.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <string_view>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

constexpr std::string_view kPrefix = "lib", kSuffix = ".so";

[[noreturn]] void refuse(const std::string& what, const std::string& why) { throw Error(Errc::kPlugin, concat(what, ": ", why)); }

bool consists_of(std::string_view text, std::string_view extra) {
  const auto allowed = [extra](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || extra.find(c) != std::string_view::npos; };
  return !text.empty() && std::all_of(text.begin(), text.end(), allowed);
}

void check_names(const std::string& what, const PluginFile& file) {
  const std::string expected = plugin_name_of(std::filesystem::path(file.path).filename().string());
  if (!consists_of(expected, "_-ABCDEFGHIJKLMNOPQRSTUVWXYZ")) {
    refuse(what, "a plugin's file is named libNAME.so, with letters, digits, _ and - in NAME; rename it");
  }
  if (file.name.empty() || file.version.empty()) {
    refuse(what, concat("its descriptor has no ", file.name.empty() ? "name" : "version", "; set it in MARLIN_PLUGIN(...)"));
  }
  if (file.name != expected) {
    refuse(what, concat("its descriptor says that it is '", one_line(file.name), "', its file name that it is '", expected, "'; rename the file or set .name = \"",
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

}  // namespace

const std::vector<std::string>& built_in_names(PluginKind kind) {
  static const std::vector<std::string> kCheckpointers = {"default"}, kBackends = {"sp", "sp-amp", "ddp", "ddp-amp"}, kWriters = {"stdout", "jsonl"}, kDevices = {"auto", "cpu"};
  switch (kind) {
    case PluginKind::kCheckpointer: return kCheckpointers;
    case PluginKind::kBackend: return kBackends;
    case PluginKind::kWriter: return kWriters;
    case PluginKind::kDevice: break;
  }
  return kDevices;
}

std::string plugin_file_name(const std::string& name) { return concat(kPrefix, name, kSuffix); }

std::string plugin_name_of(const std::string& file_name) {
  const std::string_view name = file_name;
  if (name.size() <= kPrefix.size() + kSuffix.size() || !name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return {};
  return std::string(name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size()));
}

const char* flag_of(PluginKind kind) {
  switch (kind) {
    case PluginKind::kCheckpointer: return "--checkpointer";
    case PluginKind::kBackend: return "--backend";
    case PluginKind::kWriter: return "--writers";
    case PluginKind::kDevice: break;
  }
  return "--device";
}

PluginKind check_before_loading(const PluginFile& file) {
  const std::string what = "plugin " + file.path;
  if (const auto differences = build_differences(file)) refuse(what, *differences);
  check_names(what, file);
  if (file.kinds.size() != 1) {
    refuse(what, concat("its descriptor sets ", file.kinds.size(), " of make_checkpointer, make_backend, make_writer and make_device; it must set exactly one"));
  }
  const PluginKind kind = file.kinds.front();
  const auto& taken = built_in_names(kind);
  if (std::find(taken.begin(), taken.end(), file.name) != taken.end()) {
    refuse(what, concat("'", file.name, "' is the name of a built-in ", to_string(kind), "; give the plugin another one"));
  }
  if (const auto problem = second_torch(file)) refuse(what, *problem);
  return kind;
}

void check_kind(const std::string& title, PluginKind kind, PluginKind wanted) {
  if (kind != wanted) refuse(title, concat("is a ", to_string(kind), ", not a ", to_string(wanted), "; name it with ", flag_of(kind)));
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
  if (!problems.empty()) refuse(plugin.title(), concat("its option table is not in order: ", join(problems, "; "), "; correct the table"));
}

}  // namespace marlin
