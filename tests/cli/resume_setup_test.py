"""Going on with other flags than before: what then still holds, what is told, and what is refused; and what becomes of the record."""

import json
import re
import shutil
import signal
import unittest
from contextlib import closing

from cli_support import DATA, STEPS, CliTest, FolderEvents, contents, load
from stop_support import QUIET, WRITERS, StopSupport, position

RUN = ("--module.dropout", 0.3, "--module.augment", "--log_steps", 5, *QUIET)


def warnings(finished):
    return [line for line in finished.err.splitlines() if "[warning]" in line]


def numbers(line):
    """The numbers in a line of the log, without its time."""
    return [float(text) for text in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", line.split("] ", 2)[-1])]


class ExtendedRunTest(StopSupport):
    def extend(self, first, then, *args):
        """A run of so many epochs, then raised; its second part."""
        folder = self.path("run")
        self.straight_run(folder, "--epochs", first, *RUN, *args)
        resumed = self.ok("--epochs", then, *RUN, *args, *WRITERS, "--resume", "auto", cwd=folder)
        self.assertDone(resumed, then)
        return resumed

    def straight(self, epochs, *args):
        self.straight_run(self.path("straight"), "--epochs", epochs, *RUN, *args)

    def test_more_epochs_are_as_if_asked_for_from_the_start(self):
        for args in ((), ("--module.optimizer", "sgd"), ("--module.workers", 1)):
            with self.subTest(args):
                self.assertEqual(warnings(self.extend(2, 4, *args)), [])
                self.straight(4, *args)
                self.assertEqualRuns(self.path("run"), self.path("straight"), epochs=4)
                shutil.rmtree(self.path("run")), shutil.rmtree(self.path("straight"))

    def test_a_schedule_that_needs_no_total_is_as_if_asked_for_from_the_start(self):
        schedule = ("--module.schedule", "step")
        self.assertEqual(warnings(self.extend(2, 4, *schedule)), [])
        self.straight(4, *schedule)
        self.assertEqualRuns(self.path("run"), self.path("straight"), epochs=4)

    def test_a_schedule_over_the_whole_run_is_told_of_with_both_rates(self):
        schedule = ("--module.schedule", "cosine", "--module.lr", 0.004)
        self.straight_run(self.path("run"), "--epochs", 4, *RUN, *schedule)
        # At step 46 of 92 the rate was a half of 0.004; at step 46 of 138 it is three quarters.
        resumed = self.ok("--epochs", 6, *RUN, *schedule, *WRITERS, "--resume", "checkpoints/checkpoint_1.pt", cwd=self.path("run"))
        self.assertDone(resumed, 6)
        told = warnings(resumed)
        self.assertEqual(len(told), 1, str(resumed))
        self.assertIn("scheduler", told[0])
        for rate in (0.002, 0.003):
            self.assertTrue(any(abs(number - rate) < 1e-6 for number in numbers(told[0])), told[0])

    def test_it_then_follows_the_longer_schedule(self):
        schedule = ("--module.schedule", "cosine")
        self.assertEqual(len(warnings(self.extend(2, 4, *schedule))), 1)
        self.straight(4, *schedule)
        rates = [load(self.path(run, "checkpoints/checkpoint_2.pt"))["trainer_state"]["optimizers"][0]["param_groups"][0]["lr"] for run in ("run", "straight")]
        self.assertGreater(rates[0], 0)
        self.assertEqual(rates[0], rates[1])

    def test_a_schedule_over_the_whole_run_stopped_and_not_extended_is_not_told_of(self):
        schedule = ("--epochs", 4, *RUN, "--module.schedule", "cosine")
        self.straight_run(self.path("run"), *schedule)
        self.assertEqual(warnings(self.ok(*schedule, *WRITERS, "--resume", "checkpoints/checkpoint_1.pt", cwd=self.path("run"))), [])

    def test_more_steps_are_as_if_asked_for_from_the_start(self):
        # What max_steps cut off in an epoch, its validation, is recorded and then superseded.
        folder = self.path("run")
        folder.mkdir()
        for steps in (1, 30, 2 * STEPS, 60):
            self.assertDone(self.ok("--epochs", 3, "--max_steps", steps, *RUN, *WRITERS, "--resume", "auto", cwd=folder), steps // STEPS, steps)
        self.ok("--epochs", 3, *RUN, *WRITERS, "--resume", "auto", cwd=folder)
        self.straight(3)
        self.assertEqualRuns(folder, self.path("straight"), epochs=3)


class FewerEpochsTest(CliTest):
    def test_less_than_is_done_is_refused(self):
        self.ok("--epochs", 4, *WRITERS, *QUIET)
        before = contents(self.dir)
        self.refused(2, "--epochs", 2, "--resume", "auto", *WRITERS, says=("--epochs 2", "checkpoints/checkpoint_3.pt", "4 epochs", "--epochs 4"))
        self.assertEqual(contents(self.dir), before)
        self.assertDone(self.ok("--epochs", 4, "--resume", "auto", *WRITERS), 4, kind="nothing to do")
        self.assertEqual(contents(self.dir), before)

    def test_a_part_of_an_epoch_counts(self):
        self.ok("--epochs", 2, "--max_steps", STEPS + 2, *QUIET)
        before = contents(self.dir)
        self.refused(2, "--epochs", 1, "--resume", "auto", says=("--epochs 1", f"checkpoint_step_{STEPS + 2}.pt", "--epochs 2"))
        self.assertEqual(contents(self.dir), before)


class OtherSetUpTest(CliTest):
    def cut_within_an_epoch(self):
        """The state after 7 steps of the second epoch: 448 of its samples are consumed."""
        self.ok("--epochs", 2, "--max_steps", STEPS + 7, *RUN)

    def refused_unchanged(self, *args, says):
        before = contents(self.dir)
        error = self.refused(3, "--resume", "auto", *args, says=says)
        self.assertEqual(contents(self.dir), before)
        return error

    def data(self, lines):
        return self.put("data.csv", "".join(lines)).name

    def test_another_batch_size_is_told_of_and_each_sample_comes_once(self):
        self.cut_within_an_epoch()
        finished = self.ok("--epochs", 2, "--train_batch_size", 32, "--checkpointer.period_steps", 1, "--resume", "auto", *RUN)
        batches = -(-(1437 - 448) // 32)
        self.assertDone(finished, 2, STEPS + 7 + batches)
        told = warnings(finished)
        self.assertEqual(len(told), 1, str(finished))
        self.assertIn("batch_size", told[0])
        self.assertEqual({64, 32} - set(numbers(told[0])), set(), told[0])
        for step in (1, 2, batches - 1):
            loader = load(self.path(f"checkpoints/checkpoint_step_{STEPS + 7 + step}.pt"))["trainer_state"]["loader"]
            self.assertEqual((loader["epoch"], loader["consumed_samples"]), (1, 448 + 32 * step))

    def test_the_next_epochs_have_batches_of_the_new_size(self):
        self.cut_within_an_epoch()
        self.assertDone(self.ok("--epochs", 3, "--train_batch_size", 100, "--resume", "auto", *RUN), 3, STEPS + 7 + 10 + 15)

    def test_with_threads_that_read_too(self):
        self.ok("--epochs", 2, "--max_steps", STEPS + 7, "--module.workers", 3, *RUN)
        finished = self.ok("--epochs", 2, "--train_batch_size", 32, "--module.workers", 1, "--resume", "auto", *RUN)
        self.assertDone(finished, 2, STEPS + 7 + 31)
        self.assertEqual(len(warnings(finished)), 1, str(finished))

    def test_another_seed_is_told_of(self):
        self.cut_within_an_epoch()
        finished = self.ok("--epochs", 2, "--seed", 17, "--resume", "auto", *RUN)
        self.assertDone(finished, 2)
        self.assertEqual(len(warnings(finished)), 1, str(finished))
        self.assertRegex(warnings(finished)[0], r"\bseed\b.*\b17\b")

    def test_the_same_set_up_is_not_told_of(self):
        self.cut_within_an_epoch()
        self.assertEqual(warnings(self.ok("--epochs", 2, "--val_batch_size", 7, "--resume", "auto", *RUN)), [])

    def test_data_of_another_length_is_refused_within_an_epoch_and_between(self):
        lines = DATA.read_text().splitlines(keepends=True)
        data = self.data(lines[:1787])  # 1429 of them to train with
        for cut in (("--max_steps", STEPS + 7), ()):
            with self.subTest(cut):
                shutil.rmtree(self.path("checkpoints"), ignore_errors=True)
                self.ok("--epochs", 2, *cut, *RUN)
                self.refused_unchanged("--epochs", 4, *RUN, "--module.data", data, says=("1437", "1429"))

    def test_other_data_of_the_same_length_is_refused(self):
        self.cut_within_an_epoch()
        lines = DATA.read_text().splitlines(keepends=True)
        data = self.data(lines[900:] + lines[:900])
        self.refused_unchanged("--epochs", 2, *RUN, "--module.data", data, says="checkpoint_step_30.pt")

    def test_a_copy_of_the_data_is_the_same(self):
        self.cut_within_an_epoch()
        self.copy(DATA, "copy.csv")
        finished = self.ok("--epochs", 2, "--module.data", "copy.csv", "--resume", "auto", *RUN)
        self.assertEqual(warnings(finished), [])

    def test_another_optimizer_is_refused(self):
        self.cut_within_an_epoch()
        self.refused_unchanged("--epochs", 2, *RUN, "--module.optimizer", "sgd", says=("checkpoint_step_30.pt", "optimizer 0"))

    def test_another_number_of_schedules_is_refused(self):
        self.cut_within_an_epoch()
        self.refused_unchanged("--epochs", 2, *RUN, "--module.schedule", "step", says=("schedulers: 0 in the file, 1 in this run",))

    def test_all_that_differs_is_told_at_once(self):
        self.cut_within_an_epoch()
        data = self.data(DATA.read_text().splitlines(keepends=True)[:1787])
        self.refused_unchanged("--epochs", 2, *RUN, "--module.data", data, "--module.optimizer", "sgd", "--module.hidden", 16, "--module.schedule", "cosine",
                               says=("1437", "1429", "optimizer 0", "net.0.weight", "net.3.weight", "schedulers"))


class RecordTest(StopSupport):
    """logs/metrics.jsonl of a run that goes on."""

    def killed_with_records_after_the_checkpoint(self):
        """A run that saves every second epoch, killed after the record of one that was not saved: its folder and last checkpoint."""
        for attempt in range(20):
            folder = self.path(f"run_{attempt}")
            (folder / "logs").mkdir(parents=True)
            with closing(FolderEvents(folder / "logs", also=FolderEvents.MODIFY)) as events:
                running = self.launch("--epochs", 1000, *RUN, *WRITERS, "--checkpointer.period", 2, cwd=folder)
                record = folder / "logs/metrics.jsonl"
                running.await_event(events, lambda event, name: '"kind":"validation","epoch":1,' in record.read_text() if record.exists() else False)
            running.send(signal.SIGKILL)
            running.finished()
            saved = max(folder.glob("checkpoints/checkpoint_[0-9]*.pt"), key=lambda file: int(file.stem[11:]), default=None)
            if saved and position(saved) < record.stat().st_size:
                return folder, saved
        return self.fail("no kill left records after the last checkpoint")

    def test_after_a_kill_what_was_recorded_after_the_checkpoint_is_put_aside_and_recorded_again(self):
        folder, saved = self.killed_with_records_after_the_checkpoint()
        left = (folder / "logs/metrics.jsonl").read_bytes()
        epochs = int(saved.stem[11:]) + 3
        resumed = self.ok("--epochs", epochs, *RUN, *WRITERS, "--resume", "auto", cwd=folder)
        self.assertIn(f"resumed from checkpoints/{saved.name}: ", resumed.err)
        self.assertEqual(len(re.findall(r"\[info\] [^\n]*metrics\.superseded\.jsonl", resumed.err)), 1, str(resumed))
        self.assertEqual(warnings(resumed), [])
        self.assertEqual((folder / "logs/metrics.superseded.jsonl").read_bytes().rstrip(b"\n"), left[position(saved) :].rstrip(b"\n"))
        self.straight_run(self.path("straight"), "--epochs", epochs, *RUN)
        self.assertEqualRuns(folder, self.path("straight"), epochs)

    def test_from_an_older_checkpoint_all_that_came_later_is_put_aside_each_time(self):
        folder = self.path("run")
        self.straight_run(folder, "--epochs", 3, *RUN)
        whole = (folder / "logs/metrics.jsonl").read_bytes()
        aside = b""
        for epoch in (1, 0):
            tail = whole[position(folder / f"checkpoints/checkpoint_{epoch}.pt") :]
            self.ok("--epochs", 3, *RUN, *WRITERS, "--resume", f"checkpoints/checkpoint_{epoch}.pt", cwd=folder)
            aside += tail
            self.assertEqual((folder / "logs/metrics.jsonl").read_bytes(), whole)
            self.assertEqual((folder / "logs/metrics.superseded.jsonl").read_bytes(), aside)

    def test_nothing_is_put_aside_where_nothing_came_later(self):
        folder = self.path("run")
        self.straight_run(folder, "--epochs", 1, *RUN)
        resumed = self.ok("--epochs", 2, *RUN, *WRITERS, "--resume", "auto", cwd=folder)
        self.assertNotIn("superseded", resumed.err)
        self.assertFalse((folder / "logs/metrics.superseded.jsonl").exists())

    def changed(self, change):
        """Goes on with a record that somebody changed: one warning, and what is there stays; the records that came."""
        folder = self.path("run")
        self.straight_run(folder, "--epochs", 2, *RUN)
        record = folder / "logs/metrics.jsonl"
        theirs = change(record.read_bytes())
        record.write_bytes(theirs)
        resumed = self.ok("--epochs", 3, *RUN, *WRITERS, "--resume", "auto", cwd=folder)
        self.assertDone(resumed, 3)
        told = warnings(resumed)
        self.assertEqual(len(told), 1, str(resumed))
        self.assertIn("metrics.jsonl", told[0])
        now = record.read_bytes()
        self.assertTrue(now.startswith(theirs))
        self.assertFalse((folder / "logs/metrics.superseded.jsonl").exists())
        added = [json.loads(line) for line in now[len(theirs) :].decode().splitlines() if line]
        self.assertEqual({line["epoch"] for line in added}, {2})
        self.assertEqual([line["kind"] for line in added][-2:], ["epoch", "validation"])

    def test_one_that_was_cut_short_is_told_of_and_appended_to(self):
        self.changed(lambda record: record[: len(record) // 2])

    def test_one_that_lost_its_first_lines_is_told_of_and_appended_to(self):
        self.changed(lambda record: record.split(b"\n", 3)[3])

    def test_one_with_other_bytes_is_told_of_and_appended_to(self):
        self.changed(lambda record: record.replace(b"train/loss", b"train/LOSS"))

    def test_one_that_is_gone_is_begun_anew(self):
        folder = self.path("run")
        self.straight_run(folder, "--epochs", 2, *RUN)
        (folder / "logs/metrics.jsonl").unlink()
        self.assertDone(self.ok("--epochs", 3, *RUN, *WRITERS, "--resume", "auto", cwd=folder), 3)
        added = [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]
        self.assertEqual({line["epoch"] for line in added}, {2})

    def test_a_run_that_records_only_now_begins_its_file(self):
        self.ok("--epochs", 1, *RUN)
        resumed = self.ok("--epochs", 2, *RUN, *WRITERS, "--resume", "auto")
        self.assertEqual(warnings(resumed), [])
        self.assertEqual({json.loads(line)["epoch"] for line in self.path("logs/metrics.jsonl").read_text().splitlines()}, {1})


if __name__ == "__main__":
    unittest.main()
