#include "python_peer.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <stdexcept>

namespace marlin::bench {
namespace {

[[noreturn]] void run(std::vector<char*>& words, int input, int output) {
  ::dup2(input, STDIN_FILENO);
  ::dup2(output, STDOUT_FILENO);
  ::execv(words.front(), words.data());
  ::perror(words.front());
  ::_exit(127);
}

}  // namespace

Python::Python(const std::string& script, const std::vector<std::string>& arguments) {
  std::signal(SIGPIPE, SIG_IGN);  // a peer that has ended is told of by its missing answer
  const std::string root = MARLIN_SOURCE_DIR;
  std::vector<std::string> command = {root + "/.deps/venv/bin/python", root + "/tests/bench/" + script};
  command.insert(command.end(), arguments.begin(), arguments.end());
  std::vector<char*> words;
  for (std::string& word : command) words.push_back(word.data());
  words.push_back(nullptr);
  std::array<int, 2> to{}, from{};
  require(::pipe2(to.data(), O_CLOEXEC) == 0 && ::pipe2(from.data(), O_CLOEXEC) == 0, "there are pipes to be had");
  pid_ = ::fork();
  require(pid_ >= 0, "a process can be started");
  if (pid_ == 0) run(words, to[0], from[1]);
  ::close(to[0]);
  ::close(from[1]);
  questions_.reset(::fdopen(to[1], "w"));
  answers_.reset(::fdopen(from[0], "r"));
  works_with_ = answer("its start");
}

Python::~Python() {
  questions_.reset();
  ::waitpid(pid_, nullptr, 0);
}

double Python::ask(const std::string& block) {
  std::fprintf(questions_.get(), "%s\n", block.c_str());
  std::fflush(questions_.get());
  return std::stod(answer(block));
}

Contender Python::contender(const std::string& block) {
  return {block, [this, block] { return ask(block); }};
}

std::string Python::answer(const std::string& what) {
  std::string line(256, '\0');
  if (std::fgets(line.data(), static_cast<int>(line.size()), answers_.get()) == nullptr) {
    throw std::runtime_error("the Python peers ended in " + what + "; what they need is set up by scripts/bench --peers");
  }
  return line.substr(0, line.find('\n'));
}

}  // namespace marlin::bench
