// The part of `checkpoint` that compares with Python's libraries: peers_checkpoint.py runs beside this process, and is asked for
// one block at a time, so that its blocks and ours take turns.
#include <fcntl.h>
#include <marlin/checkpointers/archive_reader.h>
#include <marlin/checkpointers/default_checkpointer.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "checkpoint_parts.h"

namespace marlin::bench {
namespace {

namespace fs = std::filesystem;

// The Python process. Its standard error is ours.
class Python {
 public:
  explicit Python(const std::vector<std::string>& command) {
    std::array<int, 2> to{}, from{};
    require(::pipe2(to.data(), O_CLOEXEC) == 0 && ::pipe2(from.data(), O_CLOEXEC) == 0, "there are pipes to be had");
    pid_ = ::fork();
    require(pid_ >= 0, "a process can be started");
    if (pid_ == 0) run(command, to[0], from[1]);
    ::close(to[0]);
    ::close(from[1]);
    questions_.reset(::fdopen(to[1], "w"));
    answers_.reset(::fdopen(from[0], "r"));
    works_with_ = answer("its start");
  }
  ~Python() {
    questions_.reset();  // the end of its input ends it
    ::waitpid(pid_, nullptr, 0);
  }
  Python(const Python&) = delete;
  Python& operator=(const Python&) = delete;

  [[nodiscard]] const std::string& works_with() const { return works_with_; }
  double seconds_of(const std::string& block) {
    std::fprintf(questions_.get(), "%s\n", block.c_str());
    std::fflush(questions_.get());
    return std::stod(answer(block));
  }
  Contender contender(const std::string& block) {
    return {block, [this, block] { return seconds_of(block); }};
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  [[noreturn]] static void run(const std::vector<std::string>& command, int input, int output) {
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    ::dup2(input, STDIN_FILENO);
    ::dup2(output, STDOUT_FILENO);
    ::execv(arguments.front(), arguments.data());
    ::perror(arguments.front());
    ::_exit(127);
  }

  std::string answer(const std::string& what) {
    std::string line(256, '\0');
    if (std::fgets(line.data(), static_cast<int>(line.size()), answers_.get()) == nullptr) {
      throw std::runtime_error("the Python peers ended in " + what + "; what they need is set up by scripts/bench --peers");
    }
    return line.substr(0, line.find('\n'));
  }

  pid_t pid_ = 0;
  std::unique_ptr<std::FILE, Close> questions_, answers_;
  std::string works_with_;
};

// malloc would keep what clones of the single tensors give back, and the next one would find it mapped.
void clone_into_fresh_memory(const StateDict& state) {
  size_t size = 0;
  for (const StateDict::Entry& entry : state) size += entry.value.as_tensor().nbytes();
  const std::unique_ptr<char[]> memory(new char[size]);
  char* to = memory.get();
  for (const StateDict::Entry& entry : state) {
    const at::Tensor& tensor = entry.value.as_tensor();
    std::memcpy(to, tensor.const_data_ptr(), tensor.nbytes());
    to += tensor.nbytes();
  }
}

}  // namespace

bool judge_peers(const Folder& folder, const fs::path& file, const Checkpoint& saved, const StateDict& live) {
  std::signal(SIGPIPE, SIG_IGN);  // a peer that has ended is told of by its missing answer
  const std::string root = MARLIN_SOURCE_DIR;
  const fs::path ours = folder / "against_peers.pt";
  Python python({root + "/.deps/venv/bin/python", root + "/tests/bench/peers_checkpoint.py", file.string(), (folder / "").string()});
  require(equal(read_checkpoint(folder / "by_torch.pt").module_interface_state, saved.module_interface_state), "both sides save the same state");
  const auto save = [&] {
    settle();  // of what the peers' blocks made and removed
    const double seconds = seconds_of([&] { write_checkpoint(ours, saved, {}, Durability::kUnsynced); });
    fs::remove(ours);
    return seconds;
  };
  std::vector<Contender> contenders = {
      {"save_unsynced_beside_peers", save},
      python.contender("torch_save"),
      python.contender("ignite_disk_saver"),
      {"load_verified_beside_peers", [&] { return seconds_of([&] { ArchiveReader(file).load_into({{"module_interface_state", live}}); }); }},
      python.contender("torch_load"),
      python.contender("torch_load_again"),
      python.contender("dcp_async_save_call"),
      {"clone_beside_peers", [&] { return seconds_of([&] { clone_into_fresh_memory(saved.module_interface_state); }); }},
  };
  settle();
  run_interleaved(contenders, blocks(kCheckpointBlocks));
  std::printf("# peers %s threads=1\n", python.works_with().c_str());
  for (const Contender& contender : contenders) print_csv("checkpoint", contender, 1e3);
  print_ratio("checkpoint", "save without fsync / torch.save", contenders[0], contenders[1]);
  print_ratio("checkpoint", "save without fsync / Ignite's DiskSaver", contenders[0], contenders[2]);
  print_ratio("checkpoint", "verified load into tensors / torch.load", contenders[3], contenders[4]);
  print_ratio("checkpoint", "verified load into tensors / torch.load into memory of an earlier one", contenders[3], contenders[5]);
  print_ratio("checkpoint", "call of dcp.async_save / clone", contenders[6], contenders[7]);
  bool ok = print_bound("checkpoint", "save without fsync / torch.save", median_ratio(contenders[0], contenders[1]), 0.5);
  ok &= print_bound("checkpoint", "verified load into tensors / torch.load", median_ratio(contenders[3], contenders[4]), 0.4);
  return ok;
}

}  // namespace marlin::bench
