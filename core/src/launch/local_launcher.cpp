#include "launch/local_launcher.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "launch/rank_output.h"
#include "launch/ranks.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::launch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPipeBytes = 1 << 16;        // what a pipe holds
constexpr size_t kMostPending = 1 << 20;      // more output than that waits in the ranks' pipes
constexpr int kPassedOn[] = {SIGTERM, SIGINT, SIGUSR1};

[[noreturn]] void refuse(const std::string& what, int error) { throw Error(Errc::kIo, concat("--nproc: ", what, ": ", std::strerror(error))); }

// Closed when it goes.
class Descriptor {
 public:
  Descriptor() = default;
  // Never 0, 1 or 2, should these be closed: a rank gets others there.
  Descriptor(int number, const char* what) : number_(number) {
    if (number >= 0 && number <= STDERR_FILENO) {
      number_ = fcntl(number, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
      ::close(number);
    }
    if (number_ < 0) refuse(concat("cannot start ranks: ", what), errno);
  }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    close();
    number_ = std::exchange(other.number_, -1);
    return *this;
  }
  ~Descriptor() { close(); }

  void close() {
    if (number_ >= 0) ::close(number_);
    number_ = -1;
  }
  [[nodiscard]] bool is_open() const { return number_ >= 0; }
  [[nodiscard]] int number() const { return number_; }

 private:
  int number_ = -1;
};

struct Pipe {
  Descriptor from, to;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) refuse("cannot start ranks: pipe", errno);
    to = Descriptor(ends[1], "pipe");  // the higher one first: should `ends` hold 0 and 1, that closes none that is needed
    from = Descriptor(ends[0], "pipe");
  }
};

