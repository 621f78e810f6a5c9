#include "template.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::plugin_tool {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".in";  // so that nobody takes a template for a source

fs::path program_folder() { return fs::read_symlink("/proc/self/exe").parent_path(); }

std::string read(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(stream), {});
  if (!stream) throw Error(Errc::kIo, concat("cannot read ", file.string(), ": ", std::strerror(errno)));
  return text;
}

void write(const fs::path& file, const std::string& text) {
  std::ofstream stream(file, std::ios::binary);
  stream << text;
  if (!stream.flush()) throw Error(Errc::kIo, concat("cannot write ", file.string(), ": ", std::strerror(errno)));
}

std::string filled_in(std::string text, const std::vector<std::pair<std::string, std::string>>& values) {
  for (const auto& [placeholder, value] : values) {
    for (size_t at = 0; (at = text.find(placeholder, at)) != std::string::npos; at += value.size()) text.replace(at, placeholder.size(), value);
  }
  return text;
}

}  // namespace

const std::vector<std::string>& template_kinds() {
  static const std::vector<std::string> kKinds = {"checkpointer", "writer", "backend"};
  return kKinds;
}

std::string class_of(const std::string& name, const std::string& kind) {
  std::vector<std::string> words = split(name, '_');
  if (words.size() > 1 && words.back() == kind) words.pop_back();
  std::string result;
  for (std::string& word : words) {
    if (!word.empty()) word[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(word[0])));
    result += word;
  }
  return result;
}

fs::path install_prefix() {
  const fs::path prefix = program_folder().parent_path();
  for (const char* libraries : {"lib", "lib64"}) {
    if (fs::is_regular_file(prefix / libraries / "cmake" / "marlin" / "marlinConfig.cmake")) return prefix;
  }
  return {};
}

std::vector<std::string> write_project(const fs::path& folder, const std::string& name, const std::string& kind) {
  const fs::path from = (program_folder() / ".." / "share" / "marlin" / "template" / kind).lexically_normal();
  std::error_code error;
  if (!fs::is_directory(from, error)) throw Error(Errc::kNotFound, concat("the templates of new plugins are not in ", from.string(), "; install libmarlin again"));
  fs::create_directories(folder, error);
  if (error) throw Error(Errc::kIo, concat("cannot make the folder '", folder.string(), "': ", error.message()));
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(from)) {
    std::string file = entry.path().filename().string();
    if (!file.ends_with(kSuffix)) continue;
    file.resize(file.size() - kSuffix.size());
    write(folder / file, filled_in(read(entry.path()), {{"@NAME@", name}, {"@CLASS@", class_of(name, kind)}}));
    files.push_back(file);
  }
  std::ranges::sort(files);
  return files;
}

}  // namespace marlin::plugin_tool
