// marlin-plugin new NAME
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <set>

#include "commands.h"
#include "marlin/core/plugin_host.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/json.h"
#include "template.h"

namespace marlin::plugin_tool {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(const std::string& why) { throw Error(Errc::kInvalidArgument, why); }

PluginKind kind_named(const std::string& kind) {
  for (const PluginKind each : kPluginKinds) {
    if (kind == to_string(each) && std::ranges::find(template_kinds(), kind) != template_kinds().end()) return each;
  }
  const std::string close = nearest(kind, template_kinds());
  refuse(concat("--kind: there is no kind '", kind, "'; ", close.empty() ? concat("it is one of ", join(template_kinds())) : concat("did you mean ", close, "?")));
}

// The name becomes a file's, an option's, a CMake target's and, changed, a class's.
void check_name(const std::string& name, PluginKind kind) {
  const auto is_letter = [](char c) { return c >= 'a' && c <= 'z'; };
  const auto is_fine = [&](char c) { return is_letter(c) || (c >= '0' && c <= '9') || c == '_'; };
  if (name.size() > 40 || name.empty() || !is_letter(name.front()) || !std::ranges::all_of(name, is_fine)) {
    refuse(concat("'", name, "' cannot be a plugin's name: it takes 1 to 40 lower-case letters, digits and _, the first a letter"));
  }
  const auto& built_in = built_in_names(kind);
  if (std::ranges::find(built_in, name) != built_in.end()) refuse(concat("'", name, "' is the name of a built-in ", to_string(kind), "; choose another one"));
  // Targets that CMake or its generators make themselves.
  static const std::set<std::string> kTargets = {"all", "clean", "depend", "edit_cache", "help", "install", "package", "rebuild_cache", "test"};
  if (kTargets.contains(name) || name.starts_with("marlin")) refuse(concat("'", name, "' is taken: a CMake target of that name is there already; choose another one"));
}

int run(const Arguments& arguments) {
  const std::string& name = arguments.word(0);
  const std::string kind = arguments.text("kind", "checkpointer");
  check_name(name, kind_named(kind));
  const fs::path folder = fs::path(arguments.text("dir", ".")) / name;
  std::error_code error;
  if (fs::exists(fs::symlink_status(folder, error))) refuse(concat("'", folder.lexically_normal().string(), "' is there already; choose another name, or another --dir"));
  const std::string shown = folder.lexically_normal().string();
  const std::vector<std::string> files = write_project(folder, name, kind);
  if (arguments.has("json")) {
    print({{"folder", shown}, {"kind", kind}, {"files", files}});
    return kGood;
  }
  const fs::path prefix = install_prefix();
  std::cout << shown << ": a " << kind << ", its test and its README.md: " << join(files) << "\n\n"
            << "  cmake -S " << shown << " -B " << shown << "/build -DCMAKE_PREFIX_PATH=" << (prefix.empty() ? "<where libmarlin is installed>" : prefix.string()) << '\n'
            << "  cmake --build " << shown << "/build\n"
            << "  ctest --test-dir " << shown << "/build\n";
  return kGood;
}

}  // namespace

Command new_command() {
  return {"new", {"NAME"}, "A new plugin: a project that builds and passes its own test.",
          "Writes the folder NAME with a small plugin of that kind, a test of it and a README.md, to be changed into what it is to be. It is\n"
          "a project of its own, built against an installed libmarlin.",
          {{"kind", "KIND", "checkpointer (if not given), writer or backend."}, {"dir", "DIR", "Where the folder is made; if not given, here."}}, &run};
}

}  // namespace marlin::plugin_tool
