"""What the tests of several processes share."""

import re
import subprocess
from contextlib import closing
from pathlib import Path

from cli_support import CliTest, Finished, FolderEvents, load, start_training

QUIET = ("--progress", "off")
# 5 batches, the last one of a single sample: of 3 ranks, 2 have none of it.
SHORT_LAST = ("--train_batch_size", 359, "--epochs", 10)


def without_ranks(text):
    return re.sub(r"(?m)^\[rank \d+\] ", "", text)


class DdpSupport(CliTest):
    def assertNothingStrange(self, finished):
        plain = Finished(subprocess.CompletedProcess([], finished.code, finished.out.encode(), without_ranks(finished.err).encode()))
        plain.err = "\n".join(line for line in plain.err.splitlines() if not re.match(r"rank \d+ (of \d+ )?(ended|was|failed|has)", line))  # the launcher's own
        super().assertNothingStrange(plain)

    def run_digits(self, *args, **how):
        finished = super().run_digits(*args, **how)
        finished.err = without_ranks(finished.err)
        return finished

    def ddp(self, ranks, *args, **how):
        """A run of so many local ranks that ends well."""
        return self.ok("--nproc", ranks, "--backend", "ddp", *args, *QUIET, **how)

    def in_training(self, *args, **how):
        """A run in the test's folder that has saved its first epoch, and has nothing to save soon."""
        self.path("checkpoints").mkdir(exist_ok=True)
        with closing(FolderEvents(self.path("checkpoints"))) as events:
            running = start_training(self.dir, *args, *QUIET, **how)
            self.addCleanup(running.end)
            self.assertIsNotNone(running.await_event(events, lambda event, name: (event, name) == (events.MOVED_TO, "checkpoint_0.pt")))
        return running

    def assertClose(self, file_a, file_b, tolerance):
        a, b = load(file_a), load(file_b)
        self.assertEqual(list(a), list(b))
        for name in a:
            self.assertLessEqual((a[name].double() - b[name].double()).abs().max().item(), tolerance, name)


def runs(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has just ended
        return False


def ranks_of(launcher):
    """The process ids of the ranks that a launcher has started and that run, by their number."""
    ranks = {}
    for children in Path(f"/proc/{launcher.pid}/task").glob("*/children"):
        try:
            for pid in map(int, children.read_text().split()):
                variables = dict(v.split(b"=", 1) for v in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if b"=" in v)
                if b"RANK" in variables:
                    ranks[int(variables[b"RANK"])] = pid
        except OSError:  # it has just ended
            continue
    return ranks
