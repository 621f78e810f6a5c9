"""Training and saving, as a user types it: which files there are, what it says, and how it is configured."""

import json
import os
import pty
import re
import subprocess
import unittest

from cli_support import DATA, DIGITS, STEPS, CliTest, FolderEvents, WithRun, checkpoints, differing, environment, names

QUIET = ("--progress", "off")


class FileSetsTest(CliTest):
    def train(self, epochs, *args):
        finished = self.ok("--epochs", epochs, *args, *QUIET)
        return finished, names(self.path("checkpoints"))

    def test_period_2_of_4_epochs(self):
        finished, files = self.train(4, "--checkpointer.period", 2)
        self.assertEqual(files, checkpoints([0, 2, 3], model=3))
        self.assertDone(finished, 4, checkpoint="checkpoints/checkpoint_3.pt")

    def test_period_3_of_5_epochs(self):
        finished, files = self.train(5, "--checkpointer.period", 3)
        self.assertEqual(files, checkpoints([0, 3, 4], model=4))
        self.assertEqual(finished.err.count("saved checkpoints/checkpoint_4.pt"), 1, "the last one is due and forced: it must be written once")

    def test_period_above_the_number_of_epochs(self):
        self.assertEqual(self.train(3, "--checkpointer.period", 100)[1], checkpoints([0, 2], model=2))

    def test_by_steps_and_at_the_ends_of_epochs(self):
        finished, files = self.train(2, "--checkpointer.period_steps", 10, "--checkpointer.period", 9)
        self.assertEqual(files, sorted(checkpoints([0, 1], model=1) + [f"checkpoint_step_{step}.pt" for step in (10, 20, 30, 40)]))
        self.assertDone(finished, 2, checkpoint="checkpoints/checkpoint_1.pt")

    def test_by_seconds(self):
        _, files = self.train(1, "--checkpointer.period_seconds", 0.001)
        self.assertTrue(any(name.startswith("checkpoint_step_") for name in files), files)
        self.refused(2, "--checkpointer.period_seconds", 0, says="--checkpointer.period_seconds: must be at least 0.001 (seconds), got 0")

    def test_every_epoch_by_default(self):
        self.assertEqual(self.train(3)[1], checkpoints([0, 1, 2], model=2))

    def test_one_epoch_by_default(self):
        self.assertDone(self.ok(*QUIET), 1)
        self.assertEqual(names(self.path("checkpoints")), checkpoints([0], model=0))

    def test_no_epochs_write_nothing(self):
        finished = self.ok("--epochs", 0, "--writers", "stdout,jsonl")
        self.assertEqual(names(self.dir), [])
        self.assertDone(finished, 0, kind="nothing to do")
        self.assertEqual(finished.out.count("\n"), 1)

    def test_the_master_switch_writes_nothing(self):
        finished = self.ok("--epochs", 2, "--checkpointer.checkpoint", "false")
        self.assertEqual(names(self.dir), [])
        self.assertDone(finished, 2)
        self.assertNotIn("checkpoint=", finished.last)
        self.assertNotIn("saved", finished.err)

    def test_folders_are_made(self):
        self.ok("--checkpointer.save_dir", "a/b/c", "--checkpointer.model_state_save_dir", "m/n", *QUIET)
        self.assertEqual(names(self.path("a/b/c")), checkpoints([0]))
        self.assertEqual(names(self.path("m/n")), ["checkpoint_model_0.pt"])

    def test_no_model_files(self):
        self.assertEqual(self.train(2, "--checkpointer.model_state_save_dir", "")[1], checkpoints([0, 1]))

    def test_prefix_and_extension(self):
        self.assertEqual(self.train(2, "--checkpointer.file_prefix", "my.run", "--checkpointer.file_ext=tar")[1], ["my.run_0.tar", "my.run_1.tar", "my.run_model_1.tar"])

    def test_the_long_names_of_the_options_work(self):
        self.assertEqual(self.train(3, "--checkpointer.default.period=2", "--checkpointer", "default")[1], checkpoints([0, 2], model=2))

    def test_an_absolute_folder(self):
        finished = self.ok("--checkpointer.save_dir", self.path("x"), *QUIET)
        self.assertDone(finished, 1, checkpoint=self.path("x/checkpoint_0.pt"))

    def test_the_log_says_where_each_file_went(self):
        finished, files = self.train(2)
        for file in files:
            self.assertIn(f"saved checkpoints/{file} ", finished.err)


