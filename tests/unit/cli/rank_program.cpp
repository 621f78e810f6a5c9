// A rank as local_launcher_test needs it: `rank_program STEP...`. A step `2@exit=3` is rank 2's only. It links no library of ours, to start fast.
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <string_view>

namespace {

std::string g_rank = "?";
int g_tell = -1;

void put(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = write(descriptor, text.data(), text.size());
    if (done < 0 && errno != EINTR) _exit(70);
    if (done > 0) text.remove_prefix(static_cast<size_t>(done));
  }
}

std::string unescaped(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool escape = text[i] == '\\' && i + 1 < text.size();
    const char c = escape ? text[++i] : text[i];
    result += !escape ? c : c == 'n' ? '\n' : c == 'r' ? '\r' : c;
  }
  return result;
}

// "1 4711 ready\n": rank, process, what
void tell(std::string_view what) { put(g_tell, g_rank + " " + std::to_string(getpid()) + " " + std::string(what) + "\n"); }

int number_of(std::string_view name) { return name == "TERM" ? SIGTERM : name == "INT" ? SIGINT : name == "USR1" ? SIGUSR1 : name == "SEGV" ? SIGSEGV : name == "PIPE" ? SIGPIPE : SIGABRT; }

void on_signal(int signal) { tell(signal == SIGTERM ? "TERM" : signal == SIGINT ? "INT" : "USR1"); }

void set(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigaction(signal, &action, nullptr);
}

// Lines on both streams, in pieces that end anywhere.
void write_lines(unsigned seed, int count) {
  std::mt19937 random(seed + 1000U * static_cast<unsigned>(std::atoi(g_rank.c_str())));
  std::string text[2];
  for (int line = 0; line < count; ++line) {
    for (int stream = 0; stream < 2; ++stream) {
      text[stream] += (stream == 0 ? "o" : "e") + g_rank + ":" + std::to_string(line) + ":" + std::string(random() % 300, static_cast<char>('a' + line % 26)) + "\n";
      const size_t size = random() % (text[stream].size() + 1);
      put(stream + 1, text[stream].substr(0, size));
      text[stream].erase(0, size);
    }
  }
  for (int stream = 0; stream < 2; ++stream) put(stream + 1, text[stream]);
}

std::string listening() {
  const int number = socket(AF_INET6, SOCK_STREAM, 0);
  const int yes = 1;
  setsockopt(number, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(static_cast<uint16_t>(std::atoi(std::getenv("MASTER_PORT"))));
  if (bind(number, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(number, 1) != 0) return std::strerror(errno);
  return "listening";
}

void run(std::string_view step) {
  if (const size_t at = step.find('@'); at != std::string_view::npos && at < 3) {
    if (step.substr(0, at) != g_rank) return;
    step.remove_prefix(at + 1);
  }
  const size_t equals = step.find('=');
  const std::string_view verb = step.substr(0, equals);
  const std::string value(equals == std::string_view::npos ? "" : step.substr(equals + 1));
  char byte = 0;
  if (verb == "out") put(1, unescaped(value));
  else if (verb == "err") put(2, unescaped(value));
  else if (verb == "lines") write_lines(static_cast<unsigned>(std::atoi(value.c_str())), 1000);
  else if (verb == "flood") for (int i = 0; i < std::atoi(value.c_str()); ++i) put(1, std::string(999, 'x') + "\n");  // kilobytes
  else if (verb == "pairs") for (int i = 0; i < std::atoi(value.c_str()); ++i) put(2, std::to_string(i) + "\n"), put(1, std::to_string(i) + "\n");
  else if (verb == "tell_to") g_tell = std::atoi(value.c_str());
  else if (verb == "tell") tell(value);
  else if (verb == "wait_on") while (read(std::atoi(value.c_str()), &byte, 1) < 0 && errno == EINTR) {}
  else if (verb == "input") tell(read(0, &byte, 1) == 0 ? "nothing" : "something");
  else if (verb == "ignore") set(number_of(value), SIG_IGN);
  else if (verb == "catch") set(number_of(value), &on_signal);
  else if (verb == "sigset") {  // blocked until `until`, so that none is missed
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, nullptr);
  } else if (verb == "until") {
    sigset_t all;
    sigfillset(&all);
    for (int signal = 0; signal != number_of(value);) {
      sigwait(&all, &signal);
      on_signal(signal);
    }
  } else if (verb == "pause") while (true) pause();
  else if (verb == "child") {  // it holds what the rank holds, ignores SIGTERM, and lives until something comes by that descriptor
    if (fork() == 0) {
      alarm(300);
      set(SIGTERM, SIG_IGN);
      tell("child");
      if (value.empty()) while (true) pause();
      while (read(std::atoi(value.c_str()), &byte, 1) < 0 && errno == EINTR) {}
      set(SIGPIPE, SIG_IGN);
      tell(write(1, "late\n", 5) < 0 ? std::strerror(errno) : "written");
      _exit(0);
    }
  } else if (verb == "descriptors") {
    std::string open;
    for (int number = 0; number < 1024; ++number) {
      if (fcntl(number, F_GETFD) >= 0) open += (open.empty() ? "" : " ") + std::to_string(number);
    }
    put(2, open + "\n");
  } else if (verb == "env") put(2, value + "=" + (std::getenv(value.c_str()) ? std::getenv(value.c_str()) : "(none)") + "\n");
  else if (verb == "listen") put(2, listening() + "\n");
  else if (verb == "raise") set(number_of(value), SIG_DFL), raise(number_of(value));
  else if (verb == "exit") _exit(std::atoi(value.c_str()));
  else put(2, "no such step: " + std::string(step) + "\n"), _exit(71);
}

}  // namespace

int main(int argc, char** argv) {
  if (const char* rank = std::getenv("RANK")) g_rank = rank;
  if (argc > 1 && argv[1] == std::string_view("arguments")) {
    for (int i = 0; i < argc; ++i) put(1, std::string(argv[i]) + "\n");
    return 0;
  }
  alarm(300);  // should a test fail, it is not left for ever
  for (int i = 1; i < argc; ++i) run(argv[i]);
  return 0;
}
