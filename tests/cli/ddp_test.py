"""Several processes that train together, over Gloo: the same run as that of one, whatever happens."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from cli_support import DIGITS, LONG, differing, environment, load, names, random_of_this_run, start_training
from ddp_support import QUIET, SHORT_LAST, DdpSupport, ranks_of, runs
from stop_support import HARD

TORCHRUN = Path(sys.executable).parent / "torchrun"


class DdpTest(DdpSupport):
    """How many ranks there are does not matter."""

    def test_any_number_of_ranks_makes_the_run_of_one(self):
        self.ok(*SHORT_LAST, *QUIET, cwd=self.put("1/x").parent)
        for ranks in (1, 2, 3, 4):
            with self.subTest(ranks=ranks):
                folder = self.put(f"ddp{ranks}/x").parent
                finished = self.ddp(ranks, *SHORT_LAST, "--backend.check_every", 1, "--backend.bucket_mb", 0.01, cwd=folder)
                self.assertDone(finished, 10, steps=50, checkpoint="checkpoints/checkpoint_9.pt")
                self.assertEqual(len(re.findall(r"(?m)^done ", finished.out)), 1, str(finished))
                self.assertEqual(names(folder / "checkpoints"), names(self.path("1/checkpoints")))
                self.assertClose(folder / "checkpoints/checkpoint_model_9.pt", self.path("1/checkpoints/checkpoint_model_9.pt"), 1e-5)

    def test_over_gloo_it_is_the_same_run_as_in_shared_memory(self):
        for shared in ("true", "false"):
            self.ddp(2, *SHORT_LAST, "--backend.shared_memory", shared, cwd=self.put(f"{shared}/x").parent)
        self.assertEqual(differing(self.path("true/checkpoints/checkpoint_9.pt"), self.path("false/checkpoints/checkpoint_9.pt")), [])  # of two numbers there is one sum

    def test_metrics_are_those_of_all_ranks(self):
        values = {}
        for ranks in (1, 3):
            finished = self.ddp(ranks, "--epochs", 2, cwd=self.put(f"{ranks}/x").parent)
            values[ranks] = {name: float(value) for name, value in re.findall(r"(\w+/\w+)=([\d.e-]+)", finished.last)}
        self.assertEqual(list(values[1]), list(values[3]))
        for name in values[1]:
            self.assertAlmostEqual(values[1][name], values[3][name], places=3)

    def test_micro_batches_make_no_difference(self):
        self.ddp(2, *SHORT_LAST, cwd=self.put("whole/x").parent)
        self.ddp(2, *SHORT_LAST, "--micro_batch_limit", 50, cwd=self.put("cut/x").parent)
        self.assertClose(self.path("cut/checkpoints/checkpoint_model_9.pt"), self.path("whole/checkpoints/checkpoint_model_9.pt"), 1e-5)

    def test_a_resumed_run_is_the_straight_run_bit_for_bit(self):
        straight, resumed = self.put("straight/x").parent, self.put("resumed/x").parent
        words = ("--nproc", 2, "--backend", "ddp", *HARD, "--checkpointer.period_steps", 7)
        self.ok(*words, cwd=straight)
        for start in ("checkpoint_step_28.pt", "checkpoint_0.pt"):
            with self.subTest(start=start):
                shutil.rmtree(resumed / "checkpoints", ignore_errors=True)
                self.copy(straight / "checkpoints" / start, resumed / "checkpoints" / start)
                self.ok(*words, "--resume", "auto", cwd=resumed)
                self.assertEqual(differing(straight / "checkpoints/checkpoint_2.pt", resumed / "checkpoints/checkpoint_2.pt"), [])

    def test_from_two_ranks_to_one_and_back_each_sample_comes_once_an_epoch(self):
        record = ("--epochs", 3, "--checkpointer.period_steps", 5, "--writers", "stdout,jsonl", "--log_steps", 1)
        self.ok("--max_steps", 25, "--nproc", 2, "--backend", "ddp", *record, *QUIET)
        finished = self.ok("--max_steps", 40, "--resume", "auto", *record, *QUIET)
        self.assertIn("world_size was 2, is 1", finished.err)
        state = load(self.path("checkpoints/checkpoint_step_40.pt"))["trainer_state"]
        self.assertEqual(state["loader"]["consumed_samples"], 17 * 64)
        finished = self.ok("--nproc", 2, "--backend", "ddp", "--resume", "auto", *record, *QUIET)
        self.assertDone(finished, 3)
        records = map(json.loads, self.path("logs/metrics.jsonl").read_text().splitlines())
        steps = [record["global_step"] for record in records if record["kind"] == "step"]
        self.assertEqual(steps, list(range(1, 70)))

    def test_mixed_precision_learns(self):
        for words in (("--backend", "sp-amp"), ("--nproc", 2, "--backend", "ddp-amp")):
            with self.subTest(words=words):
                finished = self.ok(*words, "--epochs", 12, *QUIET, cwd=self.put(f"{len(words)}/x").parent)
                self.assertGreater(float(re.search(r"val/accuracy=([\d.]+)", finished.last)[1]), 0.95)

    def test_a_grad_scalers_state_is_that_of_python(self):
        words = ("--backend", "sp-amp", "--backend.grad_scaler", "on", "--backend.init_scale", 1024, "--backend.growth_interval", 10, *QUIET)
        self.ok("--epochs", 1, *words)
        state = load(self.path("checkpoints/checkpoint_0.pt"))["trainer_backend_state"]
        python = torch.amp.GradScaler("cpu")
        python.load_state_dict(state["scaler"])
        self.assertEqual((python.get_scale(), python.state_dict()), (4096.0, state["scaler"]))  # it has grown after 10 and after 20 of 23 steps
        self.assertEqual(state["skipped_steps"], 0)
        self.ok("--epochs", 2, "--resume", "auto", *words)
        self.assertEqual(load(self.path("checkpoints/checkpoint_1.pt"))["trainer_backend_state"]["scaler"]["scale"], 16384.0)  # after 30 and 40 of 46

    def test_asynchronous_saves_and_a_shared_epoch_end(self):
        finished = self.ddp(2, "--epochs", 3, "--checkpointer.async", "true", "--checkpointer.period_steps", 2)
        self.assertDone(finished, 3)
        self.assertAllWhole(self.path("checkpoints"))


class DdpStopTest(DdpSupport):
    """One rank is asked to stop: all do, at the same step."""

    LONG_RUN = ("--nproc", 3, "--backend", "ddp", "--epochs", 1000, "--checkpointer.period", 1000)

    def assertStoppedAt(self, finished, code):
        """Stopped, with a whole checkpoint of the step that it says; the step. Before the first there is nothing to save."""
        self.assertNothingStrange(finished)
        self.assertEqual(finished.code, code, str(finished))
        last = re.fullmatch(r"stopped epochs=(\d+) global_step=(\d+)(?: .*checkpoint=(\S+))?", finished.last)
        self.assertIsNotNone(last, str(finished))
        step = int(last[2])
        if step == 0:
            self.assertEqual(names(self.path("checkpoints")), [], str(finished))
        else:
            self.assertIsNotNone(last[3], str(finished))
            self.assertEqual(load(self.path(last[3]))["trainer_backend_state"]["global_step_completed"], step)
        self.assertAllWhole(self.path("checkpoints"))
        return step

    def test_a_signal_to_any_rank_stops_all(self):
        for rank, number in ((0, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGINT)):
            with self.subTest(rank=rank, signal=number):
                shutil.rmtree(self.path("checkpoints"), ignore_errors=True)
                running = self.in_training(*self.LONG_RUN)
                os.kill(ranks_of(running.process)[rank], number)
                self.assertGreater(self.assertStoppedAt(running.finished(), 128 + number), 0)

    def test_a_signal_to_any_rank_stops_all_as_soon_as_the_record_has_begun(self):
        for rank in (0, 1, 2):
            with self.subTest(rank=rank):
                shutil.rmtree(self.path("checkpoints"), ignore_errors=True)
                running = start_training(self.dir, *self.LONG_RUN, *QUIET)
                self.addCleanup(running.end)
                os.kill(ranks_of(running.process)[rank], signal.SIGTERM)
                self.assertStoppedAt(running.finished(), 143)

    def test_a_signal_to_the_launcher_stops_all(self):
        running = self.in_training(*self.LONG_RUN)
        running.send(signal.SIGTERM)
        self.assertGreater(self.assertStoppedAt(running.finished(), 143), 0)

    def test_time_that_is_up_stops_all(self):
        for seconds in (8, 16, 32, 64):  # the start counts, and takes longer on a busy machine
            finished = self.run_digits(*self.LONG_RUN, "--max_seconds", seconds, *QUIET)
            if finished.code == 2:
                self.assertIn("before training could begin", finished.err)
            elif self.assertStoppedAt(finished, 5) > 0:
                return
        self.fail(str(finished))


class DdpFailureTest(DdpSupport):
    """A rank is lost: the others end, in time, with a line that says which and why, and nobody saves."""

    RUN = ("--nproc", 3, "--backend", "ddp", "--epochs", 1000, "--checkpointer.period", 1000)

    def setUp(self):
        super().setUp()
        self.random = random_of_this_run()

    def test_a_rank_killed_at_a_random_moment_ends_all(self):
        for attempt in range(20 if LONG else 5):
            victim = self.random.randrange(3)
            with self.subTest(attempt=attempt, victim=victim):
                shutil.rmtree(self.path("checkpoints"), ignore_errors=True)
                running = start_training(self.dir, *self.RUN, *QUIET)
                self.addCleanup(running.end)
                time.sleep(self.random.uniform(0, 0.5))
                os.kill(ranks_of(running.process)[victim], signal.SIGKILL)
                killed = time.monotonic()
                finished = running.finished()
                self.assertLess(time.monotonic() - killed, 12)
                self.assertEqual(finished.code, 128 + signal.SIGKILL, str(finished))
                self.assertRegex(finished.err, rf"rank {victim}\b", str(finished))
                saved = {name for name in names(self.path("checkpoints")) if not name.startswith(".")}  # a killed save leaves its temporary file
                self.assertLessEqual(saved, {"checkpoint_0.pt"}, str(finished))  # that of the first epoch's end
                self.assertAllWhole(self.path("checkpoints"))
                self.assertNotIn("Traceback", finished.err)

    def test_a_rank_that_hangs_is_given_up_after_the_limit(self):
        running = self.in_training(*self.RUN, "--backend.timeout_seconds", 8)
        pid = ranks_of(running.process)[1]
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        finished = running.finished()
        self.assertLess(time.monotonic() - stopped, 25, str(finished))
        self.assertNotEqual(finished.code, 0)
        self.assertRegex(finished.err, r"rank 1\b")

    def test_ranks_end_when_their_launcher_is_killed(self):
        running = self.in_training(*self.RUN)
        pids = ranks_of(running.process).values()
        running.process.kill()
        running.process.wait()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any(map(runs, pids)):
            time.sleep(0.05)
        self.assertFalse([pid for pid in pids if runs(pid)])


class DdpExitCodeTest(DdpSupport):
    """The program ends with the code of the rank that failed, not of those that only lost it."""

    def fails_once(self, code, *args, says):
        finished = self.run_digits("--nproc", 2, "--backend", "ddp", *args, *QUIET)
        self.assertEqual(finished.code, code, str(finished))
        own = [line for line in finished.err.splitlines() if line.startswith("error: ") and not re.match(r"error: rank \d ", line)]
        self.assertEqual(len(own), 1, str(finished))
        self.assertIn(says, own[0])
        self.assertNotRegex(finished.out, r"(?m)^(done|stopped|nothing to do) ")

    def test_a_checkpoint_that_is_not_there(self):
        self.fails_once(3, "--resume", "./nosuch.pt", says="nosuch.pt")

    def test_a_folder_of_another_run(self):
        self.ddp(2, "--epochs", 1)
        self.fails_once(2, says="holds checkpoints of an earlier run")

    def test_a_checkpoint_that_does_not_fit(self):
        self.ok("--epochs", 1, "--module.hidden", 64, *QUIET)
        finished = self.run_digits("--nproc", 2, "--backend", "ddp", "--epochs", 2, "--resume", "auto", *QUIET)
        self.assertEqual(finished.code, 3, str(finished))
        self.assertIn("net.0.weight", finished.err)

    def test_nothing_to_do(self):
        self.ddp(2, "--epochs", 1)
        finished = self.ddp(2, "--epochs", 1, "--resume", "auto")
        self.assertDone(finished, 1, kind="nothing to do")

    def test_validation_only(self):
        self.ddp(2, "--epochs", 2)
        alone = self.ok("--validate_only", "--resume", "auto", *QUIET)
        together = self.ddp(2, "--validate_only", "--resume", "auto")
        self.assertEqual(re.sub(r"loss=\S+", "", alone.last), re.sub(r"loss=\S+", "", together.last))

    def test_a_save_that_fails_at_the_end_is_told_by_the_code(self):
        running = self.in_training("--nproc", 2, "--backend", "ddp", "--epochs", 100000, "--checkpointer.period", 100000)
        self.path("checkpoints").rename(self.path("elsewhere"))
        self.put("checkpoints", "in the way")
        running.send(signal.SIGTERM)
        self.assertEqual(running.finished().code, 4)


class TorchrunTest(DdpSupport):
    """torchrun starts the ranks, and starts them anew when one is lost."""

    RUN = ("--epochs", 24, "--checkpointer.period_steps", 20, "--checkpointer.keep_last", 3, "--module.dropout", 0.3, "--module.hidden", 256, *QUIET)

    def torchrun(self, folder, *args):
        folder.mkdir(parents=True, exist_ok=True)
        words = [TORCHRUN, "--standalone", "--no-python", "--nproc-per-node", "2", *map(str, args)]
        self.log = open(folder / "log", "w+")
        self.addCleanup(self.log.close)
        process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        self.addCleanup(lambda: process.poll() is None and (process.kill(), process.wait()))
        return process

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def test_a_job_that_lost_ranks_ends_by_itself_as_if_it_had_not(self):
        self.ddp(2, *self.RUN[:-2], cwd=self.put("straight/x").parent)
        folder = self.path("restarted")
        job = self.torchrun(folder, "--max-restarts", 3, DIGITS, "--backend", "ddp", *self.RUN, "--resume", "auto")
        random, killed = random_of_this_run(), set()
        deadline = time.monotonic() + 240
        while job.poll() is None and time.monotonic() < deadline:
            pids = ranks_of(job)
            if len(killed) < 3 and len(pids) == 2 and not killed & set(pids.values()) and len(names(folder / "checkpoints")) > len(killed):
                time.sleep(random.uniform(0, 0.3))
                if runs(victim := pids[random.randrange(2)]):  # else the job has just ended
                    os.kill(victim, signal.SIGKILL)
                    killed |= set(pids.values())
            time.sleep(0.05)
        said = self.said()
        self.assertEqual(job.wait(30), 0, said)
        self.assertIn("resumed from checkpoints/", said)
        print(f"{said.count('resumed from checkpoints/')} restarts from a checkpoint")
        self.assertEqual(len(re.findall(r"(?m)^done ", said)), 1, said)
        self.assertEqual(differing(self.path("straight/checkpoints/checkpoint_23.pt"), folder / "checkpoints/checkpoint_23.pt"), [])


class DdpBadInputTest(DdpSupport):
    def test_a_backend_of_one_process_is_not_started_several_times(self):
        self.refused(2, "--nproc", 2, says=("--backend sp runs one process", "--nproc 2", "give --backend ddp"))
        self.refused(2, "--nproc", 2, "--backend", "sp-amp", says="give --backend ddp-amp")
        self.refused(2, "--nproc", 0, says="--nproc: must be at least 1")

    def test_one_of_several_processes(self):
        several = dict(RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
        self.refused(2, says=("--backend sp runs one process", "one of 2 that torchrun has started", "give --backend ddp"), env=environment(WORLD_SIZE="2", **several))
        self.ok("--epochs", 0, env=environment(WORLD_SIZE="1", **several))

    def test_flags_are_checked_before_anything_is_started(self):
        self.refused(2, "--nproc", 2, "--backend", "ddp", "--epochs", "x", says="--epochs: must be a whole number")
        self.refused(2, "--nproc", 2, "--backend", "ddp", "--backend.bucket_mb", 0, says="--backend.bucket_mb")

    def test_variables_that_are_half_set(self):
        self.refused(2, says=("RANK=1 is set, but WORLD_SIZE is not",), env=environment(RANK="1"))
        self.refused(2, says=("MASTER_ADDR is not",), env=environment(RANK="0", WORLD_SIZE="2"))

    def test_a_rank_that_nobody_joins_says_who_is_missing(self):
        variables = environment(RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20000 + os.getpid() % 5000))
        self.refused(2, "--backend", "ddp", "--backend.timeout_seconds", 2, says=("rank 1",), env=variables)

    def test_a_launcher_within_a_launcher(self):
        variables = environment(RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
        self.refused(2, "--nproc", 2, "--backend", "ddp", says=("--nproc 2", "torchrun", "leave --nproc out"), env=variables)
