#include "launch/ranks.h"

#include <algorithm>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <vector>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin::launch {
namespace {

constexpr int kDefaultPort = 29500;  // torchrun's, too
constexpr const char* kThisMachine = "127.0.0.1";

bool is_digits(std::string_view text) { return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos; }

// A whole number, and nothing else: no sign, no space.
std::optional<int64_t> number_in(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (!is_digits(text) || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// What one launcher's variables are called, and what to do where some are missing.
struct Names {
  Launcher launcher;
  const char *rank, *world_size, *local_rank, *local_world_size;
  const char* remedy;
};

constexpr Names kTorchrun = {Launcher::kTorchrun, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
                             "start the program with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process; to run a single process, unset "};
constexpr const char* kMpirun = "start the program with mpirun; to run a single process, set RANK=0 and WORLD_SIZE=1";
constexpr Names kOpenMpi = {Launcher::kMpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", kMpirun};
constexpr Names kHydra = {Launcher::kMpi, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", kMpirun};
constexpr Names kSlurm = {Launcher::kSlurm, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE",
                          "start the program with srun; to run a single process, set RANK=0 and WORLD_SIZE=1"};

class Finder {
 public:
  explicit Finder(const Lookup& lookup) : lookup_(lookup) {}

  Ranks find() {
    if (given("RANK") && given("WORLD_SIZE")) return torchrun();
    const std::optional<Names> other = other_launcher();
    if (other) return of(*other);
    for (const char* name : {"WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"}) {
      if (given(name)) half_set(kTorchrun, name, given("RANK") ? "WORLD_SIZE" : "RANK");
    }
    if (text(kLauncherVariable) == kLocalLauncher) half_set(kTorchrun, kLauncherVariable, "RANK");
    return {};
  }

 private:
  [[nodiscard]] std::string text(const char* name) const {
    const char* value = lookup_(name);
    return value == nullptr ? "" : value;
  }
  [[nodiscard]] bool given(const char* name) const { return !text(name).empty(); }
  // "RANK=3"
  [[nodiscard]] std::string shown(const char* name) const { return concat(name, "=", one_line(text(name))); }

  template <class... Parts>
  [[noreturn]] static void refuse(const Parts&... parts) {
    throw Error(Errc::kInvalidArgument, concat(parts...));
  }

  [[noreturn]] void half_set(const Names& names, const char* is, const char* is_not) const {
    refuse(shown(is), " is set, but ", is_not, lookup_(is_not) == nullptr ? " is not: " : " is empty: ", names.remedy, names.launcher == Launcher::kTorchrun ? is : "");
  }

  [[nodiscard]] int number(const char* name, int least, int most) const {
    const std::optional<int64_t> value = number_in(text(name));
    if (!value || *value < least || *value > most) {
      refuse(name, "='", one_line(text(name)), "' is no whole number ", most == INT_MAX ? concat("of at least ", least) : concat("from ", least, " to ", most), "; correct it, or unset it");
    }
    return static_cast<int>(*value);
  }

  // A rank below a size.
  void check(const char* rank_name, int rank, const char* size_name, int size) const {
    if (rank >= size) refuse(shown(rank_name), ", but ", shown(size_name), ": ranks go from 0 to ", size - 1, "; correct the one that is wrong");
  }

  [[nodiscard]] Ranks torchrun() const {
    Ranks ranks;
    ranks.launcher = text(kLauncherVariable) == kLocalLauncher ? Launcher::kLocal : Launcher::kTorchrun;
    take_rank(kTorchrun, ranks);
    if (given("LOCAL_RANK") || given("LOCAL_WORLD_SIZE")) take_local_rank(kTorchrun, ranks);
    if (ranks.launcher == Launcher::kTorchrun) {
      ranks.agent_store = flag("TORCHELASTIC_USE_AGENT_STORE");
      if (given("TORCHELASTIC_RESTART_COUNT")) ranks.restart_count = number("TORCHELASTIC_RESTART_COUNT", 0, INT_MAX);
    }
    for (const char* name : {"MASTER_ADDR", "MASTER_PORT"}) {
      if (ranks.world_size > 1 && !given(name)) {
        refuse(shown("RANK"), " and ", shown("WORLD_SIZE"), " are set, but ", name, lookup_(name) == nullptr ? " is not: " : " is empty: ",
               name == std::string_view("MASTER_ADDR") ? "set it to the address of rank 0's machine" : "set it to a free port of rank 0's machine, for example 29500", "; to run a single process, unset RANK and WORLD_SIZE");
      }
    }
    ranks.master_addr = text("MASTER_ADDR");
    if (given("MASTER_PORT")) ranks.master_port = number("MASTER_PORT", 1, 65535);
    return ranks;
  }

  [[nodiscard]] bool flag(const char* name) const {
    const std::string value = text(name);
    for (const char* no : {"", "False", "false", "0"}) {
      if (value == no) return false;
    }
    for (const char* yes : {"True", "true", "1"}) {
      if (value == yes) return true;
    }
    refuse(name, "='", one_line(value), "' is neither True nor False; correct it, or unset it");
  }

  void take_rank(const Names& names, Ranks& ranks) const {
    ranks.world_size = number(names.world_size, 1, INT_MAX);
    ranks.rank = number(names.rank, 0, INT_MAX);
    check(names.rank, ranks.rank, names.world_size, ranks.world_size);
  }

  void take_local_rank(const Names& names, Ranks& ranks) const {
    if (!given(names.local_rank)) half_set(names, given(names.local_world_size) ? names.local_world_size : names.rank, names.local_rank);
    if (!given(names.local_world_size)) half_set(names, names.local_rank, names.local_world_size);
    ranks.local_world_size = number(names.local_world_size, 1, INT_MAX);
    ranks.local_rank = number(names.local_rank, 0, INT_MAX);
    check(names.local_rank, ranks.local_rank, names.local_world_size, ranks.local_world_size);
    if (ranks.local_world_size > ranks.world_size) {
      refuse(shown(names.local_world_size), ", but ", shown(names.world_size), ": a machine has not more processes than the run; correct the one that is wrong");
    }
  }

  [[nodiscard]] std::optional<Names> other_launcher() const {
    const bool slurm = is_slurm_step();
    for (const Names& names : {kOpenMpi, kHydra}) {
      const bool rank = given(names.rank), size = given(names.world_size);
      // srun sets PMI's variables, too, and tells more than they do.
      if (slurm && names.rank == kHydra.rank && text(names.rank) == text(kSlurm.rank) && text(names.world_size) == text(kSlurm.world_size)) continue;
      if (rank && size) return names;
      if (rank) half_set(names, names.rank, names.world_size);
      if (size) half_set(names, names.world_size, names.rank);
    }
    if (!slurm) return std::nullopt;
    return kSlurm;
  }

  // srun started it, as one of several.
  [[nodiscard]] bool is_slurm_step() const {
    if (!given("SLURM_STEP_ID")) return false;
    // Where a batch script or an interactive shell has an id of a step, it is one of the last of 32 bits.
    if (const std::optional<int64_t> id = number_in(text("SLURM_STEP_ID")); id && *id >= 0xfffffff0) return false;
    if (!given("SLURM_NTASKS")) {
      if (given("SLURM_PROCID")) half_set(kSlurm, "SLURM_PROCID", "SLURM_NTASKS");
      return false;
    }
    if (number("SLURM_NTASKS", 1, INT_MAX) == 1) return false;
    if (!given("SLURM_PROCID")) half_set(kSlurm, "SLURM_NTASKS", "SLURM_PROCID");
    return true;
  }

  [[nodiscard]] Ranks of(const Names& names) const {
    Ranks ranks;
    ranks.launcher = names.launcher;
    take_rank(names, ranks);
    if (names.launcher == Launcher::kSlurm) take_slurm_local_rank(ranks);
    else if (ranks.world_size > 1 || given(names.local_rank)) take_local_rank(names, ranks);
    must_agree("WORLD_SIZE", ranks.world_size, names.world_size);
    must_agree("RANK", ranks.rank, names.rank);
    must_agree("LOCAL_RANK", ranks.local_rank, names.local_rank);
    must_agree("LOCAL_WORLD_SIZE", ranks.local_world_size, names.local_world_size);
    ranks.master_addr = text("MASTER_ADDR");
    if (given("MASTER_PORT")) ranks.master_port = number("MASTER_PORT", 1, 65535);
    if (ranks.world_size == 1) return ranks;
    if (ranks.master_addr.empty()) ranks.master_addr = ranks.local_world_size == ranks.world_size ? kThisMachine : master_of(names);
    if (ranks.master_port == 0) ranks.master_port = derived_port(names);
    return ranks;
  }

  void must_agree(const char* name, int value, const char* with) const {
    if (!given(name) || number(name, 0, INT_MAX) == value) return;
    refuse(shown(name), ", but ", given(with) ? shown(with) : concat(with, " is not set"), " makes it ", value, ": unset ", name, ", or set RANK and WORLD_SIZE both, which then hold");
  }

  void take_slurm_local_rank(Ranks& ranks) const {
    if (!given("SLURM_LOCALID")) half_set(kSlurm, "SLURM_PROCID", "SLURM_LOCALID");
    ranks.local_rank = number("SLURM_LOCALID", 0, INT_MAX);
    const char* from = "SLURM_STEP_TASKS_PER_NODE";
    if (given(from)) {
      if (!given("SLURM_NODEID") && text(from).find(',') != std::string::npos) half_set(kSlurm, from, "SLURM_NODEID");
      const int node = given("SLURM_NODEID") ? number("SLURM_NODEID", 0, INT_MAX) : 0;
      ranks.local_world_size = tasks_of_node(text(from), node);
      if (ranks.local_world_size < 1) refuse(from, "='", one_line(text(from)), "' does not tell how many tasks node ", node, " has: ", kSlurm.remedy);
    } else {
      from = "SLURM_NTASKS_PER_NODE";  // what was asked for: the last node may have less
      if (!given(from)) half_set(kSlurm, "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE");
      ranks.local_world_size = std::min(number(from, 1, INT_MAX), ranks.world_size);
    }
    check("SLURM_LOCALID", ranks.local_rank, from, ranks.local_world_size);
    if (ranks.local_world_size > ranks.world_size) refuse(shown(from), ", but ", shown("SLURM_NTASKS"), ": a machine has not more processes than the run; correct the one that is wrong");
  }

  [[nodiscard]] std::string master_of(const Names& names) const {
    if (names.launcher == Launcher::kSlurm) {
      if (given("SLURM_STEP_NODELIST")) {
        std::string host = first_host(text("SLURM_STEP_NODELIST"));
        if (host.empty()) refuse("SLURM_STEP_NODELIST='", one_line(text("SLURM_STEP_NODELIST")), "' is no list of nodes; set MASTER_ADDR to the address of rank 0's machine");
        return host;
      }
      // srun's own machine: that of rank 0 where a batch script ran srun.
      if (given("SLURM_LAUNCH_NODE_IPADDR")) return text("SLURM_LAUNCH_NODE_IPADDR");
    }
    refuse(shown(names.rank), " and ", shown(names.world_size), " are set on several machines, but nothing says which is rank 0's: set MASTER_ADDR to its address",
           names.launcher == Launcher::kMpi ? " (mpirun -x MASTER_ADDR=..., or -genv MASTER_ADDR ...)" : "");
  }

  // Below the ports that systems give to connections. Steps of a job, and jobs on one node, get ports of their own, mostly. Where mpirun
  // starts processes by way of srun, some of them are in a step and others are not.
  [[nodiscard]] int derived_port(const Names& names) const {
    if (!given("SLURM_JOB_ID")) return kDefaultPort;
    const int64_t job = number("SLURM_JOB_ID", 0, INT_MAX);
    const int64_t step = names.launcher == Launcher::kSlurm ? number_in(text("SLURM_STEP_ID")).value_or(0) % 10000 : 0;
    return static_cast<int>(15000 + (job + 1009 * step) % 10000);
  }

  const Lookup& lookup_;
};

}  // namespace

const char* to_string(Launcher launcher) noexcept {
  switch (launcher) {
    case Launcher::kNone: return "none";
    case Launcher::kTorchrun: return "torchrun";
    case Launcher::kMpi: return "mpi";
    case Launcher::kSlurm: return "slurm";
    case Launcher::kLocal: return "local";
  }
  return "?";
}

std::string first_host(const std::string& list) {
  std::string host;
  for (size_t i = 0; i < list.size() && list[i] != ','; ++i) {
    if (list[i] != '[') {
      host += list[i];
      continue;
    }
    const size_t end = list.find(']', i);
    if (end == std::string::npos) return "";
    const std::string first = list.substr(i + 1, list.find_first_of("-,]", i + 1) - i - 1);
    if (!is_digits(first)) return "";
    host += first;
    i = end;
  }
  return host.find_first_of("] \t\n") == std::string::npos ? host : "";
}

int tasks_of_node(const std::string& list, int index) {
  int64_t before = 0;  // nodes of the parts that were passed
  int result = -1;
  for (const std::string& part : split(list, ',')) {
    std::string_view count = part;
    int64_t nodes = 1;
    if (const size_t open = count.find("(x"); open != std::string_view::npos) {
      if (!count.ends_with(')')) return -1;
      const std::string_view repeat = count.substr(open + 2, count.size() - open - 3);
      if (!is_digits(repeat) || repeat.size() > 9) return -1;
      nodes = *number_in(repeat);
      count = count.substr(0, open);
    }
    if (!is_digits(count) || count.size() > 9) return -1;
    if (result < 0 && index < before + nodes) result = static_cast<int>(*number_in(count));
    before += nodes;
  }
  return list.ends_with(',') ? -1 : result;
}

Ranks find_ranks(const Lookup& lookup) { return Finder(lookup).find(); }

Ranks find_ranks() {
  return find_ranks([](const char* name) -> const char* { return std::getenv(name); });
}

}  // namespace marlin::launch
