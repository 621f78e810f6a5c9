// marlin-plugin check FILE
#include <algorithm>
#include <filesystem>
#include <iostream>

#include "commands.h"
#include "facts.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "marlin/testing/checkpointer_contract.h"
#include "marlin/tools/json.h"
#include "marlin/tools/text.h"
#include "plugin_under_check.h"
#include "plugins/plugin_checks.h"

namespace marlin::plugin_tool {
namespace {

using testing::CheckStatus;
using testing::ContractCheck;

constexpr std::chrono::seconds kTimeLimit(60);

PluginUnderCheck plugin_of(const Arguments& arguments) {
  const std::string file = std::filesystem::absolute(arguments.file(0)).lexically_normal().string();
  return {file, check_before_loading(read_plugin_file(file)), arguments.others()};
}

const std::vector<PartCheck>& part_checks(PluginKind kind) { return kind == PluginKind::kWriter ? writer_checks() : backend_checks(); }

std::vector<std::string> names_of(PluginKind kind) {
  if (kind == PluginKind::kCheckpointer) return testing::checkpointer_checks();
  std::vector<std::string> names;
  for (const PartCheck& check : part_checks(kind)) names.push_back(check.name);
  return names;
}

ContractCheck run_one(const PluginUnderCheck& plugin, const std::string& name) {
  if (plugin.kind == PluginKind::kCheckpointer) {
    testing::CheckpointerContract contract;
    contract.time_limit = kTimeLimit;
    contract.make = [&](HostContext& host) { return plugin.make_checkpointer(host); };
    return testing::check_checkpointer(contract, name);
  }
  const auto& checks = part_checks(plugin.kind);
  const auto check = std::ranges::find(checks, name, &PartCheck::name);
  return testing::run_check(name, kTimeLimit, [&](const std::filesystem::path& folder) { return check->run(plugin, folder); });
}

// An option that the plugin refuses is a matter of the call, not of the plugin: said once, rather than by every check.
void try_to_make(const PluginUnderCheck& plugin) {
  constexpr char kUsageError = 'u', kOther = 'o';
  const ContractCheck tried = testing::run_check("make", kTimeLimit, [&](const std::filesystem::path& folder) -> std::string {
    try {
      HostContext host{.run_dir = folder};
      switch (plugin.kind) {
        case PluginKind::kCheckpointer: (void)plugin.make_checkpointer(host); break;
        case PluginKind::kWriter: (void)plugin.make_writer(host); break;
        case PluginKind::kBackend: (void)plugin.make_backend(host); break;
      }
      return {};
    } catch (const Error& error) {
      return (error.code() == Errc::kInvalidArgument ? kUsageError : kOther) + std::string(error.what());
    }
  });
  if (tried.status != CheckStatus::kPassed) throw Error(Errc::kPlugin, concat("plugin ", plugin.file, ": while it was loaded and made, ", tried.detail));
  if (tried.detail.empty()) return;
  throw Error(tried.detail.front() == kUsageError ? Errc::kInvalidArgument : Errc::kPlugin, tried.detail.substr(1));
}

const char* word_of(CheckStatus status) {
  switch (status) {
    case CheckStatus::kPassed: return "ok";
    case CheckStatus::kFailed: return "failed";
    case CheckStatus::kNotRun: break;
  }
  return "not run";
}

int run(const Arguments& arguments) {
  const PluginUnderCheck plugin = plugin_of(arguments);
  std::vector<std::string> names = names_of(plugin.kind);
  if (const auto only = arguments.find("only")) {
    if (std::ranges::find(names, *only) == names.end()) {
      const std::string close = nearest(*only, names);
      throw Error(Errc::kInvalidArgument, concat("--only: there is no check '", *only, "' of a ", to_string(plugin.kind), "; ", close.empty() ? concat("there are: ", join(names)) : concat("did you mean '", close, "'?")));
    }
    names = {*only};
  }
  const bool json = arguments.has("json");
  if (arguments.has("list")) {
    if (json) {
      print({{"checks", names}});
    } else {
      for (const std::string& name : names) std::cout << name << '\n';
    }
    return kGood;
  }
  try_to_make(plugin);
  std::vector<ContractCheck> checks;
  Json list = Json::array();
  for (const std::string& name : names) {
    checks.push_back(run_one(plugin, name));
    const ContractCheck& check = checks.back();
    list.push_back({{"check", check.name}, {"status", word_of(check.status)}, {"detail", check.detail}, {"seconds", check.seconds}});
    if (!json) std::cout << printable(to_line(check)) << std::endl;
  }
  const bool good = !testing::any_failed(checks);
  if (json) {
    print({{"file", plugin.file}, {"kind", to_string(plugin.kind)}, {"good", good}, {"checks", std::move(list)}});
  } else {
    std::cout << testing::summary(checks) << '\n';
  }
  return good ? kGood : kBad;
}

}  // namespace

Command check_command() {
  return {"check", {"FILE"}, "Whether a plugin keeps its promises.",
          "Loads the plugin and runs every check in processes of its own, in fresh folders: a crash, an exit() or an endless loop (60 s) of\n"
          "the plugin is one failed check. For a checkpointer that is the contract: round trips, kills in the middle of a save, full disks,\n"
          "broken files and more. A backend trains and resumes, a writer writes. Flags that are not listed here are the plugin's own options,\n"
          "without a prefix: --mirror_dir backup. Exit code 1 if any check fails, or the plugin cannot be loaded.",
          {{"only", "CHECK", "Run this one only."}, {"list", "", "Print the names of the checks."}}, &run, "[--OPTION VALUE ...]"};
}

}  // namespace marlin::plugin_tool