class FreshStartTest(WithRun):
    base_epochs = 1

    def test_refused_over_any_file_it_could_have_written(self):
        for name in ("checkpoint_0.pt", "checkpoint_12.pt", "checkpoint_step_5.pt", "checkpoint_suspect_3.pt", "checkpoint_model_2.pt"):
            with self.subTest(name):
                folder = self.path(name.replace(".", "_"))
                folder.mkdir()
                (folder / name).write_bytes(b"not even whole")
                self.refused(2, "--checkpointer.save_dir", folder, says=(name, str(folder), "--resume auto", "--checkpointer.delete_existing_checkpoints"))

    def test_refused_with_never_and_for_a_model_in_its_own_folder(self):
        self.take_base()
        self.refused(2, "--resume", "never", says="--resume auto")
        self.refused(2, "--checkpointer.save_dir", "new", "--checkpointer.model_state_save_dir", "checkpoints", says="checkpoint_model_0.pt")

    def test_files_of_others_do_not_matter(self):
        others = ("checkpoint_0.pt.bak", "checkpoint_01.pt", "checkpoint_.pt", "checkpoint_x.pt", "checkpoint_old_1.pt", "my_checkpoint_1.pt", "checkpoint_1.tar", "checkpoint_model.pt",
                  "sub/checkpoint_1.pt", "checkpoint_-1.pt", "notes.txt", "Checkpoint_1.pt")
        for name in others:
            self.put(f"checkpoints/{name}", "theirs")
        self.ok(*QUIET)
        for name in others:
            self.assertEqual(self.path("checkpoints", name).read_text(), "theirs", name)
        self.assertEqual(set(names(self.path("checkpoints"))) - {n.split("/")[0] for n in others}, set(checkpoints([0], model=0)))

    def test_allowed_where_nothing_would_be_written(self):
        self.take_base()
        before = {p: p.stat().st_mtime_ns for p in self.path("checkpoints").iterdir()}
        for args in (("--checkpointer.checkpoint", "false"), ("--epochs", 0), ("--validate_only",)):
            with self.subTest(args):
                self.ok(*args, *QUIET)
                self.assertEqual({p: p.stat().st_mtime_ns for p in self.path("checkpoints").iterdir()}, before)

    def test_another_prefix_or_folder_is_another_run(self):
        self.take_base()
        self.ok("--checkpointer.file_prefix", "second", *QUIET)
        self.assertEqual(names(self.path("checkpoints")), [*checkpoints([0], model=0), "second_0.pt", "second_model_0.pt"])


