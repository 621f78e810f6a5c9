"""kill -9 at the worst moments: what is on disk is whole, and the run goes on as if nothing had been.

MARLIN_TEST_LONG=1 repeats more often. The random moments come from a seed that is printed; MARLIN_TEST_SEED sets it.
"""

import os
import re
import signal
import subprocess
import time
import unittest

from cli_support import DIGITS, LONG, STEPS, CliTest, FolderEvents, checkpoints, differing, environment, names, random_of_this_run

QUIET = ("--progress", "off")


class Killing(CliTest):
    def start(self, *args):
        return subprocess.Popen([str(DIGITS), *map(str, args), *QUIET], cwd=self.dir, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def kill(self, process):
        """True if it was still running."""
        process.send_signal(signal.SIGKILL)
        return process.wait(60) == -signal.SIGKILL

    def newest(self, folder):
        return max((int(found[1]) for name in names(folder) if (found := re.fullmatch(r"checkpoint_(\d+)\.pt", name))), default=None)


class KillAtTheTenthCheckpointTest(Killing):
    """The job that users know: 20 epochs, killed as soon as checkpoint_9.pt exists, started again with --resume auto."""

    def killed_run(self, folder):
        for attempt in range(20):
            target = self.path(f"{folder}_{attempt}")
            target.mkdir()
            events = FolderEvents(target)
            process = self.start("--epochs", 20, "--checkpointer.save_dir", target)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if (events.MOVED_TO, "checkpoint_9.pt") in events.wait(1):
                    break
            landed = self.kill(process)
            events.close()
            if landed and not (target / "checkpoint_19.pt").exists():
                return target
        self.fail("no kill came before the end in 20 attempts")

    def test_the_run_ends_as_if_it_had_not_been_killed(self):
        self.ok("--epochs", 20, "--checkpointer.save_dir", "straight", *QUIET)
        straight = self.path("straight")
        accuracy = None
        for repetition in range(20 if LONG else 3):
            folder = self.killed_run(f"run_{repetition}")
            left = self.newest(folder)
            self.assertGreaterEqual(left, 9)
            self.assertAllWhole(folder)
            finished = self.ok("--epochs", 20, "--resume", "auto", "--checkpointer.save_dir", folder, *QUIET)
            self.assertIn(f"resumed from {folder}/checkpoint_{left}.pt: {left + 1} epochs", finished.err)
            self.assertDone(finished, 20, 20 * STEPS)
            accuracy = float(re.search(r"val/accuracy=(\S+)", finished.last)[1])
            self.assertGreater(accuracy, 0.95)
            self.assertEqual(names(folder), checkpoints(range(20), model=19), "20 checkpoints, one model file, and no temporary file")
            self.assertAllWhole(folder)
            self.assertEqual((folder / "checkpoint_model_19.pt").read_bytes(), (straight / "checkpoint_model_19.pt").read_bytes())
            self.assertEqual(differing(folder / "checkpoint_19.pt", straight / "checkpoint_19.pt"), [])


class FolderTakenAwayTest(Killing):
    """While it trains, its folder is moved away, and a file stands where it was."""

    def test_training_goes_on_the_end_says_so_and_what_was_saved_stays_whole(self):
        for attempt in range(20):
            folder, taken = self.path(f"checkpoints_{attempt}"), self.path(f"taken_{attempt}")
            folder.mkdir()
            events = FolderEvents(folder)
            words = [str(DIGITS), "--epochs", "60", "--checkpointer.save_dir", str(folder), *QUIET]
            process = subprocess.Popen(words, cwd=self.dir, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
            while process.poll() is None and (events.MOVED_TO, "checkpoint_2.pt") not in events.wait(1):
                pass
            os.rename(folder, taken)
            folder.write_text("a file where the folder was")
            out, err = process.communicate(timeout=120)
            events.close()
            if (taken / "checkpoint_59.pt").exists():
                continue  # it was too late
            self.assertEqual(process.returncode, 4, err.decode())
            self.assertRegex(err.decode(), r"\[error\] checkpointer 'default' could not save the epoch \d+, step \d+: [^\n]*" + re.escape(str(folder)))
            self.assertRegex(out.decode().splitlines()[-1], rf"^done epochs=60 global_step={60 * STEPS} ")
            self.assertAllWhole(taken)
            self.assertGreaterEqual(self.newest(taken), 2)
            return
        self.fail("the folder was not taken away before the end in 20 attempts")


class KillAtRandomMomentsTest(Killing):
    """Kills spread over start-up and training, and aimed at the moments in which a file is being written."""

    STEPS = 2
    WIDE = ("--module.hidden", 4096, "--max_train_steps_per_epoch", STEPS, "--max_val_steps_per_epoch", 1)  # so that it saves most of the time

    def setUp(self):
        super().setUp()
        self.random = random_of_this_run()
        self.kills = 200 if LONG else 20

    def kill_at_random(self, folder):
        """Starts or resumes a run that would go on for long and kills it; whether a temporary file was left."""
        events = FolderEvents(folder)
        process = self.start("--epochs", 100000, "--resume", "auto", "--checkpointer.save_dir", folder, *self.WIDE)
        if self.random.random() < 0.6:
            saves = self.random.randrange(1, 5)
            deadline = time.monotonic() + 60
            while saves > 0 and process.poll() is None and time.monotonic() < deadline:
                saves -= sum(event == events.CREATE and name.startswith(".checkpoint_") for event, name in events.wait(1))
            time.sleep(self.random.uniform(0, 0.004))
        else:
            time.sleep(self.random.uniform(0, 0.8))
        self.assertTrue(self.kill(process), "the run ended by itself")
        events.close()
        return any(name.endswith(".tmp") for name in names(folder))

    def restart(self, folder):
        """Resumes as a user would, to one epoch more, and judges what that run made of what the killed one left."""
        before = self.newest(folder)
        self.assertAllWhole(folder)
        epochs = 1 if before is None else before + 2
        finished = self.ok("--epochs", epochs, "--resume", "auto", "--checkpointer.save_dir", folder, *self.WIDE, *QUIET)
        self.assertDone(finished, epochs, epochs * self.STEPS)
        if before is None:
            self.assertNotIn("resumed", finished.err)
        else:
            self.assertIn(f"resumed from {folder}/checkpoint_{before}.pt: {before + 1} epochs, {(before + 1) * self.STEPS} steps done", finished.err)
        self.assertNotIn("warning", finished.err, "a kill must not leave a file that is not whole")
        self.assertEqual([name for name in names(folder) if name.startswith(".")], [])
        self.assertEqual(self.newest(folder), epochs - 1)
        for name in names(folder):  # room for the next
            if name not in (f"checkpoint_{epochs - 1}.pt", f"checkpoint_model_{epochs - 1}.pt"):
                (folder / name).unlink()
        return epochs

    def test_every_restart_goes_on_or_starts_afresh(self):
        long_run = self.path("long")
        long_run.mkdir()
        epochs, in_a_save, fresh = 0, 0, 0
        kill = 0
        while kill < self.kills or (in_a_save < self.kills // 10 and kill < 5 * self.kills):
            folder = long_run
            if kill % 4 == 3:  # a folder of its own, so that the first save is hit, too
                folder = self.path(f"fresh_{kill}")
                folder.mkdir()
            in_a_save += self.kill_at_random(folder)
            fresh += self.newest(folder) is None
            done = self.restart(folder)
            epochs = done if folder is long_run else epochs
            kill += 1
        print(f"{kill} kills, {in_a_save} of them within a save, {fresh} before the first; {epochs} epochs in the long run", flush=True)
        self.assertGreaterEqual(in_a_save, self.kills // 10, "too few kills hit a save to say much")
        self.ok("--epochs", epochs, "--checkpointer.save_dir", "straight", "--checkpointer.period", 1000000, *self.WIDE, *QUIET)
        model = f"checkpoint_model_{epochs - 1}.pt"
        self.assertEqual((long_run / model).read_bytes(), self.path("straight", model).read_bytes(), "after all kills the parameters are those of a run without any")


if __name__ == "__main__":
    unittest.main()
