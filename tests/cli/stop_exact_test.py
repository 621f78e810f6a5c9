"""Stopped at any moment, by any signal, and gone on: the same bits as a run that nothing stopped.

MARLIN_TEST_LONG=1 stops more often. The random moments come from a seed that is printed; MARLIN_TEST_SEED sets it.
"""

import re
import shutil
import signal
import time
import unittest
from collections import Counter
from contextlib import closing

from cli_support import LONG, STEPS, FolderEvents, load, names
from stop_support import EPOCHS, HARD, WRITERS, WithStraightRuns, position


class StoppedBySignalTest(WithStraightRuns):
    def go_on(self, folder, workers, checkpoint):
        resumed = self.ok(*self.flags(self.other(workers)), *WRITERS, "--resume", "auto", cwd=folder)
        if checkpoint is None:
            self.assertNotIn("resumed", resumed.err)
        else:
            self.assertIn(f"resumed from checkpoints/{checkpoint.name}: ", resumed.err)
        self.assertNotIn("warning", resumed.err)
        self.assertDone(resumed, EPOCHS, checkpoint=f"checkpoints/checkpoint_{EPOCHS - 1}.pt")

    def stop_at_random(self, number, stops):
        """So many fresh runs are stopped, and each is gone on with and compared; moments in which a run was done already do not count."""
        told = Counter()
        for attempt in range(10 * stops):
            if told["stops"] >= stops and (told["in a validation"] >= stops // 10 or attempt >= 5 * stops):
                break
            workers = self.WORKERS[told["stops"] % len(self.WORKERS)]
            straight, _, seconds = self.straight(workers)
            moment = self.random.uniform(0, seconds)
            saves = self.random.choice(((), ("--checkpointer.period_steps", 4), ("--checkpointer.period_steps", STEPS)))
            folder = self.path(f"run_{attempt}")
            with self.subTest(attempt=attempt, workers=workers, moment=f"{moment:.4f} of {seconds:.4f} s", saves=saves):
                running = self.in_training(folder, *self.flags(workers), *saves)
                time.sleep(moment)
                running.send(number)
                finished = running.finished()
                if self.was_done(finished):
                    told["too late"] += 1
                    continue
                told["stops"] += 1
                checkpoint = self.assertStopped(finished, 128 + number, folder)
                state = load(checkpoint)["trainer_state"] if checkpoint else None
                told["before the first step" if state is None else "between epochs" if not state["in_epoch"] else f"in a {state['phase']}"] += 1
                self.go_on(folder, workers, checkpoint)
                self.assertEqualRuns(folder, straight)
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{signal.Signals(number).name}: {dict(told)}", flush=True)
        self.assertGreaterEqual(told["stops"], stops, "too few stops came before the end")
        self.assertGreaterEqual(told["in a validation"], stops // 10, "too few stops fell into a validation to say much")

    def test_sigterm_and_on_is_as_if_never_stopped(self):
        self.stop_at_random(signal.SIGTERM, 100 if LONG else 20)

    def test_sigint_and_on_is_as_if_never_stopped(self):
        self.stop_at_random(signal.SIGINT, 40 if LONG else 8)


class StoppedAgainAndAgainTest(WithStraightRuns):
    """As under a scheduler that takes the machine away whenever it likes: the same command, time after time."""

    def stop_until_done(self, folder, workers):
        """How often it was stopped, and how often of that within a validation."""
        seconds = self.straight(workers)[2]
        stops = in_validation = 0
        while stops < 100:
            running = self.in_training(folder, *self.flags(self.other(workers)), "--resume", "auto")
            time.sleep(self.random.uniform(0, seconds / 3))
            running.send(signal.SIGTERM)
            finished = running.finished()
            if self.was_done(finished):
                return stops, in_validation
            checkpoint = self.assertStopped(finished, 143, folder)
            in_validation += checkpoint is not None and load(checkpoint)["trainer_state"]["phase"] == "validation"
            stops += 1
        # A machine that has become this slow still ends it.
        self.ok(*self.flags(workers), *WRITERS, "--resume", "auto", cwd=folder)
        return stops, in_validation

    def test_many_stops_come_to_the_straight_run(self):
        for workers in (*self.WORKERS, *(self.WORKERS * 4 if LONG else ())):
            with self.subTest(workers=workers):
                folder = self.path("run")
                shutil.rmtree(folder, ignore_errors=True)
                stops, in_validation = self.stop_until_done(folder, workers)
                print(f"workers {workers}: {stops} stops, {in_validation} in a validation", flush=True)
                self.assertGreater(stops, 0)
                self.assertEqualRuns(folder, self.straight(workers)[0])


class KilledTest(WithStraightRuns):
    """kill -9: it goes on from the last checkpoint, and what was recorded after that one is put aside and recorded again."""

    def kill_at_random(self, folder, workers, period):
        """Kills a fresh run at a random moment after its first checkpoint; False if it was done before."""
        seconds = self.straight(workers)[2]
        (folder / "checkpoints").mkdir(parents=True)
        with closing(FolderEvents(folder / "checkpoints")) as events:
            running = self.in_training(folder, *self.flags(workers), "--checkpointer.period_steps", period)
            running.await_event(events, lambda event, name: event == events.MOVED_TO and name.startswith("checkpoint_"))
        time.sleep(self.random.uniform(0, seconds))
        running.send(signal.SIGKILL)
        finished = running.finished()
        self.assertNothingStrange(finished)
        return finished.code == -signal.SIGKILL and not self.was_done(finished)

    def test_kill_and_on_is_as_if_never_killed(self):
        kills = 100 if LONG else 20
        told = Counter()
        for attempt in range(10 * kills):
            if told["kills"] >= kills:
                break
            workers = self.WORKERS[told["kills"] % len(self.WORKERS)]
            period = self.random.choice((4, 4, STEPS))  # also after the last step of an epoch, before its validation
            folder = self.path(f"run_{attempt}")
            with self.subTest(attempt=attempt, workers=workers, period=period):
                if not self.kill_at_random(folder, workers, period):
                    told["too late"] += 1
                    continue
                told["kills"] += 1
                self.assertAllWhole(folder / "checkpoints")
                record = (folder / "logs/metrics.jsonl").read_bytes()
                resumed = self.ok(*self.flags(self.other(workers)), *WRITERS, "--checkpointer.period_steps", period, "--resume", "auto", cwd=folder)
                source = re.search(r"resumed from (\S+): (\d+) epochs", resumed.err)
                self.assertIsNotNone(source, str(resumed))
                at_its_end = source[1] == f"checkpoints/checkpoint_{EPOCHS - 1}.pt"  # only the file of the bare model was still to come
                self.assertDone(resumed, EPOCHS, kind="nothing to do" if at_its_end else "done")
                told["from the end of an epoch" if "_step_" not in source[1] else "from within an epoch"] += 1
                tail = record[position(folder / source[1]) :]
                aside = folder / "logs/metrics.superseded.jsonl"
                self.assertEqual(aside.read_bytes().rstrip(b"\n") if aside.exists() else b"", tail.rstrip(b"\n"))
                told["with records after it"] += bool(tail)
                self.assertNotIn("warning", resumed.err)
                self.assertEqual([name for name in names(folder / "checkpoints") if name.startswith(".")], [])
                self.assertEqualRuns(folder, self.straight(workers)[0])
            shutil.rmtree(folder, ignore_errors=True)
        print(f"kill -9: {dict(told)}", flush=True)
        self.assertGreaterEqual(told["kills"], kills, "too few kills came before the end")


class WorkersTest(WithStraightRuns):
    def test_threads_that_read_change_no_bit(self):
        for workers in self.WORKERS[2:]:
            with self.subTest(workers=workers):
                folder = self.path(str(workers))
                self.straight_run(folder, *self.flags(workers))
                self.assertEqualRuns(folder, self.straight(0)[0])

    def test_a_straight_run_has_the_same_bits_twice(self):
        self.straight_run(self.path("again"), *self.flags(None))
        self.assertEqualRuns(self.path("again"), self.straight(None)[0])

    def test_augmentation_goes_by_the_sample_with_threads_and_by_the_batch_without(self):
        weights = [load(self.straight(workers)[0] / f"checkpoints/checkpoint_model_{EPOCHS - 1}.pt")["net.0.weight"] for workers in (None, 0)]
        self.assertFalse(weights[0].equal(weights[1]))

    def test_refused_below_none(self):
        self.refused(2, *HARD, "--module.workers", -1, says="--module.workers: must be at least 0, got -1")


if __name__ == "__main__":
    unittest.main()
