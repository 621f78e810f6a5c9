#include "launch/local_launcher.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <stdexcept>

#include "launch/ranks.h"
#include "marlin/sdk/text.h"
#include "temp_folder.h"
#include "throws_error.h"

namespace marlin::launch {
namespace {

using namespace std::chrono_literals;
using marlin::testing::content_of;
using marlin::testing::TempFolder;
using marlin::testing::ThrowsError;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;
using ::testing::UnorderedElementsAre;

constexpr auto kLong = 5min;   // for a time that must not matter
constexpr int kPatience = 120'000;  // milliseconds until a test gives up waiting
constexpr int kGate = 200;          // the descriptor at which ranks wait for the test

using Words = std::vector<std::string>;

LocalLaunchOptions options_of(std::chrono::milliseconds grace = kLong) {
  LocalLaunchOptions options;
  options.program = MARLIN_RANK_PROGRAM;
  options.grace = grace;
  return options;
}

// The two ends of a pipe; ranks inherit the one that is asked for.
struct TestPipe {
  int from = -1, to = -1;
  explicit TestPipe(bool inherit_to) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
    from = ends[0], to = ends[1];
    fcntl(inherit_to ? to : from, F_SETFD, 0);
  }
  ~TestPipe() { close_from(), close_to(); }
  TestPipe(const TestPipe&) = delete;
  TestPipe& operator=(const TestPipe&) = delete;
  void close_from() { if (from >= 0) close(std::exchange(from, -1)); }
  void close_to() { if (to >= 0) close(std::exchange(to, -1)); }
};

// A process that calls launch_local().
class Launch {
 public:
  // @param before is called in that process first.
  Launch(int nproc, Words steps, LocalLaunchOptions options = options_of(), const std::function<void(LocalLaunchOptions&)>& before = {}) {
    steps.insert(steps.begin(), {"rank_program", concat("tell_to=", told_.to)});
    const pid_t test = getpid();
    process_ = fork();
    if (process_ < 0) throw std::runtime_error("fork");
    if (process_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != test) _exit(98);
      alarm(kPatience / 1000);  // should it hang, it ends, and its ranks with it
      close(told_.from);
      close(gate.to);
      dup2(gate.from, kGate);
      setpgid(0, 0);
      options.out = open((folder_ / "out").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
      options.err = open((folder_ / "err").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_APPEND, 0600);
      int code = 99;
      try {
        if (before) before(options);
        code = launch_local(nproc, steps, options);
      } catch (const std::exception& error) {
        dprintf(options.err, "thrown: %s\n", error.what());
      }
      _exit(code);
    }
    told_.close_to();
    gate.close_from();
  }
  ~Launch() {
    if (process_ <= 0) return;
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  // As a shell tells it; minus the number of a signal that killed the launcher.
  int code() {
    if (process_ > 0) {
      int status = 0;
      while (waitpid(process_, &status, 0) < 0) {}
      process_ = -1;
      code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }
    return code_;
  }
  std::string out() { return code(), content_of(folder_ / "out"); }
  std::string err() { return code(), content_of(folder_ / "err"); }
  [[nodiscard]] pid_t process() const { return process_; }

  // The next line that a rank has told. Empty: no process is left that could.
  std::string heard() {
    size_t end;
    while ((end = heard_.find('\n')) == std::string::npos) {
      pollfd ready = {told_.from, POLLIN, 0};
      if (poll(&ready, 1, kPatience) <= 0) throw std::runtime_error("no rank tells anything; so far: " + heard_);
      char bytes[4096];
      const ssize_t size = read(told_.from, bytes, sizeof bytes);
      if (size <= 0) return "";
      heard_.append(bytes, static_cast<size_t>(size));
    }
    const std::string line = heard_.substr(0, end);
    heard_.erase(0, end + 1);
    return line;
  }
  [[nodiscard]] bool tells_within(std::chrono::milliseconds time) const {
    pollfd ready = {told_.from, POLLIN, 0};
    return !heard_.empty() || poll(&ready, 1, static_cast<int>(time.count())) > 0;
  }
  // Of `count` lines "RANK PROCESS WHAT": the process of each "RANK WHAT".
  std::map<std::string, pid_t> heard(int count) {
    std::map<std::string, pid_t> result;
    for (int i = 0; i < count; ++i) {
      const Words words = split(heard(), ' ');
      if (words.size() != 3) throw std::runtime_error("the ranks have ended");
      result[words[0] + " " + words[2]] = std::stoi(words[1]);
    }
    return result;
  }
  // Waits for the end of all: launcher, ranks, and what they started.
  Words heard_until_all_have_ended() {
    Words lines;
    for (std::string line = heard(); !line.empty(); line = heard()) lines.push_back(line);
    return lines;
  }
  void open_gate(int count) { ASSERT_EQ(write(gate.to, "xxxxxxxx", static_cast<size_t>(count)), count); }

  TestPipe gate{false};

 private:
  TempFolder folder_;
  TestPipe told_{true};
  std::string heard_;
  pid_t process_ = -1;
  int code_ = 0;
};

TEST(LocalLauncherTest, EachRankFindsItsPlace) {
  Words steps;
  const char* const names[] = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MARLIN_LAUNCHER", "OMP_NUM_THREADS", "KEPT"};
  for (const char* name : names) steps.push_back(concat("env=", name));
  Launch launch(3, steps, options_of(), [](LocalLaunchOptions&) {
    setenv("RANK", "7", 1);
    setenv("KEPT", "a b", 1);
    unsetenv("OMP_NUM_THREADS");
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
  });
  ASSERT_EQ(launch.code(), 0);
  std::map<std::string, std::map<std::string, std::string>> environments;
  for (const std::string& line : split(launch.err(), '\n')) {
    const size_t name = line.find("] ") + 2, value = line.find('=');
    environments[line.substr(0, name)][line.substr(name, value - name)] = line.substr(value + 1);
  }
  ASSERT_THAT(environments, SizeIs(3));
  std::set<int> ports;
  for (int rank = 0; rank < 3; ++rank) {
    const auto& environment = environments[concat("[rank ", rank, "] ")];
    const Ranks ranks = find_ranks([&](const char* name) { return environment.contains(name) ? environment.at(name).c_str() : nullptr; });
    EXPECT_EQ(ranks.launcher, Launcher::kLocal);
    EXPECT_EQ(ranks.rank, rank);
    EXPECT_EQ(ranks.world_size, 3);
    EXPECT_EQ(ranks.local_rank, rank);
    EXPECT_EQ(ranks.local_world_size, 3);
    EXPECT_EQ(ranks.master_addr, "127.0.0.1");
    ports.insert(ranks.master_port);
    EXPECT_EQ(environment.at("OMP_NUM_THREADS"), "1");  // of one core
    EXPECT_EQ(environment.at("KEPT"), "a b");
  }
  EXPECT_THAT(ports, SizeIs(1));
}

TEST(LocalLauncherTest, RanksShareTheCoresUnlessTheUserHasDivided) {
  Launch shared(1, {"env=OMP_NUM_THREADS"}, options_of(), [](LocalLaunchOptions&) { setenv("OMP_NUM_THREADS", "", 1); });
  cpu_set_t cores;
  sched_getaffinity(0, sizeof cores, &cores);
  EXPECT_EQ(shared.err(), concat("[rank 0] OMP_NUM_THREADS=", CPU_COUNT(&cores), "\n"));
  Launch divided(1, {"env=OMP_NUM_THREADS"}, options_of(), [](LocalLaunchOptions&) { setenv("OMP_NUM_THREADS", "7", 1); });
  EXPECT_EQ(divided.err(), "[rank 0] OMP_NUM_THREADS=7\n");
}

TEST(LocalLauncherTest, ThePortIsRankZerosAndIsGivenToNoOneElse) {
  Launch launch(2, {"0@env=MASTER_PORT", "tell=ready", concat("wait_on=", kGate), "0@listen"});
  launch.heard(2);
  std::set<int> given;
  for (int i = 0; i < 60000; ++i) {
    const int number = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    socklen_t size = sizeof address;
    ASSERT_EQ(bind(number, reinterpret_cast<sockaddr*>(&address), size), 0);
    getsockname(number, reinterpret_cast<sockaddr*>(&address), &size);
    given.insert(ntohs(address.sin_port));
    close(number);
  }
  launch.open_gate(2);
  const Words lines = split(launch.err(), '\n');
  ASSERT_THAT(lines, ElementsAre(StartsWith("[rank 0] MASTER_PORT="), "[rank 0] listening"));
  EXPECT_FALSE(given.contains(std::stoi(split(lines[0], '=')[1])));
}

TEST(LocalLauncherTest, RanksHaveTheProgramsArgumentsWithoutNproc) {
  EXPECT_THAT(without_nproc({"p", "--epochs", "3", "--nproc", "2", "--seed=1", "--nproc=4", "x"}), ElementsAre("p", "--epochs", "3", "--seed=1", "x"));
  EXPECT_THAT(without_nproc({"p", "--nproc"}), ElementsAre("p"));
  EXPECT_THAT(without_nproc({"p", "--nproc", "--epochs", "3", "--nprocs=1", "--module.nproc", "5"}), ElementsAre("p", "--epochs", "3", "--nprocs=1", "--module.nproc", "5"));
  EXPECT_THAT(without_nproc({"--nproc", "2"}), ElementsAre("--nproc", "2"));  // the first is the program's name
  EXPECT_THAT(without_nproc({}), IsEmpty());
  Launch launch(2, {}, options_of(), [](LocalLaunchOptions& options) { _exit(launch_local(2, {"name", "arguments", "a b", "", "--nproc", "2", "\"$x\"", "--y=\n"}, options)); });
  EXPECT_EQ(launch.code(), 0);
  EXPECT_EQ(launch.out(), "name\narguments\na b\n\n\"$x\"\n--y=\n\n");
}

TEST(LocalLauncherTest, WithoutAProgramItStartsItself) {
  Launch launch(2, {}, options_of(), [](LocalLaunchOptions& options) {
    options.program.clear();
    _exit(launch_local(2, {"cli_test", "--gtest_filter=NoSuchTest", "--gtest_color=no"}, options));
  });
  EXPECT_EQ(launch.code(), 0);
  EXPECT_THAT(launch.out(), HasSubstr("0 tests"));
  EXPECT_THAT(launch.err(), HasSubstr("[rank 1] [==========] Running 0 tests"));
}

TEST(LocalLauncherTest, RankZerosOutputIsThePrograms) {
  Launch launch(3, {"out=one\\r\\ntwo", "err=three\\n\\nfour", "input"});
  EXPECT_EQ(launch.code(), 0);
  EXPECT_EQ(launch.out(), "one\r\ntwo");
  Words expected;
  for (const char* rank : {"[rank 0] ", "[rank 1] ", "[rank 2] "}) {
    for (const char* line : {"three", "", "four"}) expected.push_back(concat(rank, line));
    if (rank[6] == '0') continue;
    for (const char* line : {"one", "two"}) expected.push_back(concat(rank, line));
  }
  EXPECT_THAT(split(launch.err(), '\n'), ::testing::UnorderedElementsAreArray(expected));
  EXPECT_THAT(launch.heard_until_all_have_ended(), Each(HasSubstr("nothing")));
}

TEST(LocalLauncherTest, WhatComesBeforeALineOnTheStandardErrorStaysBeforeIt) {
  Launch launch(2, {"0@pairs=20000"}, options_of(), [](LocalLaunchOptions& options) { options.out = options.err; });
  int told = -1, number = 0;  // the last on the standard error
  for (const std::string& line : split(launch.err(), '\n')) {
    if (line.starts_with("[")) ++told;
    else ASSERT_LE(number++, told);
  }
  EXPECT_EQ(told, 19999);
  EXPECT_EQ(number, 20000);
}

TEST(LocalLauncherTest, LinesOfFourRanksAtOnceStayWholeAndInOrder) {
  const unsigned seed = std::random_device{}() % 1'000'000;
  SCOPED_TRACE(concat("seed ", seed));
  Launch launch(4, {concat("lines=", seed)});
  ASSERT_EQ(launch.code(), 0);
  std::map<std::string, int> next;  // of each rank and stream
  const auto check = [&](const std::string& line, const std::string& prefix) {
    ASSERT_THAT(line, StartsWith(prefix));
    const Words parts = split(line.substr(prefix.size()), ':');
    ASSERT_GE(parts.size(), 2U) << line;
    const int number = next[prefix + parts[0]]++;
    ASSERT_EQ(parts[1], std::to_string(number)) << line;
    const std::string text = parts.size() > 2 ? parts[2] : "";
    ASSERT_EQ(text, std::string(text.size(), static_cast<char>('a' + number % 26)));
  };
  for (const std::string& line : split(launch.out(), '\n')) check(line, "");
  for (const std::string& line : split(launch.err(), '\n')) check(line, line.substr(0, 9));
  const std::map<std::string, int> all = {{"o0", 1000}, {"[rank 0] e0", 1000}, {"[rank 1] o1", 1000}, {"[rank 1] e1", 1000}, {"[rank 2] o2", 1000}, {"[rank 2] e2", 1000}, {"[rank 3] o3", 1000}, {"[rank 3] e3", 1000}};
  EXPECT_EQ(next, all);
}

TEST(LocalLauncherTest, WhatAllRanksEndWithIsTheExitCode) {
  struct Case {
    const char* what;
    Words steps;
    int code;
  };
  const Case all[] = {
      {"done", {"exit=0"}, 0},
      {"a last save failed", {"exit=4"}, 4},
      {"more to do", {"exit=5"}, 5},
      {"stopped by a signal that the test does not see", {"exit=143"}, 143},
      {"one was done already", {"1@exit=0", "exit=5"}, 5},
      {"they disagree", {"1@exit=4", "2@exit=5", "exit=0"}, 4},
  };
  for (const Case& one : all) {
    SCOPED_TRACE(one.what);
    Launch launch(3, one.steps);
    EXPECT_EQ(launch.code(), one.code);
    EXPECT_EQ(launch.err(), "");
  }
}

TEST(LocalLauncherTest, OneFailureEndsAllAndIsToldInOneLine) {
  struct Case {
    const char *step, *line;
    int code;
  };
  for (const Case& one : {Case{"1@exit=3", "ended with exit code 3", 3}, Case{"1@raise=SEGV", "was killed by signal 11 (Segmentation fault)", 139},
                          Case{"1@raise=TERM", "was killed by signal 15 (Terminated)", 143}, Case{"1@exit=255", "ended with exit code 255", 255}}) {
    SCOPED_TRACE(one.step);
    Launch launch(4, {"tell=ready", concat("1@wait_on=", kGate), "1@out=last words", one.step, "pause"});
    launch.heard(4);
    const auto began = std::chrono::steady_clock::now();
    launch.open_gate(1);
    EXPECT_EQ(launch.code(), one.code);
    EXPECT_LT(std::chrono::steady_clock::now() - began, kLong);
    EXPECT_EQ(launch.err(), concat("[rank 1] last words\nerror: rank 1 of 4 ", one.line, "; the others are being ended\n"));
    EXPECT_THAT(launch.heard_until_all_have_ended(), IsEmpty());
  }
}

TEST(LocalLauncherTest, TheFirstFailureIsTheOneThatIsTold) {
  // Rank 2 fails while it is ended for rank 0.
  Launch launch(3, {"sigset", "tell=ready", concat("0@wait_on=", kGate), "0@exit=7", "until=TERM", "2@exit=9", "exit=0"});
  launch.heard(3);
  launch.open_gate(1);
  EXPECT_EQ(launch.code(), 7);
  EXPECT_EQ(launch.err(), "error: rank 0 of 3 ended with exit code 7; the others are being ended\n");
}

TEST(LocalLauncherTest, ARankThatLostAnotherIsNoReasonAndGivesThatOneTimeToSayItsOwn) {
  // Ranks 1 and 2 hear of rank 0's failure, and end, before it does; nobody is told to end meanwhile.
  Launch launch(3, {"sigset", "tell=ready", "1@exit=75", "2@exit=75", concat("wait_on=", kGate), "exit=3"});
  launch.heard(3);
  launch.open_gate(1);
  EXPECT_EQ(launch.code(), 3);
  EXPECT_THAT(launch.err(), ::testing::StartsWith("error: rank 0 of 3 ended with exit code 3"));  // the others may just be ending
}

TEST(LocalLauncherTest, ALostRankThatNeverEndsIsKilledAfterTheTimeOfGraceAndNamed) {
  Launch launch(3, {"tell=ready", "1@pause", concat("wait_on=", kGate), "exit=75"}, options_of(300ms));
  launch.heard(3);
  launch.open_gate(2);
  EXPECT_EQ(launch.code(), 1);
  EXPECT_EQ(launch.err(), "error: rank 1 of 3 did not end, and was killed\n");
}

TEST(LocalLauncherTest, WhereAllHaveLostAnotherTheRunHasFailed) {
  Launch launch(2, {"exit=75"});
  EXPECT_EQ(launch.code(), 1);
}

TEST(LocalLauncherTest, RanksThatIgnoreSigtermAreKilledAfterTheTimeOfGraceWithTheirChildren) {
  const auto began = std::chrono::steady_clock::now();
  Launch launch(3, {"ignore=TERM", "child", "tell=ready", concat("2@wait_on=", kGate), "2@exit=3", "pause"}, options_of(300ms));
  launch.heard(6);
  launch.open_gate(1);
  EXPECT_EQ(launch.code(), 3);
  EXPECT_GE(std::chrono::steady_clock::now() - began, 300ms);
  EXPECT_EQ(launch.err(), "error: rank 2 of 3 ended with exit code 3; the others are being ended\n");
  EXPECT_THAT(launch.heard_until_all_have_ended(), IsEmpty());  // children, too
}

TEST(LocalLauncherTest, StopsArePassedOnToAllRanksAndTheSaveSignalToTheFirstWhichTellsTheOthers) {
  Launch launch(3, {"sigset", "tell=ready", "0@until=USR1", "until=TERM", "exit=143"});
  launch.heard(3);
  kill(launch.process(), SIGUSR1);
  EXPECT_THAT(launch.heard(1), UnorderedElementsAre(::testing::Key("0 USR1")));
  kill(launch.process(), SIGTERM);
  EXPECT_THAT(launch.heard(3), UnorderedElementsAre(::testing::Key("0 TERM"), ::testing::Key("1 TERM"), ::testing::Key("2 TERM")));
  EXPECT_EQ(launch.code(), 143);
  EXPECT_EQ(launch.err(), "");
}

TEST(LocalLauncherTest, RanksThatASignalStopsTellNoError) {
  for (const auto& [signal, code] : {std::pair{SIGTERM, 143}, std::pair{SIGINT, 130}}) {
    Launch launch(3, {"tell=ready", "pause"});  // no handler yet
    launch.heard(3);
    kill(launch.process(), signal);
    EXPECT_EQ(launch.code(), code);
    EXPECT_EQ(launch.err(), "");
  }
}

TEST(LocalLauncherTest, TheRankThatStopsLastIsWaitedFor) {
  Launch launch(2, {"sigset", "tell=ready", "until=TERM", concat("0@wait_on=", kGate), "0@out=saved\\n", "exit=143"}, options_of(0ms));
  launch.heard(2);
  kill(launch.process(), SIGTERM);
  launch.heard(2);
  launch.open_gate(1);
  EXPECT_EQ(launch.code(), 143);
  EXPECT_EQ(launch.out(), "saved\n");
}

TEST(LocalLauncherTest, CtrlCReachesEachRankOnce) {
  Launch launch(2, {"sigset", "tell=ready", "until=TERM", "exit=130"});
  launch.heard(2);
  kill(-launch.process(), SIGINT);  // as a terminal does: to the whole group
  std::map<std::string, int> heard;
  for (int i = 0; i < 2; ++i) ++heard[launch.heard()];
  kill(launch.process(), SIGTERM);
  for (int i = 0; i < 2; ++i) ++heard[launch.heard()];
  EXPECT_THAT(heard, SizeIs(4));
  EXPECT_THAT(heard, Each(::testing::Pair(::testing::_, 1)));
  EXPECT_EQ(launch.code(), 130);
}

TEST(LocalLauncherTest, ASaveSignalThatComesTooEarlyEndsNoRank) {
  Launch launch(2, {"tell=ready", concat("wait_on=", kGate), "exit=0"});
  launch.heard(2);
  kill(launch.process(), SIGUSR1);
  launch.open_gate(2);
  EXPECT_EQ(launch.code(), 0);
}

TEST(LocalLauncherTest, RanksEndWhenTheLauncherIsKilled) {
  Launch launch(4, {"ignore=TERM", "ignore=PIPE", "tell=ready", "pause"});
  launch.heard(4);
  kill(launch.process(), SIGKILL);
  EXPECT_EQ(launch.code(), -SIGKILL);
  EXPECT_THAT(launch.heard_until_all_have_ended(), IsEmpty());
}

TEST(LocalLauncherTest, AChildThatKeepsThePipesDoesNotKeepTheLauncher) {
  Launch launch(2, {concat("child=", kGate), "out=done\\n", "exit=0"});
  launch.heard(2);
  EXPECT_EQ(launch.code(), 0);
  EXPECT_EQ(launch.out(), "done\n");
  launch.open_gate(2);  // it outlives its rank, but nobody hears it
  const Words late = launch.heard_until_all_have_ended();
  EXPECT_THAT(late, SizeIs(2));
  EXPECT_THAT(late, Each(HasSubstr("Broken pipe")));
}

TEST(LocalLauncherTest, AReaderThatIsGoneEndsNoRank) {
  Launch launch(2, {"lines=1", "exit=0"}, options_of(), [](LocalLaunchOptions& options) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    close(ends[0]);
    options.out = ends[1];
  });
  EXPECT_EQ(launch.code(), 0);
  EXPECT_THAT(launch.err(), HasSubstr("[rank 1] o1:999"));
}

TEST(LocalLauncherTest, StandardDescriptorsMayBeClosed) {
  Launch launch(2, {"1@err=there\\n", "out=lost\\n", "exit=0"}, options_of(), [](LocalLaunchOptions& options) {
    for (const int number : {0, 1, 2}) close(number);
    options.out = 1;
  });
  EXPECT_EQ(launch.code(), 0);
  EXPECT_EQ(launch.err(), "[rank 1] there\n[rank 1] lost\n");
}

TEST(LocalLauncherTest, AReaderThatDoesNotReadIsNotWaitedForAfterASignal) {
  // More than two pipes hold, less than the launcher keeps.
  Launch launch(2, {"0@flood=400", "tell=ready", "pause"}, options_of(200ms), [](LocalLaunchOptions& options) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    options.out = ends[1];
  });
  launch.heard(2);
  const auto began = std::chrono::steady_clock::now();
  kill(launch.process(), SIGTERM);
  EXPECT_EQ(launch.code(), 143);
  EXPECT_GE(std::chrono::steady_clock::now() - began, 200ms);
}

