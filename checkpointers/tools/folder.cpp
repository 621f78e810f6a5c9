#include "folder.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <system_error>
#include <tuple>

#include "marlin/checkpointers/file_system.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/text.h"

namespace marlin::ckpt {
namespace {

namespace fs = std::filesystem;

constexpr const char* kAnyPrefix = "checkpoint";

// What is wrong is told with the flags of this program.
CheckpointNames names_of(const std::string& prefix, const std::string& extension) {
  try {
    return {prefix, extension};
  } catch (const Error& error) {
    const std::string_view why = error.what();
    constexpr std::string_view kOption = "checkpointer.file_";
    throw Error(error.code(), why.starts_with(kOption) ? concat("--", why.substr(kOption.size())) : std::string(why));
  }
}

std::optional<CheckpointNames::Parsed> parse(const std::string& prefix, const std::string& extension, const std::string& name) {
  try {
    return CheckpointNames(prefix, extension).parse(name);
  } catch (const Error&) {
    return std::nullopt;  // no checkpointer takes such a prefix
  }
}

// A prefix ends at one of the underscores. No name has two prefixes: those that could be mistaken for another form are refused.
std::optional<NamedFile> named_file(const std::string& name, const std::string& extension) {
  if (name.starts_with('.')) return std::nullopt;
  for (size_t at = name.rfind('_'); at != std::string::npos && at > 0; at = name.rfind('_', at - 1)) {
    const std::string prefix = name.substr(0, at);
    if (const auto parsed = parse(prefix, extension, name)) return NamedFile{{}, prefix, parsed->form, parsed->index};
  }
  return std::nullopt;
}

}  // namespace

std::vector<Flag> name_flags() {
  return {{"prefix", "TEXT", "Files of this prefix only; else of any."},
          {"ext", "TEXT", "Their extension, without the dot; pt if not given."}};
}

std::string extension(const Arguments& arguments) { return arguments.text("ext", "pt"); }

std::vector<NamedFile> named_files(const fs::path& folder, const Arguments& arguments) {
  const std::string extension = ckpt::extension(arguments);
  const std::optional<std::string> prefix = arguments.find("prefix");
  static_cast<void>(names_of(prefix.value_or(kAnyPrefix), extension));
  std::vector<NamedFile> files;
  for (const std::string& name : posix_file_system().list(folder)) {
    std::optional<NamedFile> file = named_file(name, extension);
    if (!file || (prefix && file->prefix != *prefix)) continue;
    file->path = folder / name;
    std::error_code error;
    if (!fs::is_regular_file(file->path, error)) continue;
    const uintmax_t size = fs::file_size(file->path, error);
    file->size_bytes = error ? 0 : size;
    files.push_back(std::move(*file));
  }
  std::sort(files.begin(), files.end(), [](const NamedFile& a, const NamedFile& b) {
    return std::tie(a.prefix, a.form, b.index) < std::tie(b.prefix, b.form, a.index);
  });
  return files;
}

std::string none_in(const fs::path& folder, const Arguments& arguments) {
  const CheckpointNames names = names_of(arguments.text("prefix", kAnyPrefix), extension(arguments));
  return printable(concat(folder.string(), ": no checkpoints (files like ", names.name(CheckpointNames::Form::kEpoch, 0), ")"));
}

const char* to_string(CheckpointNames::Form form) {
  constexpr const char* kNames[] = {"epoch", "step", "suspect", "model"};
  return kNames[static_cast<size_t>(form)];
}

std::string reason(const fs::path& file, const std::string& error) {
  const std::string start = file.string() + ": ";
  return error.starts_with(start) ? error.substr(start.size()) : error;
}

}  // namespace marlin::ckpt
