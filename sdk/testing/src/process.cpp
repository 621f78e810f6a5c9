#include "process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::testing::detail {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kOutputBytes = 8192;  // what is kept of the output
constexpr char kReturned = 'r';        // before what the body returned
constexpr char kExits = 'e';           // alone: exit() was called

[[noreturn]] void refuse(const char* call) { throw Error(Errc::kIo, concat("cannot run a check in a process of its own: ", call, ": ", std::strerror(errno))); }

// Closed when it goes.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(); }
  void close() {
    if (number_ >= 0) ::close(number_);
    number_ = -1;
  }
  void reset(int number) { close(), number_ = number; }
  [[nodiscard]] int number() const { return number_; }

 private:
  int number_;
};

struct Pipe {
  Descriptor from, to;
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) refuse("pipe");
    from.reset(ends[0]), to.reset(ends[1]);
    ::fcntl(ends[0], F_SETFL, O_NONBLOCK);
  }
};

// Appends what there is to be read. @return false at the end.
bool drain(Descriptor& from, std::string& into, size_t keep) {
  char bytes[4096];
  while (true) {
    const ssize_t got = ::read(from.number(), bytes, sizeof bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return true;
    if (got <= 0) return false;
    into.append(bytes, static_cast<size_t>(got));
    if (into.size() > keep) into.erase(0, into.size() - keep);
  }
}

void send(int to, const std::string& text) {
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t now = ::write(to, text.data() + sent, text.size() - sent);
    if (now < 0 && errno == EINTR) continue;
    if (now <= 0) ::_exit(70);
    sent += static_cast<size_t>(now);
  }
}

// Tells exit() from _exit() and its like, which run no handler. A process that the body forks inherits it, and says nothing.
struct ExitReport {
  int to = -1;
  pid_t process = 0;
};
ExitReport g_exit_report;

void report_exit() {
  if (g_exit_report.process == ::getpid()) (void)::write(g_exit_report.to, &kExits, 1);
}

[[noreturn]] void run_here(const std::function<std::string()>& body, const ForkOptions& options, pid_t parent, Pipe& result, Pipe& output) {
  if (options.leader) ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(70);  // it ended before that was said
  const int nothing = ::open("/dev/null", O_RDONLY);
  ::dup2(nothing, 0);
  ::dup2(output.to.number(), 1);
  ::dup2(output.to.number(), 2);
  static const int registered = std::atexit(&report_exit);  // by the first, for those that it forks, too
  if (registered == 0) g_exit_report = {result.to.number(), ::getpid()};
  std::string said(1, kReturned);
  try {
    said += body();
  } catch (const std::exception& error) {
    said += error.what();
  } catch (...) {
    said += "an exception that is no std::exception";
  }
  std::fflush(nullptr);
  send(result.to.number(), said);
  ::_exit(0);
}

std::string how_it_ended(int status, bool called_exit) {
  if (WIFEXITED(status)) return called_exit ? concat("called exit(", WEXITSTATUS(status), ")") : concat("ended with code ", WEXITSTATUS(status));
  const char* name = ::sigabbrev_np(WTERMSIG(status));
  return name ? concat("ended by SIG", name) : concat("ended by signal ", WTERMSIG(status));
}

std::string seconds(std::chrono::milliseconds time) { return concat(static_cast<double>(time.count()) / 1000, " s"); }

// Milliseconds for poll(); -1: for ever.
int until(const std::optional<Clock::time_point>& deadline) {
  if (!deadline) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(*deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1'000'000));
}

}  // namespace

std::string Ending::last_words() const {
  std::string_view text = output;
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  if (const size_t line = text.rfind('\n'); line != std::string_view::npos) text.remove_prefix(line + 1);
  return text.empty() ? how : concat(how, "; the last line that it wrote: ", one_line(text.substr(0, 300)));
}

Ending run_forked(const std::function<std::string()>& body, const ForkOptions& options) {
  Pipe result, output;
  std::fflush(nullptr);  // or both processes write what is still in the buffers
  const pid_t self = ::getpid(), child = ::fork();
  if (child < 0) refuse("fork");
  if (child == 0) run_here(body, options, self, result, output);
  result.to.close();
  output.to.close();
  const Descriptor process(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
  const auto end = [&] { ::kill(child, SIGKILL); };
  if (process.number() < 0) {
    end();
    ::waitpid(child, nullptr, 0);
    refuse("pidfd_open");
  }

  Ending ending;
  std::optional<Clock::time_point> deadline;
  if (options.time_limit.count() > 0) deadline = Clock::now() + options.time_limit;
  bool late = false;
  for (bool running = true; running;) {
    std::vector<pollfd> watched = {{process.number(), POLLIN, 0}, {result.from.number(), POLLIN, 0}, {output.from.number(), POLLIN, 0}};
    if (options.service) {
      for (const int descriptor : options.service->descriptors()) watched.push_back({descriptor, POLLIN, 0});
    }
    const int ready = ::poll(watched.data(), watched.size(), late ? -1 : until(deadline));
    if (ready == 0) {
      late = true;
      end();
      continue;
    }
    if (ready < 0) continue;  // interrupted
    if (watched[1].revents && !drain(result.from, ending.said, SIZE_MAX)) result.from.close();
    if (watched[2].revents && !drain(output.from, ending.output, kOutputBytes)) output.from.close();
    for (size_t i = 3; i < watched.size(); ++i) {
      if (watched[i].revents) options.service->ready(watched[i].fd);
    }
    running = watched[0].revents == 0;
  }
  if (result.from.number() >= 0) drain(result.from, ending.said, SIZE_MAX);
  if (output.from.number() >= 0) drain(output.from, ending.output, kOutputBytes);
  if (options.leader) ::kill(-child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {}

  ending.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  ending.returned = !late && ending.signal == 0 && !ending.said.empty() && ending.said.front() == kReturned;
  if (ending.returned) {
    ending.said.erase(0, 1);
  } else {
    const bool called_exit = ending.said == std::string_view(&kExits, 1);
    ending.said.clear();
    ending.late = late;
    ending.how = late ? concat("took longer than ", seconds(options.time_limit)) : how_it_ended(status, called_exit);
  }
  return ending;
}

}  // namespace marlin::testing::detail
