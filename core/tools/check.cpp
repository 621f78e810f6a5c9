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

constexpr int64_t kTimeLimit = 60;  // seconds

PluginUnderCheck plugin_of(const Arguments& arguments) {
  const std::string file = std::filesystem::absolute(arguments.file(0)).lexically_normal().string();
  return {file, check_before_loading(read_plugin_file(file)), arguments.others()};
}

const std::vector<PartCheck>& part_checks(PluginKind kind) {
  if (kind == PluginKind::kDevice) return device_checks();
  return kind == PluginKind::kWriter ? writer_checks() : backend_checks();
}

std::vector<std::string> names_of(PluginKind kind) {
  if (kind == PluginKind::kCheckpointer) return testing::checkpointer_checks();
  std::vector<std::string> names;
  for (const PartCheck& check : part_checks(kind)) names.push_back(check.name);
  return names;
}

std::chrono::seconds time_limit_of(const Arguments& arguments) {
  const int64_t limit = arguments.has("timeout_seconds") ? arguments.number("timeout_seconds") : kTimeLimit;
  if (limit < 1 || limit > 1'000'000) throw Error(Errc::kInvalidArgument, concat("--timeout_seconds: must be 1 to 1000000, got ", limit));
  return std::chrono::seconds(limit);
}

// Whoever is slow may be given more time.
ContractCheck told_of_limit(ContractCheck check) {
  if (check.late) check.detail += "; if it needs longer, give it more with --timeout_seconds";
  return check;
}

ContractCheck run_one(const PluginUnderCheck& plugin, const std::string& name, std::chrono::seconds time_limit) {
  if (plugin.kind == PluginKind::kCheckpointer) {
    testing::CheckpointerContract contract;
    contract.time_limit = time_limit;
    contract.make = [&](HostContext& host) { return plugin.make_checkpointer(host); };
    return told_of_limit(testing::check_checkpointer(contract, name));
  }
  const auto& checks = part_checks(plugin.kind);
  const auto check = std::ranges::find(checks, name, &PartCheck::name);
  return told_of_limit(testing::run_check(name, time_limit, [&](const std::filesystem::path& folder) { return check->run(plugin, folder); }));
}

// An option that the plugin refuses is a matter of the call, not of the plugin: said once, rather than by every check.
void try_to_make(const PluginUnderCheck& plugin, std::chrono::seconds time_limit) {
  constexpr char kUsageError = 'u', kOther = 'o';
  const ContractCheck tried = told_of_limit(testing::run_check("make", time_limit, [&](const std::filesystem::path& folder) -> std::string {
    try {
      HostContext host{.run_dir = folder};
      switch (plugin.kind) {
        case PluginKind::kCheckpointer: (void)plugin.make_checkpointer(host); break;
        case PluginKind::kWriter: (void)plugin.make_writer(host); break;
        case PluginKind::kBackend: (void)plugin.make_backend(host); break;
        case PluginKind::kDevice: (void)plugin.make_device(host); break;
      }
      return {};
    } catch (const Error& error) {
      return (error.code() == Errc::kInvalidArgument ? kUsageError : kOther) + std::string(error.what());
    }
  }));
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
  const std::chrono::seconds time_limit = time_limit_of(arguments);
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
  try_to_make(plugin, time_limit);
  std::vector<ContractCheck> checks;
  Json list = Json::array();
  for (const std::string& name : names) {
    checks.push_back(run_one(plugin, name, time_limit));
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
          "Loads the plugin and runs every check in processes of its own, in fresh folders: a crash, an exit() or an endless loop of the\n"
          "plugin is one failed check. For a checkpointer that is the contract: round trips, kills in the middle of a save, full disks,\n"
          "power cuts, broken files and more. A backend trains and resumes, a writer writes. Flags that are not listed here are the plugin's\n"
          "own options, without a prefix: --mirror_dir backup. Exit code 1 if any check fails, or the plugin cannot be loaded.",
          {{"only", "CHECK", "Run this one only."},
           {"list", "", "Print the names of the checks."},
           {"timeout_seconds", "N", concat("A check that takes longer has failed; if not given, ", kTimeLimit, ".")}},
          &run, "[--OPTION VALUE ...]"};
}

}  // namespace marlin::plugin_tool
