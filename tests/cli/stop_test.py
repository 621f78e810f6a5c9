"""Signals and the clock as requests to a run: what each does, when, and what the run says and leaves.

That it goes on exactly is in stop_exact_test.py. MARLIN_TEST_LONG=1 repeats more often; MARLIN_TEST_SEED sets the random moments.
"""

import re
import shutil
import signal
import time
import unittest
from contextlib import closing

from cli_support import LONG, STEPS, FolderEvents, contents, load, names
from stop_support import HARD, QUIET, WRITERS, StopSupport, position


class SigtermTest(StopSupport):
    EPOCHS = 8
    RUN = ("--epochs", EPOCHS, "--val_batch_size", 2, "--module.dropout", 0.2, *QUIET)

    def setUp(self):
        super().setUp()
        self.start_up, self.seconds = self.straight_run(self.path("straight"), *self.RUN)

    def test_each_ends_with_143_and_a_last_line_that_names_a_checkpoint_to_go_on_from(self):
        wanted = 100 if LONG else 10
        stops = in_validation = attempt = 0
        while stops < wanted and attempt < 10 * wanted:
            attempt += 1
            folder, moment = self.path(f"run_{attempt}"), self.random.uniform(0, self.seconds)
            with self.subTest(attempt=attempt, moment=f"{moment:.4f} of {self.seconds:.4f} s"):
                running = self.in_training(folder, *self.RUN)
                time.sleep(moment)
                running.send(signal.SIGTERM)
                finished = running.finished()
                if self.was_done(finished):
                    continue
                stops += 1
                checkpoint = self.assertStopped(finished, 143, folder)
                if checkpoint is None:
                    continue  # no step was done
                in_validation += load(checkpoint)["trainer_state"]["phase"] == "validation"
                resumed = self.ok(*self.RUN, "--resume", "must", cwd=folder)
                self.assertIn(f"resumed from checkpoints/{checkpoint.name}: ", resumed.err)
                self.assertDone(resumed, self.EPOCHS)
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{stops} stops, {in_validation} in a validation, {attempt - stops} too late", flush=True)
        self.assertEqual(stops, wanted, "too few stops came before the end")

    def test_several_are_as_one(self):
        for attempt in range(10):
            running = self.in_training(self.path(f"run_{attempt}"), *self.RUN)
            time.sleep(self.random.uniform(0, 0.1 * attempt))
            for _ in range(20):
                running.send(signal.SIGTERM)
            finished = running.finished()
            if not self.was_done(finished) and self.assertStopped(finished, 143, self.path(f"run_{attempt}")):
                return
        self.fail("none came within training")

    def stop_before_training(self, template, *args):
        """Signals at random moments of the start, each in a copy of this folder; at least the first comes before training."""
        before, untouched = contents(template), 0
        tries = 100 if LONG else 10
        for attempt in range(tries):
            folder = self.path(f"copy_{attempt}")
            shutil.copytree(template, folder)
            number = self.random.choice((signal.SIGTERM, signal.SIGINT))
            running = self.launch(*self.RUN, *WRITERS, *args, cwd=folder)
            time.sleep(0 if attempt == 0 else self.random.uniform(0, 0.95 * self.start_up))
            running.send(number)
            finished = running.finished()
            if self.was_done(finished):
                continue
            if finished.code == -number:
                untouched += 1
                self.assertEqual(finished.out, "", "a run that trains ends with its last line")
                self.assertNothingStrange(finished)
                self.assertEqual(contents(folder), before, "nothing is made, written or moved")
            else:  # training had begun
                self.assertStopped(finished, 128 + number, folder)
        print(f"{untouched} of {tries} came before training", flush=True)
        self.assertGreater(untouched, 0)

    def test_before_training_it_ends_the_process_and_leaves_nothing(self):
        self.path("empty").mkdir()
        self.stop_before_training(self.path("empty"))

    def test_before_training_a_run_that_would_go_on_leaves_all_as_it_was(self):
        folder = self.path("begun")
        self.straight_run(folder, *self.RUN)
        for name in names(folder / "checkpoints"):  # as if it had been killed then: records stand after its last checkpoint
            if name != "checkpoint_2.pt":
                (folder / "checkpoints" / name).unlink()
        self.stop_before_training(folder, "--resume", "auto")


