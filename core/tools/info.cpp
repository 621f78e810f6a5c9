// marlin-plugin info FILE
#include <iostream>

#include "commands.h"
#include "facts.h"
#include "marlin/sdk/abi.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/json.h"
#include "marlin/tools/text.h"

namespace marlin::plugin_tool {
namespace {

constexpr const char* kSanitizers[] = {"none", "AddressSanitizer", "ThreadSanitizer"};

std::string sanitizer(uint32_t number) { return number < std::size(kSanitizers) ? kSanitizers[number] : "unknown"; }
std::string yes_or_no(uint32_t fact) { return fact ? "yes" : "no"; }
std::string cxx_standard(uint32_t number) {
  return number == 201703 ? "C++17" : number == 202002 ? "C++20" : number == 202302 ? "C++23" : concat("__cplusplus ", number);
}
std::string cuda(uint32_t number) { return number == 0 ? "none" : concat(number / 1000, ".", number % 1000 / 10); }

int run(const Arguments& arguments) {
  const std::filesystem::path path = arguments.file(0);
  const PluginFile file = read_plugin_file(std::filesystem::absolute(path).lexically_normal().string());
  const BuildFacts& facts = file.facts;
  const std::string why = refusal(file);
  // Of a plugin of another SDK ABI, only what decides whether it can be loaded is known.
  const bool known = facts.abi == kPluginAbi;
  const auto text = [&](std::string_view value) { return known && !value.empty() ? printable(value) : std::string("-"); };
  if (arguments.has("json")) {
    const auto fact = [&](auto value) { return known ? Json(value) : Json(); };
    print({{"file", file.path},
           {"name", fact(file.name)},
           {"version", fact(file.version)},
           {"kind", fact(kinds_text(file))},
           {"sdk_abi", facts.abi},
           {"libtorch", known ? Json(facts.torch.view()) : Json(concat(facts.torch_major, ".", facts.torch_minor))},
           {"glibcxx_use_cxx11_abi", facts.cxx11_abi},
           {"glibcxx_debug", facts.glibcxx_debug != 0},
           {"sanitizer", sanitizer(facts.sanitizer)},
           {"libmarlin", fact(facts.marlin.view())},
           {"compiler", fact(facts.compiler.view())},
           {"cplusplus", fact(facts.cxx_standard)},
           {"ndebug", fact(facts.ndebug != 0)},
           {"cuda", fact(cuda(facts.cuda))},
           {"loads", why.empty()},
           {"refusal", why.empty() ? Json() : Json(why)}});
    return why.empty() ? kGood : kBad;
  }
  Table table({{""}, {""}});
  table.add({"file", printable(file.path)});
  table.add({"name", text(file.name)});
  table.add({"version", text(file.version)});
  table.add({"kind", text(kinds_text(file))});
  table.add({"SDK ABI", std::to_string(facts.abi)});
  table.add({"LibTorch", known ? printable(facts.torch.view()) : concat(facts.torch_major, ".", facts.torch_minor)});
  table.add({"_GLIBCXX_USE_CXX11_ABI", std::to_string(facts.cxx11_abi)});
  table.add({"_GLIBCXX_DEBUG", yes_or_no(facts.glibcxx_debug)});
  table.add({"sanitizer", sanitizer(facts.sanitizer)});
  table.add({"libmarlin", text(facts.marlin.view())});
  table.add({"compiler", text(facts.compiler.view())});
  table.add({"C++ standard", text(cxx_standard(facts.cxx_standard))});
  table.add({"NDEBUG", text(yes_or_no(facts.ndebug))});
  table.add({"CUDA", text(cuda(facts.cuda))});
  table.add({"loads here", why.empty() ? "yes" : "no: " + printable(why)});
  std::cout << table.text();
  return why.empty() ? kGood : kBad;
}

}  // namespace

Command info_command() {
  return {"info", {"FILE"}, "What a plugin's file says of itself, and whether this libmarlin would load it.",
          "Name, version, kind, and how it was built, read from the file: it is not loaded, and none of its code runs. The facts from SDK ABI\n"
          "to sanitizer must agree with this libmarlin's; the rest is only told. Exit code 1 if it is no plugin, or would be refused.",
          {}, &run};
}

}  // namespace marlin::plugin_tool