// A port for rank 0 to listen on. It stays bound, which keeps the system from giving it to anyone who asks for any port; rank 0 may bind it all
// the same, because it is not listened on here.
class Port {
 public:
  Port() {
    for (const int family : {AF_INET6, AF_INET}) {  // as TCPStore, which listens on all addresses of both, if there are both
      const int number = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (number < 0) continue;
      socket_ = Descriptor(number, "socket");
      const int yes = 1, no = 0;
      setsockopt(socket_.number(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
      if (family == AF_INET6) setsockopt(socket_.number(), IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
      sockaddr_storage address{};  // any address, any port
      address.ss_family = static_cast<sa_family_t>(family);
      socklen_t size = family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
      if (bind(socket_.number(), reinterpret_cast<sockaddr*>(&address), size) != 0) continue;
      if (getsockname(socket_.number(), reinterpret_cast<sockaddr*>(&address), &size) != 0) continue;
      number_ = ntohs(family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
      return;
    }
    refuse("cannot find a free port", errno);
  }
  [[nodiscard]] int number() const { return number_; }

 private:
  Descriptor socket_;
  int number_ = 0;
};

// Signals are taken from a descriptor while it lives; afterwards all is as it was.
class Signals {
 public:
  Signals() {
    sigemptyset(&taken_);
    for (const int signal : kPassedOn) sigaddset(&taken_, signal);
    sigaddset(&taken_, SIGCHLD);
    sigset_t blocked = taken_;
    sigaddset(&blocked, SIGPIPE);  // a reader that is gone is no reason to end
    descriptor_ = Descriptor(signalfd(-1, &taken_, SFD_CLOEXEC | SFD_NONBLOCK), "signalfd");
    pthread_sigmask(SIG_BLOCK, &blocked, &mask_);
    struct sigaction action {};
    action.sa_handler = SIG_DFL;  // were it ignored, ranks would leave no exit code
    sigaction(SIGCHLD, &action, &on_child_);
  }
  ~Signals() {
    while (next() != 0) {}  // nobody is left to pass them on to
    if (sigismember(&mask_, SIGPIPE) == 0) {
      sigset_t broken;
      sigemptyset(&broken);
      sigaddset(&broken, SIGPIPE);
      const timespec now{};
      while (sigtimedwait(&broken, nullptr, &now) > 0) {}
    }
    sigaction(SIGCHLD, &on_child_, nullptr);
    pthread_sigmask(SIG_SETMASK, &mask_, nullptr);
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  // 0: none has come.
  [[nodiscard]] int next() {
    signalfd_siginfo info;
    while (true) {
      const ssize_t size = read(descriptor_.number(), &info, sizeof info);
      if (size == sizeof info) return static_cast<int>(info.ssi_signo);
      if (size >= 0 || errno != EINTR) return 0;
    }
  }
  [[nodiscard]] int descriptor() const { return descriptor_.number(); }
  // As it was.
  [[nodiscard]] const sigset_t& mask() const { return mask_; }

 private:
  Descriptor descriptor_;
  sigset_t taken_, mask_;
  struct sigaction on_child_;
};

// What a new process needs to become a rank, made before fork().
struct Recipe {
  const char* program;
  char* const* arguments;
  char* const* environment;
  int in, out, err;  // what become 0, 1 and 2
  int failure;       // gets the errno of execve
  pid_t launcher;
  const sigset_t* mask;
};

// Between fork() and execve(), when other threads may have held any lock: only calls that are safe in a signal handler.
[[noreturn]] void become_rank(const Recipe& recipe) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != recipe.launcher) _exit(1);  // it ended before that was said
  setpgid(0, 0);
  dup2(recipe.in, STDIN_FILENO);
  dup2(recipe.out, STDOUT_FILENO);
  dup2(recipe.err, STDERR_FILENO);
  struct sigaction action {};
  action.sa_handler = SIG_IGN;  // which execve keeps: a request to save that comes too early does not end it
  sigaction(SIGUSR1, &action, nullptr);
  pthread_sigmask(SIG_SETMASK, recipe.mask, nullptr);
  execve(recipe.program, recipe.arguments, recipe.environment);
  const int error = errno;
  while (write(recipe.failure, &error, sizeof error) < 0 && errno == EINTR) {}
  _exit(127);
}

// The file that this program was started from; its link in /proc if it was replaced since. (The file's name is what ps and top show.)
std::string this_program() {
  const char* link = "/proc/self/exe";
  char name[PATH_MAX];
  const ssize_t size = readlink(link, name, sizeof name);
  if (size <= 0 || size == sizeof name) return link;
  std::string path(name, static_cast<size_t>(size));
  struct stat at_link, at_path;
  const bool same = stat(link, &at_link) == 0 && stat(path.c_str(), &at_path) == 0 && at_link.st_ino == at_path.st_ino && at_link.st_dev == at_path.st_dev;
  return same ? path : link;
}

int num_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
  return static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
}

// This process' environment, with some variables set anew.
std::vector<std::string> environment_with(const std::vector<std::pair<std::string, std::string>>& variables) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    if (std::none_of(variables.begin(), variables.end(), [&](const auto& variable) { return variable.first == name; })) result.emplace_back(text);
  }
  for (const auto& [name, value] : variables) result.push_back(concat(name, "=", value));
  return result;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

struct Rank {
  pid_t process;
  Descriptor out, err;
  RankStream out_stream, err_stream;
  bool running = true;
  int code = 0;  // once it has ended: as a shell tells it
};

// How a rank ended.
struct Ending {
  size_t rank;
  int signal;  // 0: none
  int code;
};

class LocalLaunch {
 public:
  LocalLaunch(int nproc, const std::vector<std::string>& arguments, const LocalLaunchOptions& options) : options_(options), console_(options.out, options.err) {
    ranks_.reserve(static_cast<size_t>(nproc));
    try {
      for (int rank = 0; rank < nproc; ++rank) start(rank, nproc, arguments);
    } catch (...) {
      kill_all();
      throw;
    }
  }
  ~LocalLaunch() { kill_all(); }
  LocalLaunch(const LocalLaunch&) = delete;
  LocalLaunch& operator=(const LocalLaunch&) = delete;