class SigintTest(StopSupport):
    SLOW = ("--epochs", 1000, "--module.hidden", 100000, "--train_batch_size", 700, "--micro_batch_limit", 64, "--checkpointer.period_steps", 1, *QUIET)

    def in_a_slow_step(self, folder, **how):
        """A run whose steps take a good part of a second, with the first behind it."""
        (folder / "checkpoints").mkdir(parents=True)
        with closing(FolderEvents(folder / "checkpoints")) as events:
            running = self.in_training(folder, *self.SLOW, **how)
            self.assertIsNotNone(running.await_event(events, lambda event, name: (event, name) == (events.MOVED_TO, "checkpoint_step_1.pt")))
        return running

    def test_the_second_ends_the_process_at_once_even_in_a_slow_step(self):
        for sigint in (signal.SIG_DFL, signal.SIG_IGN):
            with self.subTest(inherited=sigint):
                folder = self.path(f"run_{int(sigint)}")
                running = self.in_a_slow_step(folder, sigint=sigint)
                running.send(signal.SIGINT)
                running.await_signals("ShdPnd", lambda pending: not pending & 1 << signal.SIGINT - 1)  # two that are pending are one
                running.send(signal.SIGINT)
                finished = running.finished()
                self.assertEqual(finished.code, -signal.SIGINT, str(finished))
                self.assertNothingStrange(finished)
                self.assertNotRegex(finished.out, r"(?m)^(done|stopped) ")
                self.assertAllWhole(folder / "checkpoints")

    def test_the_first_finishes_the_step_and_saves(self):
        folder = self.path("run")
        running = self.in_a_slow_step(folder)
        running.send(signal.SIGINT)
        self.assertIsNotNone(self.assertStopped(running.finished(), 130, folder))

    def test_it_stops_a_run_that_inherited_it_as_ignored(self):
        run = ("--epochs", 1000, "--checkpointer.period", 1000, *QUIET)
        for attempt in range(5):
            folder = self.path(f"run_{attempt}")
            running = self.in_training(folder, *run, sigint=signal.SIG_IGN)
            time.sleep(self.random.uniform(0, 0.3))
            running.send(signal.SIGINT)
            self.assertStopped(running.finished(), 130, folder)


class SaveOnRequestTest(StopSupport):
    """SIGUSR1."""

    RUN = ("--epochs", 2, "--train_batch_size", 2, "--module.dropout", 0.3, "--checkpointer.period", 1000, *QUIET)

    def test_it_saves_the_step_and_goes_on_as_if_nothing_had_been(self):
        straight = self.path("straight")
        self.straight_run(straight, *self.RUN)
        for attempt in range(10):
            folder = self.path(f"run_{attempt}")
            (folder / "checkpoints").mkdir(parents=True)
            with closing(FolderEvents(folder / "checkpoints")) as events:
                running = self.in_training(folder, *self.RUN)
                running.send(signal.SIGUSR1)
                saved = running.await_event(events, lambda event, name: event == events.MOVED_TO and name.startswith("checkpoint_step_"))
            finished = running.finished()
            self.assertNothingStrange(finished)
            self.assertDone(finished, 2, 2 * 719, checkpoint="checkpoints/checkpoint_1.pt")
            self.assertEqual(finished.code, 0)
            self.assertEqualRuns(folder, straight, epochs=2)
            if saved is None:
                continue  # it came in a validation
            self.assertEqual(names(folder / "checkpoints"), sorted([*names(straight / "checkpoints"), saved]))
            self.go_on_from(folder, saved, straight)
            return
        self.fail("none came within an epoch's training")

    def go_on_from(self, folder, saved, straight):
        """What was saved is a state like others, and what was recorded after it is put aside."""
        before = (folder / "logs/metrics.jsonl").read_bytes()
        resumed = self.ok(*self.RUN, *WRITERS, "--resume", f"checkpoints/{saved}", cwd=folder)
        self.assertIn(f"resumed from checkpoints/{saved}: ", resumed.err)
        self.assertEqualRuns(folder, straight, epochs=2)
        self.assertEqual((folder / "logs/metrics.superseded.jsonl").read_bytes(), before[position(folder / "checkpoints" / saved) :])

    def test_many_of_them_change_nothing(self):
        self.straight_run(self.path("straight"), *self.RUN)
        running = self.in_training(self.path("run"), *self.RUN)
        for _ in range(50):
            running.send(signal.SIGUSR1)
            time.sleep(self.random.uniform(0, 0.01))
        finished = running.finished()
        self.assertNothingStrange(finished)
        self.assertEqual(finished.code, 0, str(finished))
        self.assertAllWhole(self.path("run/checkpoints"))
        self.assertEqualRuns(self.path("run"), self.path("straight"), epochs=2)

    def test_asked_in_a_validation_it_comes_with_the_end_of_the_epoch(self):
        run = ("--epochs", 30, "--max_train_steps_per_epoch", 1, "--val_batch_size", 1, "--checkpointer.period", 1000, *QUIET)
        for attempt in range(20):
            folder = self.path(f"run_{attempt}")
            (folder / "checkpoints").mkdir(parents=True)
            with closing(FolderEvents(folder / "checkpoints")) as events:
                running = self.in_training(folder, *run)
                running.await_event(events, lambda event, name: (event, name) == (events.MOVED_TO, "checkpoint_0.pt"))
                time.sleep(self.random.uniform(0, 0.05))
                running.send(signal.SIGUSR1)
            finished = running.finished()
            self.assertDone(finished, 30, 30)
            extra = set(names(folder / "checkpoints")) - {"checkpoint_0.pt", "checkpoint_29.pt", "checkpoint_model_29.pt"}
            self.assertLessEqual(len(extra), 1, extra)
            if extra and re.fullmatch(r"checkpoint_\d+\.pt", extra.pop()):
                return
        self.fail("none came within a validation")

    def test_before_training_it_is_remembered(self):
        folder = self.path("run")
        folder.mkdir()
        running = self.launch(*self.RUN, cwd=folder)
        running.await_signals("SigCgt", lambda caught: caught & 1 << signal.SIGUSR1 - 1)
        early = not (folder / "checkpoints").exists()
        running.send(signal.SIGUSR1)
        finished = running.finished()
        self.assertNothingStrange(finished)
        self.assertEqual(finished.code, 0, str(finished))
        self.assertTrue(early, "it has to be caught from the program's start")
        self.assertIn("checkpoint_step_1.pt", names(folder / "checkpoints"), "the first step is saved")