class DeleteExistingTest(WithRun):
    base_epochs = 3

    def test_only_what_it_could_have_written_is_removed(self):
        self.take_base()
        others = ("keep.txt", "a.pt", "checkpoint_1.pt.bak", "checkpoint_extra_7.pt", "checkpoint_07.pt", "checkpoint_7.tar", "other_7.pt", "sub/checkpoint_7.pt", "checkpoint_8.pt/inside")
        for name in others:
            self.put(f"checkpoints/{name}", "theirs")
        for name in ("checkpoint_step_9.pt", "checkpoint_suspect_9.pt", "checkpoint_99.pt"):
            self.put(f"checkpoints/{name}", "of an earlier run")
        self.ok("--checkpointer.delete_existing_checkpoints", *QUIET)
        for name in others:
            self.assertEqual(self.path("checkpoints", name).read_text(), "theirs", name)
        self.assertEqual(set(names(self.path("checkpoints"))) - {n.split("/")[0] for n in others}, set(checkpoints([0], model=0)))

    def test_models_in_a_folder_of_their_own(self):
        self.put("m/checkpoint_model_5.pt", "old")
        self.put("m/checkpoint_5.pt", "a whole state does not belong here, so it is somebody else's")
        self.put("c/checkpoint_5.pt", "old")
        self.put("c/checkpoint_model_5.pt", "somebody else's")
        self.ok("--checkpointer.delete_existing_checkpoints", "--checkpointer.save_dir", "c", "--checkpointer.model_state_save_dir", "m", *QUIET)
        self.assertEqual(names(self.path("m")), ["checkpoint_5.pt", "checkpoint_model_0.pt"])
        self.assertEqual(names(self.path("c")), ["checkpoint_0.pt", "checkpoint_model_5.pt"])

    def test_the_file_just_loaded_stays_until_the_first_new_one(self):
        self.take_base()
        events = FolderEvents(self.path("checkpoints"))
        self.addCleanup(events.close)
        finished = self.ok("--epochs", 5, "--resume", "auto", "--checkpointer.delete_existing_checkpoints", *QUIET)
        self.assertIn("resumed from checkpoints/checkpoint_2.pt", finished.err)
        seen = [event for event in events.wait(5) if not event[1].startswith(".")]
        removed, made = events.DELETE, events.MOVED_TO
        self.assertEqual(sorted(seen[:3]), [(removed, "checkpoint_0.pt"), (removed, "checkpoint_1.pt"), (removed, "checkpoint_model_2.pt")])
        self.assertEqual(seen[3:], [(made, "checkpoint_3.pt"), (removed, "checkpoint_2.pt"), (made, "checkpoint_4.pt"), (made, "checkpoint_model_4.pt")])
        self.assertEqual(names(self.path("checkpoints")), checkpoints([3, 4], model=4))

    def test_the_file_just_loaded_survives_a_run_that_fails_first(self):
        self.take_base()
        poisoned = self.path("checkpoints/checkpoint_2.pt")
        before = poisoned.read_bytes()
        self.fails(2, "--epochs", 5, "--resume", "auto", "--checkpointer.delete_existing_checkpoints", "--module.data", "nosuch.csv")
        self.assertEqual(names(self.path("checkpoints")), checkpoints([0, 1, 2], model=2), "a refused run must remove nothing")
        self.assertEqual(poisoned.read_bytes(), before)

    def test_a_refused_run_removes_nothing(self):
        self.take_base()
        self.refused(3, "--epochs", 5, "--resume", "./nosuch.pt", "--checkpointer.delete_existing_checkpoints")
        self.refused(3, "--epochs", 5, "--resume", "must", "--module.hidden", 8, "--checkpointer.delete_existing_checkpoints")

    def test_nothing_to_do_removes_nothing(self):
        self.take_base()
        self.ok("--epochs", 3, "--resume", "auto", "--checkpointer.delete_existing_checkpoints")
        self.assertEqual(names(self.path("checkpoints")), checkpoints([0, 1, 2], model=2))


