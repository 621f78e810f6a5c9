// marlin-plugin list
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <map>
#include <optional>

#include "commands.h"
#include "facts.h"
#include "marlin/core/plugin_host.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/json.h"
#include "marlin/tools/text.h"
#include "plugins/plugin_checks.h"

namespace marlin::plugin_tool {
namespace {

namespace fs = std::filesystem;

struct Found {
  std::string file;
  std::optional<PluginFile> plugin;  // nothing: it cannot be read as one
  std::string problem;               // why it would be refused
  std::string shadowed_by;           // the file that is taken for its name
};

Found look_at(const std::string& file) {
  Found found{.file = file, .plugin = {}, .problem = {}, .shadowed_by = {}};
  try {
    found.plugin = read_plugin_file(file);
    found.problem = refusal(*found.plugin);
  } catch (const Error& error) {
    const std::string text = error.what(), start = concat("plugin ", file, ": ");
    found.problem = text.starts_with(start) ? text.substr(start.size()) : text;
  }
  return found;
}

// By name, in the order of the folders.
std::vector<Found> found_in(const std::vector<std::string>& folders) {
  std::vector<Found> all;
  std::map<std::string, std::string> taken;  // name -> file
  for (const std::string& folder : folders) {
    std::vector<std::string> names;
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
      if (std::string name = plugin_name_of(entry->path().filename().string()); !name.empty()) names.push_back(std::move(name));
    }
    std::ranges::sort(names);
    for (const std::string& name : names) {
      Found found = look_at((fs::absolute(folder) / plugin_file_name(name)).lexically_normal().string());
      const auto [first, is_first] = taken.emplace(name, found.file);
      if (!is_first) found.shadowed_by = first->second;
      all.push_back(std::move(found));
    }
  }
  return all;
}

std::string note(const Found& found) {
  if (!found.problem.empty()) return concat("refused: ", printable(found.problem));
  const std::string built = concat("built for ", printable(built_for(*found.plugin)));
  return found.shadowed_by.empty() ? built : concat("shadowed by ", printable(found.shadowed_by), "; ", built);
}

int run(const Arguments& arguments) {
  std::vector<std::string> folders = PluginHost(split(arguments.text("plugin_path", ""), ':'), {}).folders();
  for (std::string& folder : folders) folder = fs::path(folder).lexically_normal().string();  // bin/../lib
  const std::vector<Found> plugins = found_in(folders);
  const auto is_folder = [](const std::string& folder) {
    std::error_code error;
    return fs::is_directory(folder, error);
  };
  if (arguments.has("json")) {
    Json searched = Json::array(), list = Json::array();
    for (const std::string& folder : folders) searched.push_back({{"folder", folder}, {"exists", is_folder(folder)}});
    for (const Found& found : plugins) {
      const bool known = found.plugin && found.plugin->facts.abi == kPluginAbi;
      list.push_back({{"name", plugin_name_of(fs::path(found.file).filename().string())},
                      {"version", known ? Json(found.plugin->version) : Json()},
                      {"kind", known ? Json(kinds_text(*found.plugin)) : Json()},
                      {"file", found.file},
                      {"loads", found.problem.empty()},
                      {"refusal", found.problem.empty() ? Json() : Json(found.problem)},
                      {"shadowed_by", found.shadowed_by.empty() ? Json() : Json(found.shadowed_by)}});
    }
    print({{"folders", std::move(searched)}, {"plugins", std::move(list)}});
    return kGood;
  }
  std::vector<std::string> searched;
  for (const std::string& folder : folders) searched.push_back(printable(folder) + (is_folder(folder) ? "" : " (no such folder)"));
  std::cout << "searched: " << join(searched) << '\n';
  Table table({{"name"}, {"version"}, {"kind"}, {"file"}, {""}});
  for (const Found& found : plugins) {
    const bool known = found.plugin && found.plugin->facts.abi == kPluginAbi;
    table.add({printable(plugin_name_of(fs::path(found.file).filename().string())), known ? printable(found.plugin->version) : "-", known ? kinds_text(*found.plugin) : "-",
               printable(found.file), note(found)});
  }
  std::cout << (plugins.empty() ? "no plugins\n" : table.text());
  return kGood;
}

}  // namespace

Command list_command() {
  return {"list", {}, "The plugins that programs find by name, and from where.",
          "Looks through the folders that a program of this installation searches, in that order: those of --plugin_path, those of the\n"
          "environment's MARLIN_PLUGIN_PATH, and the folder of installed plugins. Of two files of one name the first is taken, whatever is\n"
          "wrong with it; the others are shadowed. Nothing is loaded.",
          {{"plugin_path", "FOLDERS", "Folders to search first, separated by ':'."}}, &run};
}

}  // namespace marlin::plugin_tool
