#include "launch/ranks.h"

#include <gmock/gmock.h>

#include <map>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "throws_error.h"

namespace marlin::launch {

void PrintTo(const Ranks& ranks, std::ostream* out) {
  *out << to_string(ranks.launcher) << " rank " << ranks.rank << "/" << ranks.world_size << " local " << ranks.local_rank << "/" << ranks.local_world_size << " at '"
       << ranks.master_addr << "':" << ranks.master_port << " agent_store " << ranks.agent_store << " restart " << ranks.restart_count;
}

namespace {

using ::testing::Not;
using ::testing::HasSubstr;
using marlin::testing::ThrowsError;

using Variables = std::map<std::string, std::string>;

Ranks found(const Variables& variables) {
  return find_ranks([&](const char* name) -> const char* {
    const auto variable = variables.find(name);
    return variable == variables.end() ? nullptr : variable->second.c_str();
  });
}

// Later ones win; a value of "-" takes the variable out.
Variables operator+(Variables all, const Variables& more) {
  for (const auto& [name, value] : more) {
    if (value == "-") all.erase(name);
    else all[name] = value;
  }
  return all;
}

const Variables kTorchrun = {{"RANK", "5"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "4"}, {"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29400"},
                             {"TORCHELASTIC_USE_AGENT_STORE", "True"}, {"TORCHELASTIC_RESTART_COUNT", "2"}, {"TORCHELASTIC_RUN_ID", "none"}};
const Variables kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "5"}, {"OMPI_COMM_WORLD_SIZE", "8"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}, {"MASTER_ADDR", "a"}};
const Variables kHydra = {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};
const Variables kSlurm = {{"SLURM_JOB_ID", "1234567"}, {"SLURM_STEP_ID", "0"}, {"SLURM_PROCID", "5"}, {"SLURM_NTASKS", "7"}, {"SLURM_LOCALID", "1"}, {"SLURM_NODEID", "2"},
                          {"SLURM_STEP_TASKS_PER_NODE", "2(x3),1"}, {"SLURM_STEP_NODELIST", "node[01-03,7]"}, {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.9"}};

struct Found {
  const char* what;
  Variables variables;
  Ranks ranks;
};

TEST(RanksTest, EachLauncherIsUnderstood) {
  const Found all[] = {
      {"nothing", {}, {}},
      {"an address alone", {{"MASTER_ADDR", "a"}, {"MASTER_PORT", "x"}, {"TORCHELASTIC_USE_AGENT_STORE", "True"}, {"OMP_NUM_THREADS", "2"}}, {}},
      {"empty variables", {{"RANK", ""}, {"WORLD_SIZE", ""}, {"OMPI_COMM_WORLD_RANK", ""}, {"SLURM_STEP_ID", ""}}, {}},

      {"torchrun", kTorchrun, {5, 8, 1, 4, "10.0.0.1", 29400, Launcher::kTorchrun, true, 2}},
      {"torchrun without an agent's store", kTorchrun + Variables{{"TORCHELASTIC_USE_AGENT_STORE", "False"}}, {5, 8, 1, 4, "10.0.0.1", 29400, Launcher::kTorchrun, false, 2}},
      {"torchrun of one", {{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "1"}, {"MASTER_ADDR", "h"}, {"MASTER_PORT", "1"}, {"TORCHELASTIC_USE_AGENT_STORE", "True"}},
       {0, 1, 0, 1, "h", 1, Launcher::kTorchrun, true, 0}},
      {"by hand, as one", {{"RANK", "0"}, {"WORLD_SIZE", "1"}}, {0, 1, 0, 1, "", 0, Launcher::kTorchrun, false, 0}},
      {"by hand, one a machine", {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "h"}, {"MASTER_PORT", "65535"}}, {1, 2, 0, 1, "h", 65535, Launcher::kTorchrun, false, 0}},
      {"launch_local", {{"MARLIN_LAUNCHER", "local"}, {"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "40000"}},
       {1, 2, 1, 2, "127.0.0.1", 40000, Launcher::kLocal, false, 0}},
      {"launch_local beside what is left of torchrun's", kTorchrun + Variables{{"MARLIN_LAUNCHER", "local"}}, {5, 8, 1, 4, "10.0.0.1", 29400, Launcher::kLocal, false, 0}},

      {"Open MPI on several machines", kOpenMpi, {5, 8, 1, 4, "a", 29500, Launcher::kMpi, false, 0}},
      {"Open MPI with a port", kOpenMpi + Variables{{"MASTER_PORT", "1234"}}, {5, 8, 1, 4, "a", 1234, Launcher::kMpi, false, 0}},
      {"Open MPI on one machine", kOpenMpi + Variables{{"OMPI_COMM_WORLD_LOCAL_SIZE", "8"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "5"}, {"MASTER_ADDR", "-"}}, {5, 8, 5, 8, "127.0.0.1", 29500, Launcher::kMpi, false, 0}},
      {"Open MPI of one", {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}}, {0, 1, 0, 1, "", 0, Launcher::kMpi, false, 0}},
      {"Open MPI within a SLURM job, in a step or not", kOpenMpi + kSlurm + Variables{{"SLURM_STEP_ID", "3"}}, {5, 8, 1, 4, "a", 19567, Launcher::kMpi, false, 0}},
      {"Open MPI whose variables were also set as torchrun's", kOpenMpi + Variables{{"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "4"}}, {5, 8, 1, 4, "a", 29500, Launcher::kMpi, false, 0}},
      {"MPICH", kHydra, {1, 2, 1, 2, "127.0.0.1", 29500, Launcher::kMpi, false, 0}},
      {"MPICH of one", {{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}}, {0, 1, 0, 1, "", 0, Launcher::kMpi, false, 0}},
      {"torchrun within MPI", kTorchrun + kHydra, {5, 8, 1, 4, "10.0.0.1", 29400, Launcher::kTorchrun, true, 2}},

      {"SLURM", kSlurm, {5, 7, 1, 2, "node01", 19567, Launcher::kSlurm, false, 0}},
      {"SLURM's last node", kSlurm + Variables{{"SLURM_PROCID", "6"}, {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "3"}}, {6, 7, 0, 1, "node01", 19567, Launcher::kSlurm, false, 0}},
      {"another step has another port", kSlurm + Variables{{"SLURM_STEP_ID", "3"}}, {5, 7, 1, 2, "node01", 15000 + (4567 + 3027) % 10000, Launcher::kSlurm, false, 0}},
      {"SLURM without a job's number", kSlurm + Variables{{"SLURM_JOB_ID", "-"}}, {5, 7, 1, 2, "node01", 29500, Launcher::kSlurm, false, 0}},
      {"SLURM with an address and a port", kSlurm + Variables{{"MASTER_ADDR", "b"}, {"MASTER_PORT", "77"}, {"WORLD_SIZE", "7"}, {"RANK", "-"}}, {5, 7, 1, 2, "b", 77, Launcher::kSlurm, false, 0}},
      {"SLURM without a list of nodes", kSlurm + Variables{{"SLURM_STEP_NODELIST", "-"}}, {5, 7, 1, 2, "10.0.0.9", 19567, Launcher::kSlurm, false, 0}},
      {"SLURM on one machine", kSlurm + Variables{{"SLURM_STEP_TASKS_PER_NODE", "7"}, {"SLURM_NODEID", "-"}, {"SLURM_LOCALID", "5"}}, {5, 7, 5, 7, "127.0.0.1", 19567, Launcher::kSlurm, false, 0}},
      {"SLURM with as many tasks on each node", kSlurm + Variables{{"SLURM_STEP_TASKS_PER_NODE", "-"}, {"SLURM_NTASKS_PER_NODE", "2"}}, {5, 7, 1, 2, "node01", 19567, Launcher::kSlurm, false, 0}},
      {"SLURM by way of PMI", kSlurm + Variables{{"PMI_RANK", "5"}, {"PMI_SIZE", "7"}}, {5, 7, 1, 2, "node01", 19567, Launcher::kSlurm, false, 0}},
      {"MPICH's proxies, started by srun", kSlurm + Variables{{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "2"}} + kHydra, {1, 2, 1, 2, "127.0.0.1", 19567, Launcher::kMpi, false, 0}},
      {"MPICH's proxies, whose ranks are in one place like theirs", kSlurm + Variables{{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "3"}} + kHydra, {1, 2, 1, 2, "127.0.0.1", 19567, Launcher::kMpi, false, 0}},
      {"torchrun within SLURM", kSlurm + kTorchrun, {5, 8, 1, 4, "10.0.0.1", 29400, Launcher::kTorchrun, true, 2}},
      {"tasks of a step that are to work alone", kSlurm + Variables{{"RANK", "0"}, {"WORLD_SIZE", "1"}}, {0, 1, 0, 1, "", 0, Launcher::kTorchrun, false, 0}},
      {"a batch script's own shell", kSlurm + Variables{{"SLURM_STEP_ID", "-"}, {"SLURM_PROCID", "0"}}, {}},
      {"a batch script's own shell, with the number of its step", kSlurm + Variables{{"SLURM_STEP_ID", "4294967291"}, {"SLURM_PROCID", "0"}}, {}},
      {"a step of one task", kSlurm + Variables{{"SLURM_NTASKS", "1"}, {"SLURM_PROCID", "0"}}, {}},
      {"a step's number alone", {{"SLURM_STEP_ID", "0"}}, {}},
  };
  for (const Found& one : all) {
    SCOPED_TRACE(one.what);
    EXPECT_EQ(found(one.variables), one.ranks);
  }
}

struct Refused {
  Variables variables;
  const char* text;
};

void expect_refused(std::initializer_list<Refused> all) {
  for (const Refused& one : all) {
    SCOPED_TRACE(one.text);
    EXPECT_THAT([&] { (void)found(one.variables); }, ThrowsError(Errc::kInvalidArgument, std::string(one.text)));
  }
}

TEST(RanksTest, HalfOfTorchrunsVariablesIsRefused) {
  expect_refused({
      {{{"WORLD_SIZE", "2"}},
       "WORLD_SIZE=2 is set, but RANK is not: start the program with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process; to run a single process, unset WORLD_SIZE"},
      {{{"WORLD_SIZE", "2"}, {"RANK", ""}},
       "WORLD_SIZE=2 is set, but RANK is empty: start the program with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process; to run a single process, unset WORLD_SIZE"},
      {{{"RANK", "1"}},
       "RANK=1 is set, but WORLD_SIZE is not: start the program with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process; to run a single process, unset RANK"},
      {{{"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}},
       "LOCAL_RANK=1 is set, but RANK is not: start the program with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process; to run a single process, unset LOCAL_RANK"},
      {{{"LOCAL_WORLD_SIZE", "2"}},
       "LOCAL_WORLD_SIZE=2 is set, but RANK is not: start the program with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process; to run a single process, unset "
       "LOCAL_WORLD_SIZE"},
      {{{"TORCHELASTIC_RUN_ID", "job\n7"}},
       "TORCHELASTIC_RUN_ID=job\\n7 is set, but RANK is not: start the program with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process; to run a single process, unset "
       "TORCHELASTIC_RUN_ID"},
      {{{"MARLIN_LAUNCHER", "local"}},
       "MARLIN_LAUNCHER=local is set, but RANK is not: start the program with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process; to run a single process, unset MARLIN_LAUNCHER"},
      {kTorchrun + Variables{{"LOCAL_RANK", "-"}},
       "LOCAL_WORLD_SIZE=4 is set, but LOCAL_RANK is not: start the program with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process; to run a single process, unset "
       "LOCAL_WORLD_SIZE"},
      {kTorchrun + Variables{{"LOCAL_WORLD_SIZE", "-"}},
       "LOCAL_RANK=1 is set, but LOCAL_WORLD_SIZE is not: start the program with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for every process; to run a single process, unset LOCAL_RANK"},
      {kTorchrun + Variables{{"MASTER_ADDR", "-"}},
       "RANK=5 and WORLD_SIZE=8 are set, but MASTER_ADDR is not: set it to the address of rank 0's machine; to run a single process, unset RANK and WORLD_SIZE"},
      {kTorchrun + Variables{{"MASTER_PORT", ""}},
       "RANK=5 and WORLD_SIZE=8 are set, but MASTER_PORT is empty: set it to a free port of rank 0's machine, for example 29500; to run a single process, unset RANK and WORLD_SIZE"},
  });
}

TEST(RanksTest, WrongValuesOfTorchrunsVariablesAreRefused) {
  expect_refused({
      {kTorchrun + Variables{{"RANK", "one"}}, "RANK='one' is no whole number of at least 0; correct it, or unset it"},
      {kTorchrun + Variables{{"RANK", "-1"}}, "RANK='-1' is no whole number of at least 0; correct it, or unset it"},
      {kTorchrun + Variables{{"RANK", "1.0"}}, "RANK='1.0' is no whole number of at least 0; correct it, or unset it"},
      {kTorchrun + Variables{{"RANK", " 1"}}, "RANK=' 1' is no whole number of at least 0; correct it, or unset it"},
      {kTorchrun + Variables{{"RANK", "99999999999999999999"}}, "RANK='99999999999999999999' is no whole number of at least 0; correct it, or unset it"},
      {kTorchrun + Variables{{"RANK", "2147483648"}}, "RANK='2147483648' is no whole number of at least 0; correct it, or unset it"},
      {kTorchrun + Variables{{"WORLD_SIZE", "0"}}, "WORLD_SIZE='0' is no whole number of at least 1; correct it, or unset it"},
      {kTorchrun + Variables{{"WORLD_SIZE", "8\n"}}, "WORLD_SIZE='8\\n' is no whole number of at least 1; correct it, or unset it"},
      {kTorchrun + Variables{{"RANK", "8"}}, "RANK=8, but WORLD_SIZE=8: ranks go from 0 to 7; correct the one that is wrong"},
      {kTorchrun + Variables{{"LOCAL_RANK", "4"}}, "LOCAL_RANK=4, but LOCAL_WORLD_SIZE=4: ranks go from 0 to 3; correct the one that is wrong"},
      {kTorchrun + Variables{{"LOCAL_RANK", "x"}}, "LOCAL_RANK='x' is no whole number of at least 0; correct it, or unset it"},
      {kTorchrun + Variables{{"LOCAL_WORLD_SIZE", "+4"}}, "LOCAL_WORLD_SIZE='+4' is no whole number of at least 1; correct it, or unset it"},
      {kTorchrun + Variables{{"LOCAL_WORLD_SIZE", "9"}}, "LOCAL_WORLD_SIZE=9, but WORLD_SIZE=8: a machine has not more processes than the run; correct the one that is wrong"},
      {kTorchrun + Variables{{"MASTER_PORT", "0"}}, "MASTER_PORT='0' is no whole number from 1 to 65535; correct it, or unset it"},
      {kTorchrun + Variables{{"MASTER_PORT", "65536"}}, "MASTER_PORT='65536' is no whole number from 1 to 65535; correct it, or unset it"},
      {kTorchrun + Variables{{"MASTER_PORT", "http"}}, "MASTER_PORT='http' is no whole number from 1 to 65535; correct it, or unset it"},
      {kTorchrun + Variables{{"TORCHELASTIC_USE_AGENT_STORE", "maybe"}}, "TORCHELASTIC_USE_AGENT_STORE='maybe' is neither True nor False; correct it, or unset it"},
      {kTorchrun + Variables{{"TORCHELASTIC_RESTART_COUNT", "-2"}}, "TORCHELASTIC_RESTART_COUNT='-2' is no whole number of at least 0; correct it, or unset it"},
  });
}

TEST(RanksTest, HalfOrWrongVariablesOfMpiAreRefused) {
  expect_refused({
      {kOpenMpi + Variables{{"OMPI_COMM_WORLD_RANK", "-"}},
       "OMPI_COMM_WORLD_SIZE=8 is set, but OMPI_COMM_WORLD_RANK is not: start the program with mpirun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kOpenMpi + Variables{{"OMPI_COMM_WORLD_SIZE", "-"}},
       "OMPI_COMM_WORLD_RANK=5 is set, but OMPI_COMM_WORLD_SIZE is not: start the program with mpirun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kOpenMpi + Variables{{"OMPI_COMM_WORLD_LOCAL_RANK", "-"}},
       "OMPI_COMM_WORLD_LOCAL_SIZE=4 is set, but OMPI_COMM_WORLD_LOCAL_RANK is not: start the program with mpirun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kOpenMpi + Variables{{"OMPI_COMM_WORLD_LOCAL_SIZE", "-"}},
       "OMPI_COMM_WORLD_LOCAL_RANK=1 is set, but OMPI_COMM_WORLD_LOCAL_SIZE is not: start the program with mpirun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kHydra + Variables{{"PMI_SIZE", "-"}}, "PMI_RANK=1 is set, but PMI_SIZE is not: start the program with mpirun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kHydra + Variables{{"PMI_RANK", "-"}}, "PMI_SIZE=2 is set, but PMI_RANK is not: start the program with mpirun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kHydra + Variables{{"MPI_LOCALRANKID", "-"}, {"MPI_LOCALNRANKS", "-"}},
       "PMI_RANK=1 is set, but MPI_LOCALRANKID is not: start the program with mpirun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kOpenMpi + Variables{{"MASTER_ADDR", "-"}},
       "OMPI_COMM_WORLD_RANK=5 and OMPI_COMM_WORLD_SIZE=8 are set on several machines, but nothing says which is rank 0's: set MASTER_ADDR to its address (mpirun -x MASTER_ADDR=..., or -genv MASTER_ADDR ...)"},
      {kOpenMpi + Variables{{"OMPI_COMM_WORLD_SIZE", "many"}}, "OMPI_COMM_WORLD_SIZE='many' is no whole number of at least 1; correct it, or unset it"},
      {kOpenMpi + Variables{{"OMPI_COMM_WORLD_RANK", "8"}}, "OMPI_COMM_WORLD_RANK=8, but OMPI_COMM_WORLD_SIZE=8: ranks go from 0 to 7; correct the one that is wrong"},
      {kOpenMpi + Variables{{"MASTER_PORT", "70000"}}, "MASTER_PORT='70000' is no whole number from 1 to 65535; correct it, or unset it"},
      {kOpenMpi + Variables{{"WORLD_SIZE", "4"}}, "WORLD_SIZE=4, but OMPI_COMM_WORLD_SIZE=8 makes it 8: unset WORLD_SIZE, or set RANK and WORLD_SIZE both, which then hold"},
      {kOpenMpi + Variables{{"RANK", "4"}}, "RANK=4, but OMPI_COMM_WORLD_RANK=5 makes it 5: unset RANK, or set RANK and WORLD_SIZE both, which then hold"},
      {kHydra + Variables{{"LOCAL_RANK", "0"}}, "LOCAL_RANK=0, but MPI_LOCALRANKID=1 makes it 1: unset LOCAL_RANK, or set RANK and WORLD_SIZE both, which then hold"},
  });
}

TEST(RanksTest, HalfOrWrongVariablesOfSlurmAreRefused) {
  expect_refused({
      {kSlurm + Variables{{"SLURM_PROCID", "-"}}, "SLURM_NTASKS=7 is set, but SLURM_PROCID is not: start the program with srun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kSlurm + Variables{{"SLURM_NTASKS", "-"}}, "SLURM_PROCID=5 is set, but SLURM_NTASKS is not: start the program with srun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kSlurm + Variables{{"SLURM_LOCALID", "-"}}, "SLURM_PROCID=5 is set, but SLURM_LOCALID is not: start the program with srun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kSlurm + Variables{{"SLURM_NODEID", "-"}}, "SLURM_STEP_TASKS_PER_NODE=2(x3),1 is set, but SLURM_NODEID is not: start the program with srun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kSlurm + Variables{{"SLURM_STEP_TASKS_PER_NODE", "-"}},
       "SLURM_PROCID=5 is set, but SLURM_STEP_TASKS_PER_NODE is not: start the program with srun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kSlurm + Variables{{"SLURM_STEP_TASKS_PER_NODE", "2(x3"}},
       "SLURM_STEP_TASKS_PER_NODE='2(x3' does not tell how many tasks node 2 has: start the program with srun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kSlurm + Variables{{"SLURM_NODEID", "4"}},
       "SLURM_STEP_TASKS_PER_NODE='2(x3),1' does not tell how many tasks node 4 has: start the program with srun; to run a single process, set RANK=0 and WORLD_SIZE=1"},
      {kSlurm + Variables{{"SLURM_LOCALID", "2"}}, "SLURM_LOCALID=2, but SLURM_STEP_TASKS_PER_NODE=2(x3),1: ranks go from 0 to 1; correct the one that is wrong"},
      {kSlurm + Variables{{"SLURM_STEP_TASKS_PER_NODE", "9(x4)"}},
       "SLURM_STEP_TASKS_PER_NODE=9(x4), but SLURM_NTASKS=7: a machine has not more processes than the run; correct the one that is wrong"},
      {kSlurm + Variables{{"SLURM_STEP_NODELIST", "node[01-"}}, "SLURM_STEP_NODELIST='node[01-' is no list of nodes; set MASTER_ADDR to the address of rank 0's machine"},
      {kSlurm + Variables{{"SLURM_STEP_NODELIST", "-"}, {"SLURM_LAUNCH_NODE_IPADDR", "-"}},
       "SLURM_PROCID=5 and SLURM_NTASKS=7 are set on several machines, but nothing says which is rank 0's: set MASTER_ADDR to its address"},
      {kSlurm + Variables{{"SLURM_PROCID", "7"}}, "SLURM_PROCID=7, but SLURM_NTASKS=7: ranks go from 0 to 6; correct the one that is wrong"},
      {kSlurm + Variables{{"SLURM_NTASKS", "x"}}, "SLURM_NTASKS='x' is no whole number of at least 1; correct it, or unset it"},
      {kSlurm + Variables{{"SLURM_JOB_ID", "x"}}, "SLURM_JOB_ID='x' is no whole number of at least 0; correct it, or unset it"},
      {kSlurm + Variables{{"WORLD_SIZE", "8"}}, "WORLD_SIZE=8, but SLURM_NTASKS=7 makes it 7: unset WORLD_SIZE, or set RANK and WORLD_SIZE both, which then hold"},
      {kSlurm + Variables{{"LOCAL_WORLD_SIZE", "1"}}, "LOCAL_WORLD_SIZE=1, but SLURM_STEP_TASKS_PER_NODE=2(x3),1 makes it 2: unset LOCAL_WORLD_SIZE, or set RANK and WORLD_SIZE both, which then hold"},
  });
}

TEST(RanksTest, TheFirstHostOfAListIsFound) {
  for (const auto& [list, host] : std::initializer_list<std::pair<const char*, const char*>>{
           {"node01", "node01"}, {"a,b,c", "a"}, {"node[01-03,7]", "node01"}, {"node[7]", "node7"}, {"node[08,1-3],other", "node08"}, {"rack[1-2]node[3-4]-ib.site,x", "rack1node3-ib.site"},
           {"login,node[1-2]", "login"}, {"", ""}, {",a", ""}, {"node[1-3", ""}, {"node[]", ""}, {"node[a-c]", ""}, {"node]1", ""}, {"a b", ""}}) {
    EXPECT_EQ(first_host(list), host) << list;
  }
}

TEST(RanksTest, TheTasksOfEachNodeAreFound) {
  const auto all = [](const char* list) {
    std::vector<int> tasks;
    for (int node = 0; node < 6; ++node) tasks.push_back(tasks_of_node(list, node));
    return tasks;
  };
  using Tasks = std::vector<int>;
  EXPECT_EQ(all("2(x3),1"), (Tasks{2, 2, 2, 1, -1, -1}));
  EXPECT_EQ(all("4"), (Tasks{4, -1, -1, -1, -1, -1}));
  EXPECT_EQ(all("1,12(x2),3,1(x999999999)"), (Tasks{1, 12, 12, 3, 1, 1}));
  for (const char* list : {"", "x", "2(x)", "2(x3", "2(3)", "(x3)", "2(x3)1", "2,", "2,,1", "-2", "2(x-3)", "99999999999", "1(x9999999999)", "2,x"}) EXPECT_EQ(tasks_of_node(list, 0), -1) << list;
}

TEST(RanksTest, AnyMixOfVariablesGivesRanksThatFitOrOneLine) {
  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  const char* const names[] = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MARLIN_LAUNCHER", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE",
                               "TORCHELASTIC_RESTART_COUNT", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_RANK", "PMI_SIZE",
                               "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE",
                               "SLURM_NTASKS_PER_NODE", "SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR"};
  const char* const values[] = {"0", "1", "2", "3", "4", "4(x2)", "True", "local", "node[1-2]", "", "x\ny", "4294967295"};
  const Variables wholes[] = {{}, kTorchrun, kOpenMpi, kHydra, kSlurm};
  int fit = 0;
  for (int round = 0; round < 20000; ++round) {
    Variables variables = wholes[random() % 5];
    for (size_t more = random() % 5; more > 0; --more) variables[names[random() % std::size(names)]] = values[random() % std::size(values)];
    try {
      const Ranks ranks = found(variables);
      ++fit;
      ASSERT_TRUE(0 <= ranks.rank && ranks.rank < ranks.world_size && 0 <= ranks.local_rank && ranks.local_rank < ranks.local_world_size && ranks.local_world_size <= ranks.world_size)
          << ::testing::PrintToString(variables) << ::testing::PrintToString(ranks);
      if (ranks.world_size > 1) {
        ASSERT_TRUE(!ranks.master_addr.empty() && ranks.master_port > 0 && ranks.master_port < 65536 && ranks.launcher != Launcher::kNone) << ::testing::PrintToString(variables);
      }
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), Errc::kInvalidArgument);
      ASSERT_THAT(error.what(), Not(HasSubstr("\n")));
    }
  }
  EXPECT_GT(fit, 1000);
}

}  // namespace
}  // namespace marlin::launch