TEST(LocalLauncherTest, AReaderThatDoesNotReadMakesRanksWait) {
  TestPipe reader(false);
  Launch launch(2, {"1@tell=ready", "0@flood=3000", concat("1@wait_on=", kGate), "1@err=last words\\n", "0@tell=done"}, options_of(), [&](LocalLaunchOptions& options) { options.out = reader.to; });
  reader.close_to();
  const Words ready = split(launch.heard(), ' ');
  ASSERT_EQ(ready[0], "1");
  EXPECT_FALSE(launch.tells_within(200ms));
  // A rank that ends meanwhile loses nothing.
  pollfd rank = {static_cast<int>(syscall(SYS_pidfd_open, std::stoi(ready[1]), 0)), POLLIN, 0};
  launch.open_gate(1);
  ASSERT_EQ(poll(&rank, 1, kPatience), 1);
  close(rank.fd);
  std::vector<char> bytes(3'000'000);
  for (size_t size = 0; size < bytes.size();) {
    const ssize_t now = read(reader.from, bytes.data(), bytes.size() - size);
    ASSERT_GT(now, 0);
    size += static_cast<size_t>(now);
  }
  EXPECT_THAT(launch.heard(), StartsWith("0 "));
  EXPECT_EQ(launch.code(), 0);
  EXPECT_EQ(launch.err(), "[rank 1] last words\n");
}

