#include "marlin/checkpointers/durable_file.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <vector>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

std::string host_name() {
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) != 0) return "localhost";
  for (char* c = name; *c != '\0'; ++c) {
    if (*c == '/' || *c == '.') *c = '-';
  }
  return name;
}

// Field 22 of /proc/<pid>/stat. The second field may hold spaces and brackets, so count from its last bracket.
std::optional<uint64_t> start_time(int64_t pid) {
  std::ifstream file(concat("/proc/", pid, "/stat"));
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  const size_t bracket = line.rfind(')');
  if (bracket == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(bracket + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  uint64_t value = 0;
  std::from_chars(field.data(), field.data() + field.size(), value);
  return value;
}

struct Temporary {
  std::string name, host;
  int64_t pid = 0;
  uint64_t start = 0;
};

template <class T>
bool read_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

std::optional<Temporary> parse_temporary(std::string_view file_name) {
  if (!file_name.starts_with('.') || !file_name.ends_with(".tmp")) return std::nullopt;
  file_name.remove_prefix(1);
  file_name.remove_suffix(4);
  std::vector<std::string_view> tail;  // start time, pid, host
  for (int i = 0; i < 3; ++i) {
    const size_t dot = file_name.rfind('.');
    if (dot == std::string_view::npos) return std::nullopt;
    tail.push_back(file_name.substr(dot + 1));
    file_name.remove_suffix(file_name.size() - dot);
  }
  Temporary result{std::string(file_name), std::string(tail[2])};
  if (!read_number(tail[0], result.start) || !read_number(tail[1], result.pid)) return std::nullopt;
  return result;
}

bool is_running(const Temporary& temporary) {
  if (::kill(static_cast<pid_t>(temporary.pid), 0) != 0 && errno == ESRCH) return false;
  const auto start = start_time(temporary.pid);
  return !start || *start == temporary.start;  // another start time: the number was given to another process
}

// On the way out of a failure, which is what the caller is to hear of.
void remove_quietly(FileSystem& file_system, const std::filesystem::path& path) {
  try {
    file_system.remove(path);
  } catch (const Error&) {  // swept at the next start
  }
}

}  // namespace

std::string temporary_name(std::string_view name) {
  static const std::string host = host_name();
  const int64_t pid = ::getpid();
  return concat(".", name, ".", host, ".", pid, ".", start_time(pid).value_or(0), ".tmp");
}

void write_atomically(const std::filesystem::path& target, uint64_t size_bytes, const std::function<void(WritableFile&)>& write,
                      Durability durability, FileSystem& file_system) {
  const std::filesystem::path folder = target.parent_path();
  if (!folder.empty()) file_system.make_directories(folder);
  if (const uint64_t free_bytes = file_system.free_space(folder); free_bytes < size_bytes) throw_no_space(target, size_bytes, free_bytes);
  const std::filesystem::path temporary = folder / temporary_name(target.filename().string());
  try {
    const std::unique_ptr<WritableFile> file = file_system.create(temporary, target);
    file->reserve(size_bytes);
    write(*file);
    if (durability == Durability::kDurable) file->sync();
    file->close();
    file_system.rename(temporary, target);
  } catch (...) {
    remove_quietly(file_system, temporary);
    throw;
  }
  if (durability == Durability::kDurable) file_system.sync_directory(folder);
}

int remove_stale_temporaries(const std::filesystem::path& folder, const std::function<bool(std::string_view)>& ours) {
  static const std::string host = host_name();
  int removed = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const auto temporary = parse_temporary(entry->path().filename().string());
    if (!temporary || temporary->host != host || !ours(temporary->name) || is_running(*temporary)) continue;
    if (::unlink(entry->path().c_str()) == 0) ++removed;
  }
  return removed;
}

}  // namespace marlin