  int run() {
    while (num_running() > 0 || console_.pending() > 0) {
      wait_for_something();
      for (Rank& rank : ranks_) {
        if (console_.pending() < kMostPending) read_from(rank);
      }
      take_signals();
      look_for_ends();
      console_.redraw();
      const bool written = write_some();
      if (deadline_ && num_running() == 0 && written) deadline_ = Clock::now() + options_.grace;  // there is a reader
      else if (deadline_ && Clock::now() >= *deadline_) give_up();
    }
    if (failure_) return *failure_;
    if (lost_peer_) return stops_.empty() ? 1 : 128 + stops_.front();  // one that was stopped before it had begun
    const auto told = std::find_if(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return rank.code != 0; });
    return told == ranks_.end() ? 0 : told->code;
  }

 private:
  void start(int number, int nproc, const std::vector<std::string>& arguments) {
    const std::string program = options_.program.empty() ? this_program() : options_.program;
    std::vector<std::pair<std::string, std::string>> variables = {
        {"RANK", std::to_string(number)},       {"WORLD_SIZE", std::to_string(nproc)}, {"LOCAL_RANK", std::to_string(number)},          {"LOCAL_WORLD_SIZE", std::to_string(nproc)},
        {"MASTER_ADDR", "127.0.0.1"},           {"MASTER_PORT", std::to_string(port_.number())}, {kLauncherVariable, kLocalLauncher}};
    if (const char* threads = std::getenv("OMP_NUM_THREADS"); threads == nullptr || *threads == '\0') {
      variables.emplace_back("OMP_NUM_THREADS", std::to_string(std::max(1, num_cores() / nproc)));
    }
    std::vector<std::string> words = without_nproc(arguments), environment = environment_with(variables);
    const std::vector<char*> word_pointers = pointers_to(words), environment_pointers = pointers_to(environment);

    Pipe out, err, failure;
    for (const Pipe* pipe : {&out, &err}) fcntl(pipe->from.number(), F_SETFL, O_NONBLOCK);
    const Recipe recipe = {program.c_str(), word_pointers.data(), environment_pointers.data(), nothing_.number(), out.to.number(), err.to.number(), failure.to.number(), getpid(), &signals_.mask()};
    const pid_t process = fork();
    if (process < 0) refuse(concat("cannot start rank ", number, " of ", nproc, ": fork"), errno);
    if (process == 0) become_rank(recipe);

    const std::string prefix = concat("[rank ", number, "] ");
    ranks_.push_back({process, std::move(out.from), std::move(err.from),
                      RankStream(console_, number == 0 ? RankStream::Kind::kOut : RankStream::Kind::kErr, prefix),
                      RankStream(console_, number == 0 && console_.shows_bar() ? RankStream::Kind::kBar : RankStream::Kind::kErr, prefix)});
    failure.to.close();
    int error = 0;
    ssize_t size;
    while ((size = read(failure.from.number(), &error, sizeof error)) < 0 && errno == EINTR) {}  // 0: closed by execve
    if (size == sizeof error) refuse(concat("cannot start rank ", number, " of ", nproc, ": ", one_line(program)), error);
  }