TEST(LocalLauncherTest, IgnoredChildSignalsDoNotLoseExitCodes) {
  Launch launch(2, {"1@exit=3", "exit=0"}, options_of(), [](LocalLaunchOptions&) { signal(SIGCHLD, SIG_IGN); });
  EXPECT_EQ(launch.code(), 3);
}

TEST(LocalLauncherTest, AMissingProgramIsNamed) {
  LocalLaunchOptions options;
  options.program = "/no/such\nprogram";
  EXPECT_THAT([&] { (void)launch_local(2, {"p"}, options); }, ThrowsError(Errc::kIo, std::string("--nproc: cannot start rank 0 of 2: /no/such\\nprogram: No such file or directory")));
  options.program = "/";
  EXPECT_THAT([&] { (void)launch_local(2, {"p"}, options); }, ThrowsError(Errc::kIo, std::string("--nproc: cannot start rank 0 of 2: /: Permission denied")));
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_THAT([&] { (void)launch_local(0, {"p"}, options); }, ThrowsError(Errc::kInvalidArgument, std::string("--nproc: must be at least 1, got 0")));
}

TEST(LocalLauncherTest, IfOneRankCannotBeStartedNoneIsLeft) {
  Launch launch(50, {"ignore=TERM", "pause"}, options_of(), [](LocalLaunchOptions&) {
    rlimit few{60, 60};
    setrlimit(RLIMIT_NOFILE, &few);
  });
  EXPECT_EQ(launch.code(), 99);
  EXPECT_EQ(launch.err(), "thrown: --nproc: cannot start ranks: pipe: Too many open files\n");
  EXPECT_THAT(launch.heard_until_all_have_ended(), IsEmpty());
}

