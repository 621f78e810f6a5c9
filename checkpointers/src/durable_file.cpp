#include "marlin/checkpointers/durable_file.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <vector>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

[[noreturn]] void fail(const char* what, const std::filesystem::path& path) {
  throw Error(Errc::kIo, concat("cannot ", what, " ", path.string(), ": ", std::strerror(errno)));
}

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

class FileSink final : public ByteSink {
 public:
  explicit FileSink(std::filesystem::path path) : path_(std::move(path)) {
    file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file_ < 0) fail("write", path_);
  }
  ~FileSink() override {
    if (file_ >= 0) ::close(file_);
  }

  void append(std::span<const std::byte> bytes) override {
    constexpr size_t kPiece = size_t{1} << 20;  // larger writes are erratic in time
    while (!bytes.empty()) {
      const ssize_t written = ::write(file_, bytes.data(), std::min(bytes.size(), kPiece));
      if (written < 0) {
        if (errno == EINTR) continue;
        fail("write", path_);
      }
      bytes = bytes.subspan(static_cast<size_t>(written));
    }
  }

  void close() {
    const int file = std::exchange(file_, -1);
    if (::close(file) != 0 && errno != EINTR) fail("write", path_);
  }

 private:
  std::filesystem::path path_;
  int file_ = -1;
};

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

}  // namespace

std::string temporary_name(std::string_view name) {
  static const std::string host = host_name();
  const int64_t pid = ::getpid();
  return concat(".", name, ".", host, ".", pid, ".", start_time(pid).value_or(0), ".tmp");
}

void write_atomically(const std::filesystem::path& target, const std::function<void(ByteSink&)>& write) {
  std::error_code error;
  if (target.has_parent_path()) std::filesystem::create_directories(target.parent_path(), error);
  if (error) throw Error(Errc::kIo, concat("cannot make folder ", target.parent_path().string(), ": ", error.message()));
  const std::filesystem::path temporary = target.parent_path() / temporary_name(target.filename().string());
  try {
    FileSink sink(temporary);
    write(sink);
    sink.close();
    if (::rename(temporary.c_str(), target.c_str()) != 0) fail("write", target);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
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
