// Which of how many processes this one is.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace marlin::launch {

/// Who started this process as one of several.
enum class Launcher : uint8_t {
  kNone,      ///< No one: it is alone.
  kTorchrun,  ///< torchrun, or whoever else set RANK and WORLD_SIZE.
  kMpi,       ///< Open MPI's mpirun, or MPICH's.
  kSlurm,     ///< srun.
  kLocal,     ///< launch_local(), for --nproc.
};

/// The name of a launcher in messages: "torchrun".
[[nodiscard]] const char* to_string(Launcher launcher) noexcept;

/// Where a process stands among those of its run. As it is made: a process that is alone.
struct Ranks {
  int rank = 0;                ///< From 0 to world_size - 1.
  int world_size = 1;          ///< Processes of the run.
  int local_rank = 0;          ///< From 0 to local_world_size - 1: among the processes of this machine.
  int local_world_size = 1;
  std::string master_addr;     ///< Where rank 0 is reached. Given if world_size > 1.
  int master_port = 0;         ///< From 1 to 65535. Given if world_size > 1.
  Launcher launcher = Launcher::kNone;
  bool agent_store = false;    ///< torchrun's agent serves a store at master_addr:master_port already, so that rank 0 must not.
  int restart_count = 0;       ///< How often torchrun has started the run anew.
  bool operator==(const Ranks&) const = default;
};

/// The value of a variable of the environment; null: not set.
using Lookup = std::function<const char*(const char* name)>;

/// Looks for launchers in this order, for one may run within the other: launch_local() and torchrun (RANK, WORLD_SIZE, ...), MPI
/// (OMPI_COMM_WORLD_* or PMI_*), SLURM. Only a job step of several tasks is SLURM's: a batch script's own shell is no rank.
/// A variable that is empty counts as not set.
/// * RANK and WORLD_SIZE win: `RANK=0 WORLD_SIZE=1` makes each of several processes work alone. LOCAL_RANK and LOCAL_WORLD_SIZE come in
///   pairs; without them there is one process a machine, as Kubernetes operators start them.
/// * MPI and SLURM: each of RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE that is set besides must say the same. MASTER_ADDR and MASTER_PORT win
///   over what is derived: this machine if all ranks are on it, else the step's first node (SLURM; MPI has no variable for it), and a port from
///   15000 to 24999 made of SLURM_JOB_ID (and, if srun started it, SLURM_STEP_ID), else 29500.
/// @throws Error kInvalidArgument: variables are half set, or contradict each other, or a number is none. The text names variable and value.
[[nodiscard]] Ranks find_ranks(const Lookup& lookup);
/// The same for this process' environment.
[[nodiscard]] Ranks find_ranks();

/// The first host of SLURM's list: "node01" of "node[01-03,7],other". Empty: it is no such list.
[[nodiscard]] std::string first_host(const std::string& list);

/// The count of node `index` in SLURM's list: 2 for 0 to 2 in "2(x3),1", and 1 for 3. -1: it is no such list, or has no such node.
[[nodiscard]] int tasks_of_node(const std::string& list, int index);

/// What a rank of launch_local() ends with if it fails only because another one did: launch_local() looks for that one.
inline constexpr int kPeerLostCode = 75;

/// The variable by which launch_local() tells its ranks that it started them, and its value.
inline constexpr const char* kLauncherVariable = "MARLIN_LAUNCHER";
inline constexpr const char* kLocalLauncher = "local";

}  // namespace marlin::launch