class MaxSecondsTest(StopSupport):
    """--max_seconds, as in jobs that are cut off and started again."""

    EPOCHS = 20
    RUN = (*HARD, "--checkpointer.period", 1000)

    def run_in_parts(self, folder, seconds):
        """The same command until it is done; how often it stopped."""
        folder.mkdir()
        stops = steps = 0
        for _ in range(60):
            finished = self.run_digits(*self.run_of(self.EPOCHS), *WRITERS, "--resume", "auto", "--max_seconds", f"{seconds:.3f}", cwd=folder)
            if finished.code == 2:  # the machine is slower than it was
                self.assertIn("error: --max_seconds ", finished.err)
                seconds *= 1.5
            elif finished.code == 0:
                self.assertDone(finished, self.EPOCHS)
                return stops
            else:
                checkpoint = self.assertStopped(finished, 5, folder)
                if checkpoint is None:
                    seconds *= 1.5
                    continue
                done = load(checkpoint)["trainer_backend_state"]["global_step_completed"]
                self.assertGreaterEqual(done, steps)
                seconds *= 1.5 if done == steps else 1
                steps = done
                stops += 1
        self.fail("it was not done after 60 parts")

    def run_of(self, epochs):
        return ("--epochs", epochs, *self.RUN[2:])

    def test_it_stops_in_time_saved_with_exit_code_5_and_its_parts_are_the_straight_run(self):
        start_up, training = self.straight_run(self.path("straight"), *self.run_of(self.EPOCHS))
        for share in (0.4, 0.2, 0.1):
            folder = self.path(f"parts_{share}")
            stops = self.run_in_parts(folder, start_up + share * training)
            self.assertEqualRuns(folder, self.path("straight"), epochs=self.EPOCHS)
            if stops:
                print(f"stopped {stops} times", flush=True)
                return
        self.fail("it never stopped before it was done")

    def test_time_enough_changes_nothing(self):
        self.straight_run(self.path("straight"), *HARD)
        self.straight_run(self.path("run"), *HARD, "--max_seconds", 10000)
        self.assertEqualRuns(self.path("run"), self.path("straight"))

    def test_too_little_for_a_save_is_refused(self):
        self.refused(2, *HARD, "--max_seconds", 0.001, says="--max_seconds 0.001")
        self.refused(2, *HARD, "--max_seconds", 0, says="--max_seconds: must be at least 0.001 (seconds), got 0")

    def test_nothing_to_do_needs_no_time(self):
        self.ok("--epochs", 1, *QUIET)
        finished = self.ok("--epochs", 1, "--resume", "auto", "--max_seconds", 0.001)
        self.assertDone(finished, 1, STEPS, kind="nothing to do")


if __name__ == "__main__":
    unittest.main()
