"""Ranks on several machines.

A machine is a network namespace of its own, with a name and an address of its own, joined to the other one by a virtual cable; they share no
folder that they work in. Making them needs the right to: without it those tests are skipped by name.
"""

import re
import shutil
import subprocess
import sys
import time
import unittest
from pathlib import Path

from cli_support import DIGITS, Finished, environment, load, names
from ddp_support import QUIET, SHORT_LAST, DdpSupport, without_ranks

TORCHRUN = Path(sys.executable).parent / "torchrun"


class Host:
    """A machine of its own, as far as the network goes."""

    def __init__(self, name):
        self.name = name
        self.process = subprocess.Popen(["unshare", "--net", "--uts", "sh", "-c", f"hostname {name} && echo ready && exec sleep 100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.works = self.process.stdout.readline() == "ready\n"

    def inside(self, *words):
        return ["nsenter", "--target", str(self.process.pid), "--net", "--uts", *map(str, words)]

    def run(self, *words):
        subprocess.run(self.inside(*words), check=True, capture_output=True)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


def can_make_hosts():
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    host = Host("trial")
    host.end()
    return host.works


class OnHosts(DdpSupport):
    ADDRESSES = ("10.77.0.1", "10.77.0.2")

    def setUp(self):
        super().setUp()
        self.hosts = []
        for name in ("alpha", "beta"):
            self.hosts.append(Host(name))
            self.addCleanup(self.hosts[-1].end)
        pids = [str(host.process.pid) for host in self.hosts]
        subprocess.run(["ip", "link", "add", "cable", "netns", pids[0], "type", "veth", "peer", "name", "cable", "netns", pids[1]], check=True, capture_output=True)
        for host, address in zip(self.hosts, self.ADDRESSES):
            host.run("ip", "address", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                host.run("ip", "link", "set", link, "up")
            self.folder(host).mkdir()

    def folder(self, host):
        return self.path(host.name)

    def start(self, host, words, **variables):
        """Starts a program there; it does not outlive the test."""
        out, err = (open(self.path(f"{host.name}.{stream}"), "w+") for stream in ("out", "err"))
        process = subprocess.Popen(host.inside(*words), cwd=self.folder(host), env=environment(**variables), stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        process.files = out, err
        self.addCleanup(lambda: (process.poll() is None and (process.kill(), process.wait()), out.close(), err.close()))
        return process

    def finished(self, process, seconds=100):
        code = process.wait(seconds)
        texts = []
        for file in process.files:
            file.seek(0)
            texts.append(without_ranks(file.read()).encode())
        return Finished(subprocess.CompletedProcess([], code, *texts))

    def ranks(self, *args):
        """One rank on each host, started by hand."""
        variables = dict(WORLD_SIZE="2", MASTER_ADDR=self.ADDRESSES[0], MASTER_PORT="29500")
        return [self.start(host, (DIGITS, "--backend", "ddp", *args, *QUIET), RANK=str(rank), **variables) for rank, host in enumerate(self.hosts)]

    def assertEndsWell(self, processes):
        finished = [self.finished(process) for process in processes]
        for each in finished:
            self.assertEqual(each.code, 0, str(each))
            self.assertNothingStrange(each)
        return finished


@unittest.skipUnless(can_make_hosts(), "needs the right to make network namespaces, and iproute2")
class TwoHostsTest(OnHosts):
    def test_two_hosts_make_the_run_of_one(self):
        self.ok(*SHORT_LAST, *QUIET, cwd=self.put("alone/x").parent)
        first, _ = self.assertEndsWell(self.ranks(*SHORT_LAST, "--backend.check_every", 1))
        self.assertDone(first, 10, steps=50)
        self.assertClose(self.path("alpha/checkpoints/checkpoint_model_9.pt"), self.path("alone/checkpoints/checkpoint_model_9.pt"), 1e-5)
        self.assertEqual(names(self.path("beta")), [], "only rank 0 writes")

    def test_a_checkpoint_that_one_host_has_is_taken_by_both(self):
        self.assertEndsWell(self.ranks("--epochs", 2))
        first, _ = self.assertEndsWell(self.ranks("--epochs", 4, "--resume", "auto", "--backend.check_every", 1))
        self.assertIn("resumed from checkpoints/checkpoint_1.pt", first.err)
        self.assertDone(first, 4)
        self.ok("--nproc", 2, "--backend", "ddp", "--epochs", 4, *QUIET, cwd=self.put("local/x").parent)
        self.assertClose(self.path("alpha/checkpoints/checkpoint_model_3.pt"), self.path("local/checkpoints/checkpoint_model_3.pt"), 0)

    def test_torchrun_on_two_hosts(self):
        processes = []
        for rank, host in enumerate(self.hosts):
            words = (TORCHRUN, "--nnodes", 2, "--node-rank", rank, "--nproc-per-node", 2, "--master-addr", self.ADDRESSES[0], "--master-port", 29400, "--no-python", DIGITS, "--backend", "ddp", "--epochs", 2)
            processes.append(self.start(host, (*words, *QUIET)))
        finished = [self.finished(process) for process in processes]
        self.assertEqual([each.code for each in finished], [0, 0], "\n".join(map(str, finished)))
        self.assertEqual(load(self.path("alpha/checkpoints/checkpoint_1.pt"))["trainer_state"]["plan"]["world_size"], 4)

    def test_a_cable_that_is_pulled_ends_both_in_time_and_nobody_saves(self):
        processes = self.ranks("--epochs", 100000, "--checkpointer.period", 100000, "--backend.timeout_seconds", 5, "--writers", "jsonl", "--log_steps", 1)
        record = self.path("alpha/logs/metrics.jsonl")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (record.exists() and record.stat().st_size > 0):
            time.sleep(0.02)
        self.hosts[0].run("ip", "link", "set", "cable", "down")
        pulled = time.monotonic()
        finished = [self.finished(process, 40) for process in processes]
        print(f"both ended {time.monotonic() - pulled:.1f} s after the cable was pulled")
        for each, other in zip(finished, (1, 0)):
            self.assertEqual(each.code, 1, str(each))
            self.assertEqual(each.err.count("error: "), 1, str(each))
            print(each.err.strip())
            self.assertRegex(each.err, rf"error: .*(rank {other}\b|{re.escape(self.ADDRESSES[other])})", str(each))
        self.assertLessEqual(set(names(self.path("alpha/checkpoints"))), {"checkpoint_0.pt"}, "that of the first epoch's end")


if __name__ == "__main__":
    unittest.main()
