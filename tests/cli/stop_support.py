"""What the tests of stopping share: runs that use all there is to get wrong, and what it means that one ended as the straight run did."""

import re
import shutil
import tempfile
import time
from pathlib import Path

from cli_support import CliTest, differing, load, names, random_of_this_run, start_training

QUIET = ("--progress", "off")
EPOCHS = 3
# Of 23 steps, each of micro-batches that differ by one sample, the last of an epoch short; validation takes a good part of the time.
HARD = ("--epochs", EPOCHS, "--train_batch_size", 64, "--micro_batch_limit", 24, "--val_batch_size", 1, "--log_steps", 3, "--module.hidden", 1024, "--module.dropout", 0.3, "--module.augment",
        "--module.optimizer", "sgd", "--module.momentum", 0.9, "--module.lr", 0.05, "--module.schedule", "cosine", *QUIET)
WRITERS = ("--writers", "stdout,jsonl")  # as start_training() has them


def position(checkpoint):
    """How many bytes of metrics.jsonl are from before this checkpoint."""
    return load(checkpoint)["trainer_state"]["writers"]["jsonl"]["bytes"]


class StopSupport(CliTest):
    def setUp(self):
        super().setUp()
        self.random = random_of_this_run()

    def straight_run(self, folder, *args):
        """A run that nothing stops: seconds until training began, and from then to its end."""
        running = start_training(folder, *args)
        self.addCleanup(running.end)
        began = time.monotonic()
        finished = running.finished()
        self.assertEqual(finished.code, 0, str(finished))
        self.assertNothingStrange(finished)
        return running.start_up, time.monotonic() - began

    def in_training(self, folder, *args, **how):
        """A run, fresh or gone on with, whose training has begun."""
        running = start_training(folder, *args, **how)
        self.addCleanup(running.end)
        return running

    def was_done(self, finished):
        """Whether what was to stop it came when it had ended, but for the end of the process."""
        return finished.code <= 0 and finished.last.startswith("done ")

    def assertStopped(self, finished, code, folder):
        """Ended with this code and one last line that names a whole checkpoint of what it says; the file, or None if not a step was done."""
        self.assertNothingStrange(finished)
        self.assertEqual(finished.code, code, str(finished))
        self.assertNotRegex(finished.err, r"\[(warning|error)\]|error: ")
        self.assertEqual(len(re.findall(r"(?m)^(?:done|stopped|nothing to do) ", finished.out)), 1, str(finished))
        last = re.fullmatch(r"stopped epochs=(\d+) global_step=(\d+)(?: val/\w+=\S+)*(?: checkpoint=(\S+))?", finished.last)
        self.assertIsNotNone(last, str(finished))
        self.assertTrue(finished.out.endswith("\n"))
        epochs, steps = int(last[1]), int(last[2])
        if steps == 0:
            self.assertIsNone(last[3], "there is nothing to save yet")
            self.assertEqual(names(folder / "checkpoints"), [])
            return None
        self.assertIsNotNone(last[3], str(finished))
        checkpoint = folder / last[3]
        self.assertTrue(checkpoint.is_file(), str(finished))
        self.assertAllWhole(checkpoint.parent)
        state = load(checkpoint)
        self.assertEqual((state["trainer_state"]["last_epoch"] + 1, state["trainer_backend_state"]["global_step_completed"]), (epochs, steps))
        if state["trainer_state"]["in_epoch"]:
            self.assertEqual(checkpoint.name, f"checkpoint_step_{steps}.pt")
        self.assertEqual([name for name in names(checkpoint.parent) if name.startswith(".")], [], "no temporary file")
        return checkpoint

    def assertEqualRuns(self, folder, straight, epochs=EPOCHS):
        """Parameters, optimizer, schedule, loader, generators, sums, positions and the record are those of the straight run, bit for bit."""
        last = f"checkpoints/checkpoint_{epochs - 1}.pt"
        self.assertEqual(differing(folder / last, straight / last), [])
        model = f"checkpoints/checkpoint_model_{epochs - 1}.pt"
        self.assertEqual((folder / model).read_bytes(), (straight / model).read_bytes())
        if (straight / "logs/metrics.jsonl").exists():
            self.assertEqual((folder / "logs/metrics.jsonl").read_text(), (straight / "logs/metrics.jsonl").read_text())


class WithStraightRuns(StopSupport):
    """Has the straight runs of HARD for each sort of loader: augmentation is drawn per batch or per sample, so they differ."""

    WORKERS = (None, 0, 1, 3)  # --module.workers; None: batches from memory

    @classmethod
    def setUpClass(cls):
        cls.base_dir = Path(tempfile.mkdtemp(prefix="marlin_cli_straight_"))
        cls.addClassCleanup(shutil.rmtree, cls.base_dir, ignore_errors=True)
        cls.runs = {}
        for workers in (None, 0):
            folder = cls.base_dir / str(workers)
            running = start_training(folder, *cls.flags(workers))
            cls.addClassCleanup(running.end)
            began = time.monotonic()
            finished = running.finished()
            if finished.code != 0:
                raise AssertionError(str(finished))
            cls.runs[workers] = (folder, running.start_up, time.monotonic() - began)

    @staticmethod
    def flags(workers):
        return HARD if workers is None else (*HARD, "--module.workers", workers)

    def straight(self, workers):
        """(folder, seconds until training began, seconds from then on) of the run that this one has to be equal to."""
        return self.runs[None if workers is None else 0]

    def other(self, workers):
        """With how many threads it may go on all the same."""
        return None if workers is None else self.random.choice(self.WORKERS[1:])
