"""--checkpointer safetensors: the plugin that comes with libmarlin, found by its name, through the real program."""

import json
import re
import signal
import subprocess
import time
import unittest

from cli_support import DIGITS, STEPS, CliTest, FolderEvents, bits, checkpoints, differing, environment, load, names

QUIET = ("--progress", "off")
USE = ("--checkpointer", "safetensors", *QUIET)
MODEL = ["net.0.bias", "net.0.weight", "net.3.bias", "net.3.weight"]


def pairs(epochs, model=None):
    """The sorted names of checkpoints of these epochs, none of which was written twice, and of one model file."""
    return sorted([f"checkpoint_{e}.{ending}" for e in epochs for ending in ("json", "safetensors")] + ([] if model is None else [f"checkpoint_model_{model}.safetensors"]))


def load_pair(file):
    """A whole checkpoint as Python sees it: the program in checkpointers/SAFETENSORS.md."""
    from safetensors.torch import load_file

    record = json.loads(file.read_text())
    tensors = load_file(file.parent / next(iter(record["records"])))

    def value(node):
        if isinstance(node, list):
            return [value(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "dict" in node:
            return {key: value(item) for key, item in node["dict"]}
        if "tuple" in node:
            return tuple(value(item) for item in node["tuple"])
        return float(node["float"]) if "float" in node else tensors[node["tensor"]]

    return value(record["state"])


class SafetensorsRunTest(CliTest):
    def test_three_epochs_are_three_pairs_and_a_model(self):
        finished = self.ok("--epochs", 3, *USE)
        self.assertDone(finished, 3, checkpoint="checkpoints/checkpoint_2.json")
        self.assertEqual(names(self.path("checkpoints")), pairs(range(3), model=2))

    def test_python_opens_what_it_wrote_and_it_is_what_the_built_in_checkpointer_wrote(self):
        import torch
        from safetensors import safe_open
        from safetensors.torch import load_file

        self.ok("--epochs", 2, "--checkpointer", "default,safetensors", *QUIET)
        folder = self.path("checkpoints")
        self.assertEqual(names(folder), sorted(checkpoints(range(2), model=1) + pairs(range(2), model=1)))
        for epoch in range(2):
            torch.save(load_pair(folder / f"checkpoint_{epoch}.json"), self.path("python.pt"))
            self.assertEqual(differing(self.path("python.pt"), folder / f"checkpoint_{epoch}.pt"), [], "both are of one snapshot")
        tensors, model = load_file(folder / "checkpoint_model_1.safetensors"), load(folder / "checkpoint_model_1.pt")
        self.assertEqual(sorted(tensors), MODEL)
        for name in MODEL:
            self.assertEqual(bits(tensors[name]), bits(model[name]))
        with safe_open(folder / "checkpoint_1.safetensors", framework="pt") as opened:
            self.assertEqual(opened.metadata()["global_step"], str(2 * STEPS))
            self.assertTrue({"module_interface_state." + name for name in MODEL} <= set(opened.keys()))

    def test_a_resumed_run_ends_as_one_that_was_never_stopped(self):
        self.ok("--epochs", 4, *USE, "--checkpointer.save_dir", "straight")
        self.ok("--epochs", 2, *USE)
        finished = self.ok("--epochs", 4, *USE, "--resume", "auto")
        self.assertIn(f"resumed from checkpoints/checkpoint_1.json: 2 epochs, {2 * STEPS} steps done", finished.err)
        self.assertDone(finished, 4)
        self.assertEqual(names(self.path("checkpoints")), pairs(range(4), model=1) + ["checkpoint_model_3.safetensors"])
        model = "checkpoint_model_3.safetensors"
        self.assertEqual(self.path("checkpoints", model).read_bytes(), self.path("straight", model).read_bytes())

    def test_a_fresh_start_over_its_files_is_refused(self):
        self.ok("--epochs", 1, *USE)
        self.refused(2, "--epochs", 1, *USE, says=("holds checkpoints of an earlier run (checkpoint_0.json", "--resume auto"))
        self.ok("--epochs", 2, *USE, "--checkpointer.delete_existing_checkpoints")
        self.assertEqual(names(self.path("checkpoints")), pairs(range(2), model=1))

    def test_keep_last(self):
        self.ok("--epochs", 4, "--checkpointer", "default,safetensors", "--checkpointer.safetensors.keep_last", 2, *QUIET)
        self.assertEqual(names(self.path("checkpoints")), sorted(checkpoints(range(4), model=3) + pairs([2, 3], model=3)))

    def test_steps_have_pairs_of_their_own(self):
        self.ok("--epochs", 1, *USE, "--checkpointer.period_steps", 10)
        found = [name for name in names(self.path("checkpoints")) if "_step_" in name]
        self.assertEqual(found, [f"checkpoint_step_{step}.{ending}" for step in (10, 20) for ending in ("json", "safetensors")])

    def test_a_broken_newest_checkpoint_is_named_and_the_one_before_taken(self):
        self.ok("--epochs", 2, *USE)
        file = self.path("checkpoints", "checkpoint_1.safetensors")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        self.fails(3, "--epochs", 3, *USE, "--resume", file, says=("checkpoint_1.safetensors: tensor '", "do not match their hash"))
        finished = self.ok("--epochs", 3, *USE, "--resume", "auto")
        self.assertIn("a newer checkpoint is broken and was passed over: checkpoints/checkpoint_1.safetensors: ", finished.err)
        self.assertIn("resumed from checkpoints/checkpoint_0.json", finished.err)
        self.assertEqual(len(names(self.path("checkpoints"))), 3 * 2 + 2)

    def test_its_options_stand_in_the_help(self):
        shown = self.ok("--help", *USE).out
        for flag in ("save_dir text", "model_state_save_dir text", "load_dir text", "load_filename text", "file_prefix text", "keep_last int", "delete_existing_checkpoints bool", "log_level text", "period int"):
            self.assertIn("--checkpointer." + flag, shown)
        self.assertNotIn("--checkpointer.file_ext", shown)
        self.refused(2, *USE, "--checkpointer.keep_last", 1, says="checkpointer.keep_last: 1 is refused")


class SafetensorsKillTest(CliTest):
    """Killed as soon as a checkpoint, or the tensors of one, have their name; then resumed."""

    def killed_run(self, folder, awaited):
        for attempt in range(20):
            target = self.path(f"{folder}_{attempt}")
            target.mkdir()
            events = FolderEvents(target)
            words = [str(DIGITS), "--epochs", "12", *USE, "--checkpointer.save_dir", str(target)]
            process = subprocess.Popen(words, cwd=self.dir, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if (events.MOVED_TO, awaited) in events.wait(1):
                    break
            process.send_signal(signal.SIGKILL)
            landed = process.wait(60) == -signal.SIGKILL
            events.close()
            if landed and not (target / "checkpoint_11.json").exists():
                return target
        self.fail("no kill came before the end in 20 attempts")

    def test_the_run_ends_as_if_it_had_not_been_killed(self):
        self.ok("--epochs", 12, *USE, "--checkpointer.save_dir", "straight")
        for awaited, least in (("checkpoint_5.json", 5), ("checkpoint_5.safetensors", 4)):
            with self.subTest(awaited):
                folder = self.killed_run(awaited.replace(".", "_"), awaited)
                left = max(int(found[1]) for name in names(folder) if (found := re.fullmatch(r"checkpoint_(\d+)\.json", name)))
                self.assertGreaterEqual(left, least)
                for epoch in range(left + 1):
                    self.assertEqual(load_pair(folder / f"checkpoint_{epoch}.json")["trainer_state"]["last_epoch"], epoch)
                finished = self.ok("--epochs", 12, *USE, "--resume", "auto", "--checkpointer.save_dir", folder)
                self.assertIn(f"resumed from {folder}/checkpoint_{left}.json: {left + 1} epochs", finished.err)
                self.assertNotIn("warning", finished.err)
                self.assertDone(finished, 12)
                self.assertEqual(names(folder), pairs(range(12), model=11), "nothing that the killed save left")
                model = "checkpoint_model_11.safetensors"
                self.assertEqual((folder / model).read_bytes(), self.path("straight", model).read_bytes())


if __name__ == "__main__":
    unittest.main()
