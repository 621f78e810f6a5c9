"""Ranks that mpirun and srun start: the real ones. (torchrun: ddp_test.py and hosts_test.py.)

srun needs its daemons, which the tests start as a cluster of this machine alone; that takes the administrator's rights.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import unittest

from cli_support import DIGITS, Finished, environment, load, names
from ddp_support import QUIET, DdpSupport

DAEMONS = ("munged", "slurmctld", "slurmd")


class LauncherSupport(DdpSupport):
    """`command` starts two ranks of what follows it."""

    command = variables = None

    def start(self, *args):
        log = open(self.path("log"), "w+")
        job = subprocess.Popen([*self.command, str(DIGITS), "--backend", "ddp", *map(str, args), *QUIET], cwd=self.dir, env=environment(**self.variables), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.addCleanup(lambda: (job.poll() is None and (job.kill(), job.wait()), log.close()))
        return job

    def said(self):
        return self.path("log").read_text()

    def await_checkpoint(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not names(self.path("checkpoints")):
            time.sleep(0.05)

    def check_training(self):
        job = self.start("--epochs", 2)
        self.assertEqual(job.wait(100), 0, self.said())
        self.assertEqual(len(re.findall(r"(?m)^done epochs=2 ", self.said())), 1, self.said())
        self.assertEqual(load(self.path("checkpoints/checkpoint_1.pt"))["trainer_state"]["plan"]["world_size"], 2)

    def check_signal(self):
        job = self.start("--epochs", 100000, "--checkpointer.period_steps", 50, "--checkpointer.keep_last", 2)
        self.await_checkpoint()
        job.send_signal(signal.SIGTERM)
        self.assertNotEqual(job.wait(60), 0, self.said())
        self.assertAllWhole(self.path("checkpoints"))
        return self.said()

    def check_lost_rank(self):
        job = self.start("--epochs", 100000, "--checkpointer.period", 100000, "--checkpointer.period_steps", 50, "--checkpointer.keep_last", 2)
        self.await_checkpoint()
        victim = next(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self.is_rank_1(pid))
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        self.assertNotEqual(job.wait(60), 0, self.said())
        self.assertLess(time.monotonic() - killed, 30)
        self.assertAllWhole(self.path("checkpoints"))

    def is_rank_1(self, pid):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                variables = set(file.read().split(b"\0"))
            return os.readlink(f"/proc/{pid}/exe") == str(DIGITS) and os.readlink(f"/proc/{pid}/cwd") == str(self.dir) and bool(variables & {b"OMPI_COMM_WORLD_RANK=1", b"PMI_RANK=1", b"SLURM_PROCID=1"})
        except OSError:
            return False


@unittest.skipUnless(shutil.which("mpirun.openmpi"), "needs Open MPI")
class OpenMpiTest(LauncherSupport):
    command = ("mpirun.openmpi", "--oversubscribe", "-n", "2")
    variables = dict(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def test_its_ranks_train_together(self):
        self.check_training()

    def test_a_signal_to_it_stops_all(self):
        self.check_signal()

    def test_a_rank_that_is_killed_ends_the_job(self):
        self.check_lost_rank()


@unittest.skipUnless(shutil.which("mpirun.mpich"), "needs MPICH")
class MpichTest(LauncherSupport):
    command = ("mpirun.mpich", "-n", "2")
    variables = {}

    def test_its_ranks_train_together(self):
        self.check_training()

    def test_a_rank_that_is_killed_ends_the_job(self):
        self.check_lost_rank()


def free_ports(number):
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@unittest.skipUnless(os.geteuid() == 0 and all(map(shutil.which, ("srun", *DAEMONS))), "needs SLURM, and to be root")
class SrunTest(LauncherSupport):
    command = ("srun", "--ntasks", "2", "--quiet", "--unbuffered")
    CONFIG = """ClusterName=one
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=2 CoresPerSocket=1 ThreadsPerCore=1 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE
"""

    def setUp(self):
        super().setUp()
        folder = self.path("slurm")
        for part in ("state", "spool"):
            (folder / part).mkdir(parents=True)
        folder.chmod(0o755)
        (folder / "slurm.conf").write_text(self.CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder, ports=free_ports(2)))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.variables = dict(SLURM_CONF=str(folder / "slurm.conf"))
        munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "log-file", "pid-file", "seed-file")]
        for words in (("munged", "--foreground", "--force", *munge), ("slurmctld", "-D"), ("slurmd", "-D")):
            log = open(folder / f"{words[0]}.said", "w")
            daemon = subprocess.Popen(words, env=environment(**self.variables), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            self.addCleanup(lambda daemon=daemon, log=log: (daemon.terminate(), daemon.wait(), log.close()))
        deadline = time.monotonic() + 60
        while subprocess.run(["srun", "--immediate=2", "true"], env=environment(**self.variables), capture_output=True, timeout=60).returncode != 0:
            self.assertLess(time.monotonic(), deadline, "".join(file.read_text() for file in folder.glob("*.said")))
            time.sleep(0.2)

    def test_its_ranks_train_together(self):
        self.check_training()

    def test_a_signal_that_scancel_sends_stops_all(self):
        job = self.start("--epochs", 100000, "--checkpointer.period_steps", 50, "--checkpointer.keep_last", 2)
        self.await_checkpoint()
        jobs = subprocess.run(["squeue", "--noheader", "--states=RUNNING", "--format=%i"], env=environment(**self.variables), capture_output=True, text=True, check=True).stdout.split()
        subprocess.run(["scancel", "--signal=TERM", *jobs], env=environment(**self.variables), check=True)
        self.assertEqual(job.wait(60), 143, self.said())
        self.assertRegex(self.said(), r"(?m)^stopped epochs=\d+ global_step=\d+ .*checkpoint=")

    def test_a_rank_that_is_killed_ends_the_job(self):
        self.check_lost_rank()


if __name__ == "__main__":
    unittest.main()