  [[nodiscard]] int64_t num_running() const {
    return std::count_if(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return rank.running; });
  }

  void wait_for_something() {
    std::vector<pollfd> watched = {{signals_.descriptor(), POLLIN, 0}};
    for (Outlet* outlet : {&console_.err(), &console_.out()}) {
      if (outlet->pending() > 0) watched.push_back({outlet->descriptor(), POLLOUT, 0});
    }
    if (console_.pending() < kMostPending) {
      for (const Rank& rank : ranks_) {
        for (const Descriptor* descriptor : {&rank.err, &rank.out}) {
          if (descriptor->is_open()) watched.push_back({descriptor->number(), POLLIN, 0});
        }
      }
    }
    int milliseconds = -1;
    if (deadline_) milliseconds = static_cast<int>(std::clamp<int64_t>(std::chrono::ceil<std::chrono::milliseconds>(*deadline_ - Clock::now()).count(), 0, 1'000'000));
    (void)poll(watched.data(), watched.size(), milliseconds);  // whatever it says: nothing that follows blocks
  }

  // @return whether anything was.
  bool write_some() {
    const size_t before = console_.pending();
    console_.err().write_some();
    console_.out().write_some();
    return console_.pending() < before;
  }

  // At most what a pipe holds, so that none keeps the others waiting. What a rank wrote to its standard error before a line on its standard
  // output comes before it: of that, only what was there before the standard error was read.
  void read_from(Rank& rank) {
    const size_t size = num_ready(rank.out);
    const bool ended = size == 0 && has_ended(rank.out);
    if (rank.err.is_open()) read_at_most(kPipeBytes, rank.err, rank.err_stream);
    if (size > 0) read_at_most(size, rank.out, rank.out_stream);
    if (ended) finish(rank.out, rank.out_stream);
  }

  static size_t num_ready(const Descriptor& from) {
    int size = 0;
    return from.is_open() && ioctl(from.number(), FIONREAD, &size) == 0 ? static_cast<size_t>(size) : 0;
  }

  static bool has_ended(const Descriptor& from) {
    pollfd state = {from.number(), POLLIN, 0};
    return from.is_open() && poll(&state, 1, 0) > 0 && (state.revents & POLLIN) == 0;
  }

  void read_at_most(size_t most, Descriptor& from, RankStream& into) {
    while (most > 0) {
      const ssize_t size = read(from.number(), buffer_.data(), std::min(most, buffer_.size()));
      if (size < 0 && errno == EINTR) continue;
      if (size < 0) return;  // nothing there just now
      if (size == 0) return finish(from, into);
      into.take({buffer_.data(), static_cast<size_t>(size)});
      most -= static_cast<size_t>(size);
    }
  }

  static void finish(Descriptor& from, RankStream& into) {
    if (!from.is_open()) return;
    from.close();
    into.finish();
  }

  // All that a rank that has ended wrote. Others may hold the pipe, and go on writing: they are not waited for.
  void read_rest(Descriptor& from, RankStream& into) {
    read_at_most(num_ready(from), from, into);
    finish(from, into);
  }

  void take_signals() {
    while (const int signal = signals_.next()) {
      if (signal == SIGCHLD) continue;  // look_for_ends() looks each time
      if (signal == SIGUSR1) {           // one rank tells all; told to several it might come before a step on one, and after it on another
        if (ranks_.front().running) kill(ranks_.front().process, signal);
        continue;
      }
      send(signal);
      stops_.push_back(signal);
      if (num_running() == 0 && !deadline_) deadline_ = Clock::now() + options_.grace;
    }
  }

  void send(int signal) const {
    for (const Rank& rank : ranks_) {
      if (rank.running) kill(rank.process, signal);
    }
  }

  void look_for_ends() {
    std::vector<Ending> endings;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (!ranks_[i].running) continue;
      siginfo_t info{};
      if (waitid(P_PID, static_cast<id_t>(ranks_[i].process), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) continue;
      endings.push_back(info.si_code == CLD_EXITED ? Ending{i, 0, info.si_status} : Ending{i, info.si_status, 128 + info.si_status});
    }
    // Of those that are found at once, one that a signal killed was hardly made to fail by the others.
    std::stable_sort(endings.begin(), endings.end(), [](const Ending& a, const Ending& b) { return is_crash(a) && !is_crash(b); });
    for (const Ending& ending : endings) take_end(ending);
    // From now on only a reader can keep this from ending.
    if (!endings.empty() && num_running() == 0 && (failure_ || lost_peer_ || !stops_.empty())) deadline_ = Clock::now() + options_.grace;
  }

  [[nodiscard]] static bool is_crash(const Ending& ending) { return ending.signal != 0 && ending.signal != SIGABRT; }

  void take_end(const Ending& ending) {
    Rank& rank = ranks_[ending.rank];
    read_rest(rank.err, rank.err_stream);
    read_rest(rank.out, rank.out_stream);
    const bool failed = is_failure(ending);
    if (failed || ending.signal != 0) kill(-rank.process, SIGKILL);  // what it left behind; before waitpid(), after which the number may be another's
    while (waitpid(rank.process, nullptr, 0) < 0 && errno == EINTR) {}
    rank.running = false;
    rank.code = ending.code;
    if (!failed || failure_) return;

    if (ending.code == kPeerLostCode && ending.signal == 0) {
      if (!lost_peer_) deadline_ = Clock::now() + options_.grace;
      lost_peer_ = true;
      return;
    }
    failure_ = given_up_ ? 1 : ending.code;
    std::string line = concat("error: rank ", ending.rank, " of ", ranks_.size());
    if (given_up_) line += " did not end, and was killed";
    else line += ending.signal != 0 ? concat(" was killed by signal ", ending.signal, " (", strsignal(ending.signal), ")") : concat(" ended with exit code ", ending.code);
    if (num_running() > 0) line += "; the others are being ended";
    console_.err_line(line);
    deadline_ = Clock::now() + options_.grace;
    send(SIGTERM);
  }

  [[nodiscard]] bool is_failure(const Ending& ending) const {
    if (ending.signal != 0) return std::find(stops_.begin(), stops_.end(), ending.signal) == stops_.end();
    if (ending.code == 128 + SIGTERM || ending.code == 128 + SIGINT) return false;
    return std::find(options_.common_codes.begin(), options_.common_codes.end(), ending.code) == options_.common_codes.end();
  }

  // Waiting, for ranks that were told to end, or for someone to read what they wrote.
  void give_up() {
    deadline_.reset();
    given_up_ = true;
    kill_rest();
    if (num_running() > 0) return;
    console_.out().drop();
    console_.err().drop();
  }

  void kill_rest() const {
    for (const Rank& rank : ranks_) {
      if (!rank.running) continue;
      kill(-rank.process, SIGKILL);
      kill(rank.process, SIGKILL);
    }
  }

  // Without regard to what they have to say.
  void kill_all() {
    kill_rest();
    for (Rank& rank : ranks_) {
      while (rank.running && waitpid(rank.process, nullptr, 0) < 0 && errno == EINTR) {}
      rank.running = false;
    }
  }

  const LocalLaunchOptions& options_;
  Signals signals_;
  Port port_;
  Descriptor nothing_ = Descriptor(open("/dev/null", O_RDONLY | O_CLOEXEC), "/dev/null");
  Console console_;
  std::vector<Rank> ranks_;
  std::vector<char> buffer_ = std::vector<char>(kPipeBytes);
  std::vector<int> stops_;                       // signals that were passed on to end ranks
  std::optional<int> failure_;                   // the code of the first rank that failed by itself
  bool lost_peer_ = false;                       // a rank has ended because another failed
  bool given_up_ = false;                        // those that still ran were killed
  std::optional<Clock::time_point> deadline_;    // when to give up
};

}  // namespace

int launch_local(int nproc, const std::vector<std::string>& arguments, const LocalLaunchOptions& options) {
  if (nproc < 1) throw Error(Errc::kInvalidArgument, concat("--nproc: must be at least 1, got ", nproc));
  return LocalLaunch(nproc, arguments, options).run();
}

std::vector<std::string> without_nproc(const std::vector<std::string>& arguments) {
  std::vector<std::string> result;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (i > 0 && arguments[i] == "--nproc") {
      if (i + 1 < arguments.size() && !arguments[i + 1].starts_with("--")) ++i;
    } else if (i == 0 || !arguments[i].starts_with("--nproc=")) {
      result.push_back(arguments[i]);
    }
  }
  return result;
}

}  // namespace marlin::launch