class MaxStepsTest(CliTest):
    def test_at_the_end_of_an_epoch(self):
        finished = self.ok("--epochs", 9, "--max_steps", 2 * STEPS, *QUIET)
        self.assertDone(finished, 2, checkpoint="checkpoints/checkpoint_1.pt")
        self.assertEqual(names(self.path("checkpoints")), checkpoints([0, 1], model=1))

    def test_within_an_epoch_and_on_from_there(self):
        finished = self.ok("--epochs", 2, "--max_steps", 30, *QUIET)
        self.assertDone(finished, 1, 30, checkpoint="checkpoints/checkpoint_step_30.pt")
        self.assertEqual(names(self.path("checkpoints")), sorted([*checkpoints([0], model=1), "checkpoint_step_30.pt"]))
        again = self.ok("--epochs", 2, "--max_steps", 30, "--resume", "auto")
        self.assertDone(again, 1, 30, kind="nothing to do")
        on = self.ok("--epochs", 2, "--resume", "auto", *QUIET)
        self.assertIn("resumed from checkpoints/checkpoint_step_30.pt: 1 epochs and a part of the next, 30 steps done", on.err)
        self.assertDone(on, 2)
        straight = self.ok("--epochs", 2, "--checkpointer.save_dir", "straight", *QUIET)
        self.assertDone(straight, 2)
        self.assertEqual(self.path("checkpoints/checkpoint_model_1.pt").read_bytes(), self.path("straight/checkpoint_model_1.pt").read_bytes())

    def test_fewer_steps_of_each_epoch(self):
        finished = self.ok("--epochs", 3, "--max_train_steps_per_epoch", 5, "--max_val_steps_per_epoch", 1, *QUIET)
        self.assertDone(finished, 3, 15)

    def test_counts_are_exact_for_every_batch_size(self):
        for size, steps in ((1437, 1), (1438, 1), (1436, 2), (719, 2), (5000, 1)):
            with self.subTest(size):
                finished = self.ok("--train_batch_size", size, "--checkpointer.checkpoint", "false", *QUIET)
                self.assertDone(finished, 1, steps)


class ConfigFileTest(CliTest):
    def test_the_printed_configuration_runs_the_same_job(self):
        data = self.copy(DATA, "it's #1; \"the\" data\\.csv")
        flags = ("--epochs", 3, "--checkpointer.period", 2, "--module.data", data, "--module.hidden=48", "--module.lr", 0.01, "--train_batch_size", 100, "--seed", 7, "--clip_grads", "false",
                 "--max_train_steps_per_epoch", 11, "--checkpointer.model_state_save_dir", "models", "--writers", "stdout,jsonl", "--writer.dir", "l")
        typed, from_file = self.path("typed"), self.path("from_file")
        typed.mkdir(), from_file.mkdir()
        printed = self.ok(*flags, "--print_config")
        self.assertEqual(names(self.dir), sorted(["typed", "from_file", data.name]), "--print_config must only print")
        config = self.put("run.ini", printed.out)
        self.assertEqual(self.ok("--config", config, "--print_config").out, printed.out)

        a = self.ok(*flags, *QUIET, cwd=typed)
        b = self.ok("--config", config, *QUIET, cwd=from_file)
        self.assertEqual(a.out, b.out)
        files = sorted(str(p.relative_to(typed)) for p in typed.rglob("*.*"))
        self.assertEqual(files, ["checkpoints/checkpoint_0.pt", "checkpoints/checkpoint_2.pt", "l/metrics.jsonl", "models/checkpoint_model_2.pt"])
        self.assertEqual(files, sorted(str(p.relative_to(from_file)) for p in from_file.rglob("*.*")))
        for file in ("models/checkpoint_model_2.pt", "l/metrics.jsonl"):
            self.assertEqual((typed / file).read_bytes(), (from_file / file).read_bytes(), file)
        for file in ("checkpoints/checkpoint_0.pt", "checkpoints/checkpoint_2.pt"):
            self.assertEqual(differing(typed / file, from_file / file), [])

    def test_every_flag_of_the_help_is_printed(self):
        # Those four say what one call is to do.
        flags = set(re.findall(r"(?m)^  --(\S+)", self.ok("--help").out)) - {"config", "print_config", "help", "version"}
        self.assertGreater(len(flags), 30)
        section, printed = "", set()
        for line in self.ok("--print_config").out.splitlines():
            if found := re.match(r"\[(.*)\]$", line):
                section = found[1] + "."
            elif found := re.match(r"(?:# )?([a-z_.]+) =", line):
                printed.add(section + found[1])
        self.assertEqual(printed, flags)

    def test_the_command_line_wins(self):
        config = self.put("run.ini", "epochs = 3\nseed = 1\n[checkpointer]\nperiod = 2\n")
        finished = self.ok("--config", config, "--epochs", 2, "--checkpointer.default.period", 1, *QUIET)
        self.assertDone(finished, 2)
        self.assertEqual(names(self.path("checkpoints")), checkpoints([0, 1], model=1))

    def test_comments_quotes_and_blank_lines(self):
        config = self.put("run.ini", "# a comment\n\n; another\nepochs=2 # after a value\n  [ checkpointer ]  # section\n save_dir = \"a # b\"\r\nfile_prefix = a#b\n")
        self.ok("--config", config, *QUIET)
        self.assertEqual(names(self.path("a # b")), ["a#b_0.pt", "a#b_1.pt", "a#b_model_1.pt"])

    def test_parts_are_named_in_the_file(self):
        config = self.put("run.ini", "writers = jsonl\nprogress = off\n[writer]\ndir = w\n")
        finished = self.ok("--config", config)
        self.assertEqual(names(self.path("w")), ["metrics.jsonl"])
        self.assertEqual(finished.out.count("\n"), 1)


