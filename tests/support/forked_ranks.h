// The processes of a run, forked from a test. The test itself must not call LibTorch, whose threads would not come along.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::testing {

inline constexpr int kPatience = 120;  // seconds until a rank that hangs is ended by SIGALRM

/// A port of this machine that stays bound, as launch_local() holds it for its ranks.
class HeldPort {
 public:
  HeldPort() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const int yes = 1;
    setsockopt(socket_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    socklen_t size = sizeof address;
    if (bind(socket_, reinterpret_cast<sockaddr*>(&address), size) != 0) throw std::runtime_error("bind");
    getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
    number_ = ntohs(address.sin_port);
  }
  ~HeldPort() { close(socket_); }
  HeldPort(const HeldPort&) = delete;
  HeldPort& operator=(const HeldPort&) = delete;

  void listen() { if (::listen(socket_, 16) != 0) throw std::runtime_error("listen"); }
  [[nodiscard]] int socket() const { return socket_; }
  [[nodiscard]] int number() const { return number_; }

 private:
  int socket_, number_ = 0;
};

/// Words from any rank to the test, or from the test to any rank.
class Gate {
 public:
  Gate() { if (pipe2(ends_, O_CLOEXEC) != 0) throw std::runtime_error("pipe"); }
  ~Gate() { close(ends_[0]), close(ends_[1]); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  void open(int times = 1) const {
    for (; times > 0; --times) if (write(ends_[1], "x", 1) != 1) std::abort();
  }
  /// Returns when it has been opened once more for each call. @throws std::runtime_error: it was not, in two minutes.
  void pass(int times = 1) const {
    for (; times > 0; --times) {
      pollfd ready = {ends_[0], POLLIN, 0};
      char byte;
      while (poll(&ready, 1, kPatience * 1000) < 0 && errno == EINTR) {}
      if (ready.revents == 0 || read(ends_[0], &byte, 1) != 1) throw std::runtime_error("nobody opens the gate");
    }
  }

 private:
  int ends_[2];
};

/// What `body` returns is what its rank says; so is what it throws, after the error's code: "training: rank 1 failed: boom".
class ForkedRanks {
 public:
  using Clock = std::chrono::steady_clock;
  using Body = std::function<std::string(int rank)>;
  struct End {
    int code = 0;              ///< 0: by itself; 1: it threw; else minus the signal that killed it: -SIGALRM, it hung.
    std::string said;
    std::string printed;       ///< To the standard output and error.
    Clock::time_point when;    ///< It said so.
  };
  enum class Leave : bool { kAtOnce, kByExit };  ///< By _exit, or with destructors of statics.

  ForkedRanks(int size, const Body& body, Leave leave = Leave::kAtOnce) {
    std::fflush(nullptr);
    for (int rank = 0; rank < size; ++rank) {
      Process& process = processes_.emplace_back();
      process.said = memfd_create("said", MFD_CLOEXEC);
      process.printed = memfd_create("printed", MFD_CLOEXEC);
      const pid_t test = getpid();
      process.id = fork();
      if (process.id < 0) throw std::runtime_error("fork");
      if (process.id == 0) run(rank, process, body, leave, test);
    }
  }
  ~ForkedRanks() {
    for (size_t rank = 0; rank < processes_.size(); ++rank) {
      kill(static_cast<int>(rank), SIGKILL);
      static_cast<void>(end(static_cast<int>(rank)));
      close(processes_[rank].said), close(processes_[rank].printed);
    }
  }
  ForkedRanks(const ForkedRanks&) = delete;
  ForkedRanks& operator=(const ForkedRanks&) = delete;

  /// A signal, unless its end has been asked for.
  void kill(int rank, int signal) {
    if (const Process& process = processes_[static_cast<size_t>(rank)]; process.id > 0) ::kill(process.id, signal);
  }
  /// Waits for it.
  [[nodiscard]] End end(int rank) {
    Process& process = processes_[static_cast<size_t>(rank)];
    if (process.id > 0) {
      int status = 0;
      while (waitpid(process.id, &status, 0) < 0 && errno == EINTR) {}
      process.id = 0;
      process.end.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
      process.end.printed = content_of(process.printed);
      std::string said = content_of(process.said);
      if (said.size() >= sizeof process.end.when) {
        std::memcpy(&process.end.when, said.data(), sizeof process.end.when);
        process.end.said = said.substr(sizeof process.end.when);
      }
    }
    return process.end;
  }
  /// Waits for all.
  [[nodiscard]] std::vector<End> ends() {
    std::vector<End> all;
    for (size_t rank = 0; rank < processes_.size(); ++rank) all.push_back(end(static_cast<int>(rank)));
    return all;
  }

 private:
  struct Process {
    pid_t id = 0;
    int said = -1, printed = -1;
    End end;
  };

  static std::string content_of(int file) {
    std::string content;
    char bytes[4096];
    for (ssize_t size; (size = pread(file, bytes, sizeof bytes, static_cast<off_t>(content.size()))) > 0;) content.append(bytes, static_cast<size_t>(size));
    return content;
  }

  [[noreturn]] static void run(int rank, const Process& process, const Body& body, Leave leave, pid_t test) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != test) _exit(98);
    alarm(kPatience);
    dup2(process.printed, STDOUT_FILENO), dup2(process.printed, STDERR_FILENO);
    int code = 1;
    const auto say = [&](const std::string& text) {
      const auto now = Clock::now();
      if (write(process.said, &now, sizeof now) < 0 || write(process.said, text.data(), text.size()) < 0) _exit(97);
    };
    try {
      say(body(rank));
      code = 0;
    } catch (const Error& error) {
      say(concat(to_string(error.code()), ": ", error.what()));
    } catch (const std::exception& error) {
      say(concat(demangled(typeid(error)), ": ", error.what()));
    }
    if (leave == Leave::kByExit) std::exit(code);
    std::fflush(nullptr);
    _exit(code);
  }

  std::vector<Process> processes_;
};

}  // namespace marlin::testing
