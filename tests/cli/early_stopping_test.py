"""--early_stopping.*: a run that no longer gets better ends as one that is done, and a stop in between changes nothing of that."""

import json
import signal
import time
import unittest

from cli_support import STEPS, checkpoints, contents, load, names
from stop_support import QUIET, WRITERS, StopSupport

LOSS = ("--early_stopping.metric", "val/loss")
AT_ONCE = (*LOSS, "--early_stopping.patience", 1, "--early_stopping.min_delta", 10, *QUIET)  # no loss falls by so much


class EarlyStoppingTest(StopSupport):
    def state(self, epoch, folder="checkpoints"):
        return load(self.path(folder, f"checkpoint_{epoch}.pt"))["trainer_state"]["early_stopping"]

    def losses(self, folder):
        records = [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]
        return [record["val/loss"] for record in records if record["kind"] == "validation"]

    def test_it_ends_as_done_with_the_last_state_and_a_model(self):
        finished = self.ok("--epochs", 9, *AT_ONCE, *WRITERS)
        self.assertDone(finished, 2, checkpoint="checkpoints/checkpoint_1.pt")
        self.assertEqual(names(self.path("checkpoints")), checkpoints([0, 1], model=1))
        self.assertRegex(finished.err, r"\[info\] [^\n]*val/loss", "why it ended")

    def test_its_state_is_in_the_checkpoint(self):
        self.ok("--epochs", 9, *AT_ONCE, *WRITERS)
        first = self.losses(self.dir)[0]
        self.assertEqual([(self.state(epoch)["best"], self.state(epoch)["epochs_without_improvement"]) for epoch in (0, 1)], [(first, 0), (first, 1)])

    def test_resumed_there_is_nothing_to_do(self):
        self.ok("--epochs", 9, *AT_ONCE, *WRITERS)
        before = contents(self.dir)
        finished = self.ok("--epochs", 9, *AT_ONCE, *WRITERS, "--resume", "auto")
        self.assertDone(finished, 2, kind="nothing to do", checkpoint="checkpoints/checkpoint_1.pt")
        self.assertEqual(finished.out.count("\n"), 1)
        self.assertEqual(contents(self.dir), before)

    def test_patience_raised_it_goes_on_as_if_it_had_been_so_from_the_start(self):
        patient = ("--epochs", 9, *LOSS, "--early_stopping.patience", 3, "--early_stopping.min_delta", 10, *QUIET)
        self.straight_run(self.path("straight"), *patient)
        folder = self.path("run")
        self.straight_run(folder, "--epochs", 9, *AT_ONCE)
        self.assertDone(self.ok(*patient, *WRITERS, "--resume", "auto", cwd=folder), 4)
        self.assertEqualRuns(folder, self.path("straight"), epochs=4)
        self.assertEqual(self.state(3, "run/checkpoints")["epochs_without_improvement"], 3)

    def test_without_the_flag_a_run_that_ended_early_goes_on(self):
        self.ok("--epochs", 3, *AT_ONCE)
        self.assertDone(self.ok("--epochs", 3, "--resume", "auto", *QUIET), 3)

    def test_higher_may_be_better(self):
        flags = ("--epochs", 9, "--early_stopping.metric", "val/accuracy", "--early_stopping.patience", 2, *QUIET)
        self.refused(2, *flags, says=("early_stopping.mode", "val/accuracy", "min or max"))
        self.assertDone(self.ok(*flags, "--early_stopping.mode", "max", "--early_stopping.min_delta", 1), 3)
        self.assertEqual(self.state(2)["epochs_without_improvement"], 2)

    def test_patience_is_3_by_default_and_an_improvement_starts_it_anew(self):
        self.ok("--epochs", 6, *LOSS, *WRITERS, *QUIET)
        best, waited = None, 0
        for epoch, loss in enumerate(self.losses(self.dir)):
            best, waited = (loss, 0) if best is None or loss < best else (best, waited + 1)
            self.assertEqual((self.state(epoch)["best"], self.state(epoch)["epochs_without_improvement"]), (best, waited))
            self.assertLessEqual(waited, 3)

    def test_a_metric_that_there_is_not_fails_after_the_first_epoch_naming_those_there_are(self):
        error = self.fails(1, "--epochs", 9, "--early_stopping.metric", "val/f1", "--early_stopping.mode", "max", *QUIET, says=("val/f1", "train/loss", "val/loss", "val/accuracy"))
        self.assertIn("early_stopping.metric", error)

    def test_bad_values(self):
        self.refused(2, *LOSS, "--early_stopping.patience", 0, says="--early_stopping.patience: must be at least 1 (epochs), got 0")
        self.refused(2, *LOSS, "--early_stopping.min_delta", -1, says="--early_stopping.min_delta: must be at least 0, got -1")
        self.refused(2, *LOSS, "--early_stopping.mode", "low", says="--early_stopping.mode: must be one of min, max, got 'low'")


class StoppedInTheMiddleTest(StopSupport):
    """The decision is that of the straight run, wherever it was stopped."""

    RUN = ("--epochs", 60, *LOSS, "--early_stopping.patience", 2, "--early_stopping.min_delta", 0.05, "--module.dropout", 0.3, *QUIET)

    def setUp(self):
        super().setUp()
        self.straight = self.path("straight")
        _, self.seconds = self.straight_run(self.straight, *self.RUN)
        self.epochs = max(int(name[11:-3]) for name in names(self.straight / "checkpoints") if name[11:-3].isdigit()) + 1
        self.assertGreaterEqual(self.epochs, 3)
        self.assertLess(self.epochs, 60, "it ended early")

    def go_on(self, folder):
        resumed = self.ok(*self.RUN, *WRITERS, "--resume", "auto", cwd=folder)
        self.assertDone(resumed, self.epochs)
        self.assertEqualRuns(folder, self.straight, self.epochs)

    def test_after_a_number_of_steps(self):
        for steps in (1, STEPS, STEPS + 1, 2 * STEPS, (self.epochs - 1) * STEPS, self.epochs * STEPS - 1):
            with self.subTest(steps=steps):
                folder = self.path(f"steps_{steps}")
                folder.mkdir()
                self.assertDone(self.ok(*self.RUN, *WRITERS, "--max_steps", steps, cwd=folder), steps // STEPS, steps)
                self.go_on(folder)

    def test_by_a_signal(self):
        stops = 0
        for attempt in range(30):
            folder, moment = self.path(f"run_{attempt}"), self.random.uniform(0, self.seconds)
            with self.subTest(attempt=attempt, moment=f"{moment:.4f} of {self.seconds:.4f} s"):
                running = self.in_training(folder, *self.RUN)
                time.sleep(moment)
                running.send(signal.SIGTERM)
                finished = running.finished()
                if self.was_done(finished):
                    continue
                stops += 1
                self.assertStopped(finished, 143, folder)
                self.go_on(folder)
            if stops == 3:
                return
        self.fail("too few stops came before the end")


if __name__ == "__main__":
    unittest.main()