class OutputTest(CliTest):
    NUMBER = r"\d+(\.\d+)?(e[+-]\d+)?"

    def test_the_last_line_is_for_scripts(self):
        finished = self.ok("--epochs", 5)
        self.assertRegex(finished.last, r"^done epochs=5 global_step=115 val/accuracy=0\.9\d{3} val/loss=0\.\d{4} checkpoint=checkpoints/checkpoint_4\.pt$")
        self.assertTrue(finished.out.endswith("\n"))

    def test_stdout_holds_metrics_and_stderr_the_rest(self):
        finished = self.ok("--epochs", 2)
        lines = finished.out.splitlines()
        self.assertEqual(len(lines), 5)
        for i, line in enumerate(lines[:-1]):
            what = rf"train/loss={self.NUMBER}" if i % 2 == 0 else rf"val/loss={self.NUMBER} val/accuracy={self.NUMBER}"
            self.assertRegex(line, rf"^epoch={i // 2} global_step={(i // 2 + 1) * STEPS} {what}$")
        self.assertIn("[info] saved", finished.err)

    def test_log_level(self):
        self.assertEqual(self.ok("--log_level", "OFF", *QUIET).err, "")
        self.assertEqual(self.ok("--log_level", "WARNING", "--resume", "auto", "--epochs", 2, *QUIET).err, "")

    def test_progress_in_plain_lines_when_there_is_no_terminal(self):
        for mode in ("auto", "plain"):
            with self.subTest(mode):
                err = self.ok("--epochs", 2, "--progress", mode, "--checkpointer.checkpoint", "false", "--log_level", "OFF").err.splitlines()
                self.assertEqual(len(err), 4)
                for i in (0, 2):
                    self.assertRegex(err[i], rf"^epoch {i // 2 + 1}/2  23/23  0:\d\d  \S+ steps/s  train/loss={self.NUMBER}$")
                    self.assertRegex(err[i + 1], rf"^validation  6/6  0:\d\d  \S+ steps/s  val/loss={self.NUMBER}  val/accuracy={self.NUMBER}$")

    def test_progress_off(self):
        finished = self.ok("--epochs", 2, *QUIET)
        self.assertEqual(len(finished.err.splitlines()), 3)
        self.assertNotIn("steps/s", finished.err)

    def on_a_terminal(self, *args, **env):
        """What digits writes to a terminal that is its stderr, and to stdout."""
        master, slave = pty.openpty()
        try:
            process = subprocess.Popen([str(DIGITS), *args], cwd=self.dir, env=environment(**env), stdout=subprocess.PIPE, stderr=slave, stdin=subprocess.DEVNULL)
        finally:
            os.close(slave)
        shown = b""
        try:
            while piece := os.read(master, 65536):
                shown += piece
        except OSError:  # how Linux says that the other side was closed
            pass
        os.close(master)
        out = process.communicate(timeout=60)[0].decode()
        self.assertEqual(process.returncode, 0)
        return shown.decode(), out

    def test_a_bar_on_a_terminal(self):
        shown, out = self.on_a_terminal("--epochs", "2", "--train_batch_size", "1", "--max_train_steps_per_epoch", "1437", TERM="xterm")
        self.assertRegex(shown, r"\repoch 1/2 \[ {24}\] 0%  0/1437\x1b\[K")
        self.assertRegex(shown, r"\repoch 2/2 \[=* *\] \d+%  \d+/1437  loss \S+  \S+ steps/s  \d:\d\d left\x1b\[K")
        self.assertRegex(shown, r"\r\x1b\[K(epoch 2/2)  1437/1437  \d:\d\d  \S+ steps/s  train/loss=\S+\r\n")
        self.assertRegex(shown, r"\r\x1b\[Kvalidation  360/360  ")
        self.assertRegex(shown, r"info\S* saved checkpoints/checkpoint_1.pt")
        for line in shown.split("\r\n"):
            if "saved" in line:
                self.assertRegex(line.rsplit("\x1b[K", 1)[-1], r"^\[\d\d:\d\d:\d\d\] ", "a log line must not stand behind a bar")
        self.assertNotRegex(out, "[\r\x1b]")
        self.assertEqual(len(out.splitlines()), 5)

    def test_no_bar_on_a_terminal_that_cannot_redraw_and_none_with_off(self):
        shown, _ = self.on_a_terminal("--checkpointer.checkpoint", "false", TERM="dumb")
        self.assertNotIn("\x1b", shown)
        self.assertIn("epoch 1/1  23/23", shown)
        shown, _ = self.on_a_terminal("--checkpointer.checkpoint", "false", "--progress", "off", TERM="xterm")
        self.assertEqual(shown, "")

    def test_a_bar_by_request(self):
        self.assertIn("\repoch 1/1 [", self.ok("--progress", "bar").err)

    def test_jsonl(self):
        self.ok("--epochs", 2, "--writers", "jsonl", "--writer.dir", "a/b", "--log_steps", 10, *QUIET)
        records = [json.loads(line) for line in self.path("a/b/metrics.jsonl").read_text().splitlines()]
        self.assertEqual([(r["kind"], r["epoch"], r["global_step"]) for r in records],
                         [("step", 0, 10), ("step", 0, 20), ("step", 0, 23), ("epoch", 0, 23), ("validation", 0, 23),
                          ("step", 1, 30), ("step", 1, 40), ("step", 1, 46), ("epoch", 1, 46), ("validation", 1, 46)])
        for record in records:
            metrics = {"train/loss"} if record["kind"] != "validation" else {"val/loss", "val/accuracy"}
            self.assertEqual(set(record), {"kind", "epoch", "global_step"} | metrics)
        # An epoch's loss is the mean over its samples: 10 and 10 batches of 64, and the rest, which has a short batch.
        for first in (0, 5):
            steps, epoch = records[first : first + 3], records[first + 3]
            sizes = (640, 640, 1437 - 1280) if first == 0 else (7 * 64, 640, 1437 - 7 * 64 - 640)
            mean = sum(r["train/loss"] * n for r, n in zip(steps, sizes)) / 1437
            self.assertAlmostEqual(mean, epoch["train/loss"], places=5)

    def test_jsonl_of_a_resumed_run_goes_on(self):
        for epochs in (1, 2):
            self.ok("--epochs", epochs, "--resume", "auto", "--writers", "jsonl", *QUIET)
        records = [json.loads(line) for line in self.path("logs/metrics.jsonl").read_text().splitlines()]
        self.assertEqual([r["epoch"] for r in records if r["kind"] == "validation"], [0, 1])

    def test_version(self):
        self.assertRegex(self.ok("--version").out, r"\Alibmarlin \d+\.\d+\.\d+ \(LibTorch 2\.\d+\.\d+\S*\)\n\Z")


if __name__ == "__main__":
    unittest.main()