std::set<std::string> open_descriptors() {
  std::set<std::string> result;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) result.insert(entry.path().filename());
  return result;
}

TEST(LocalLauncherTest, AHundredStartsLeaveNothingBehind) {
  Launch launch(1, {}, options_of(), [](LocalLaunchOptions& options) {
    const auto before = open_descriptors();
    sigset_t mask_before{}, mask_after{};
    sigaddset(&mask_before, SIGUSR2);
    pthread_sigmask(SIG_SETMASK, &mask_before, nullptr);
    struct sigaction action_before, action_after;
    const auto child = +[](int) {};
    signal(SIGCHLD, child);
    sigaction(SIGCHLD, nullptr, &action_before);
    for (int i = 0; i < 100; ++i) {
      const bool failing = i % 10 == 3, missing = i % 10 == 7;
      LocalLaunchOptions mine = options;
      mine.err = open("/dev/null", O_WRONLY | O_CLOEXEC);
      if (missing) mine.program = "/no/such";
      try {
        const int code = launch_local(2, {"p", "out=x\\n", failing ? "1@exit=3" : "exit=0", "exit=0"}, mine);
        if (code != (failing ? 3 : 0) || missing) dprintf(options.err, "start %d: code %d\n", i, code);
      } catch (const Error& error) {
        if (!missing) dprintf(options.err, "start %d: %s\n", i, error.what());
      }
      close(mine.err);
    }
    if (open_descriptors() != before) dprintf(options.err, "descriptors are left\n");
    if (waitpid(-1, nullptr, WNOHANG) != -1 || errno != ECHILD) dprintf(options.err, "a child is left\n");
    pthread_sigmask(SIG_SETMASK, nullptr, &mask_after);
    sigaction(SIGCHLD, nullptr, &action_after);
    if (memcmp(&mask_before, &mask_after, sizeof mask_before) != 0 || action_before.sa_handler != action_after.sa_handler) dprintf(options.err, "signals are not as they were\n");
  });
  EXPECT_EQ(launch.code(), 0);
  EXPECT_EQ(launch.err(), "");
}

TEST(LocalLauncherTest, RanksInheritNoDescriptorOfTheLauncher) {
  Launch launch(3, {"2@descriptors", "exit=0"}, options_of(), [](LocalLaunchOptions& options) {
    std::string shared = "expected:";
    for (int number = 0; number < 1024; ++number) {
      const int flags = fcntl(number, F_GETFD);
      if (number <= 2 || (flags >= 0 && (flags & FD_CLOEXEC) == 0)) shared += concat(" ", number);
    }
    dprintf(options.err, "%s\n", shared.c_str());
  });
  EXPECT_EQ(launch.code(), 0);
  const Words lines = split(launch.err(), '\n');
  ASSERT_THAT(lines, SizeIs(2));
  EXPECT_EQ(lines[1], concat("[rank 2]", lines[0].substr(lines[0].find(' '))));
}

}  // namespace
}  // namespace marlin::launch
