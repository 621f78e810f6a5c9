"""marlin-ckpt ls"""

import re
import subprocess
import unittest

from ckpt_support import CkptTest
from cli_support import DIGITS, STEPS, environment


class LsTest(CkptTest):
    def listed(self, *args):
        return [entry["file"] for entry in self.json("ls", *args)["files"]]

    def train_into(self, folder, *args):
        words = [DIGITS, "--progress", "off", "--checkpointer.save_dir", folder, *map(str, args)]
        subprocess.run(words, cwd=self.dir, env=environment(), capture_output=True, timeout=120, check=True)

    def test_says_of_each_what_its_state_and_its_record_say(self):
        by_name = {entry["file"]: entry for entry in self.json("ls", self.base)["files"]}
        self.assertEqual(sorted(by_name), ["checkpoint_0.pt", "checkpoint_1.pt", "checkpoint_2.pt", "checkpoint_model_2.pt"])
        for epoch in range(3):
            entry = by_name[f"checkpoint_{epoch}.pt"]
            state = self.load(self.base / entry["file"])
            self.assertEqual((entry["kind"], entry["form"], entry["index"], entry["opens"]), ("full", "epoch", epoch, True))
            self.assertEqual((entry["epoch"], entry["global_step"]), (epoch, (epoch + 1) * STEPS))
            self.assertEqual((state["trainer_state"]["last_epoch"], state["trainer_backend_state"]["global_step_completed"]), (epoch, (epoch + 1) * STEPS))
            self.assertEqual(entry["run_id"], state["trainer_state"]["run_id"])
            self.assertEqual(entry["bytes"], (self.base / entry["file"]).stat().st_size)
            self.assertIn("val/accuracy", entry["metrics"])
        self.assertEqual(by_name["checkpoint_0.pt"]["cause"], "period")
        model = by_name["checkpoint_model_2.pt"]
        self.assertEqual((model["kind"], model["form"], model["epoch"], model["global_step"]), ("model", "model", 2, None))
        accuracy = re.search(r"val/accuracy=(\S+)", self.base_run.last)[1]
        self.assertEqual(f"{by_name['checkpoint_2.pt']['metrics']['val/accuracy']:.4f}", accuracy)

    def test_newest_first_also_among_epochs_steps_and_models(self):
        self.take_base(to="runs")
        # Stopped within the second epoch, and within the fourth.
        self.train_into("one", "--epochs", 9, "--max_steps", STEPS + 7)
        self.copy(self.path(f"one/checkpoint_step_{STEPS + 7}.pt"), f"runs/checkpoint_step_{STEPS + 7}.pt")
        self.train_into("two", "--epochs", 9, "--max_steps", 3 * STEPS + 1)
        self.copy(self.path(f"two/checkpoint_step_{3 * STEPS + 1}.pt"), f"runs/checkpoint_step_{3 * STEPS + 1}.pt")
        self.copy(self.base / "checkpoint_1.pt", "runs/checkpoint_suspect_46.pt")
        expected = ["checkpoint_step_70.pt", "checkpoint_2.pt", "checkpoint_model_2.pt", "checkpoint_1.pt", "checkpoint_suspect_46.pt", "checkpoint_step_30.pt", "checkpoint_0.pt"]
        self.assertEqual(self.listed("runs"), expected)
        by_name = {entry["file"]: entry for entry in self.json("ls", "runs")["files"]}
        step = by_name["checkpoint_step_30.pt"]
        self.assertEqual((step["form"], step["index"], step["epoch"], step["global_step"]), ("step", 30, 1, 30))
        self.assertEqual(by_name["checkpoint_suspect_46.pt"]["form"], "suspect")
        # By number, not by text or time.
        for epoch in (9, 10, 100):
            self.copy(self.base / "checkpoint_model_2.pt", f"models/checkpoint_model_{epoch}.pt")
        self.assertEqual(self.listed("models"), ["checkpoint_model_100.pt", "checkpoint_model_10.pt", "checkpoint_model_9.pt"])

    def test_a_broken_file_is_listed_as_broken_and_ends_nothing(self):
        self.take_base(to="runs")
        self.cut(self.path("runs/checkpoint_1.pt"), 5000)
        self.put("runs/checkpoint_7.pt", "hello\n")
        self.put("runs/checkpoint_step_24.pt", b"")
        self.flip(self.path("runs/checkpoint_0.pt"), self.place_of(self.path("runs/checkpoint_0.pt"), "data.pkl")[0] + 100)
        document = self.json("ls", "runs")
        self.assertEqual([e["file"] for e in document["files"]],
                         ["checkpoint_7.pt", "checkpoint_2.pt", "checkpoint_model_2.pt", "checkpoint_1.pt", "checkpoint_0.pt", "checkpoint_step_24.pt"])
        problems = {e["file"]: e["problem"] for e in document["files"] if not e["opens"]}
        self.assertEqual(sorted(problems), ["checkpoint_0.pt", "checkpoint_1.pt", "checkpoint_7.pt", "checkpoint_step_24.pt"])
        self.assertIn("truncated", problems["checkpoint_1.pt"])
        self.assertIn("not a checkpoint", problems["checkpoint_7.pt"])
        self.assertIn("data.pkl", problems["checkpoint_0.pt"])
        text = self.ckpt("ls", "runs")
        self.assertRegex(text, r"(?m)^checkpoint_1\.pt +broken +- +- +4\.9 KiB .*truncated")
        self.assertRegex(text, r"(?m)^checkpoint_2\.pt +full +2 +69 ")

    def test_tensors_are_not_read(self):
        self.take_base("checkpoint_2.pt")
        file = self.path("checkpoints/checkpoint_2.pt")
        self.flip(file, self.place_of(file, "data/0")[0])
        self.assertTrue(self.json("ls", "checkpoints")["files"][0]["opens"])
        self.assertIn("broken", self.ckpt("verify", "checkpoints", code=1))

    def test_files_that_python_wrote(self):
        import torch

        self.save(torch.nn.Linear(2, 3).state_dict(), "py/model_5.pt")
        self.save({"epoch": 3, "weights": {"a": torch.ones(2)}}, "py/other_1.pt")
        self.save(self.load(self.base / "checkpoint_1.pt"), "py/again_1.pt")
        by_name = {entry["file"]: entry for entry in self.json("ls", "py")["files"]}
        self.assertEqual({name: (e["kind"], e["epoch"], e["global_step"], e["run_id"], e["metrics"]) for name, e in by_name.items()},
                         {"model_5.pt": ("model", None, None, None, {}), "other_1.pt": ("other", None, None, None, {}), "again_1.pt": ("full", 1, 2 * STEPS, None, {})})

    def test_any_prefix_and_only_names_of_checkpoints(self):
        for name in ("checkpoint_1.pt", "model_2.pt", "a_b_model_3.pt", "a_b_step_4.pt", "run_7_5.pt"):
            self.copy(self.base / "checkpoint_0.pt", f"runs/{name}")
        for name in ("checkpoint_01.pt", "checkpoint_-1.pt", "checkpoint_x.pt", "checkpoint.pt", "9.pt", "_9.pt", "_step_9.pt", "checkpoint_9.pth", "checkpoint_9.pt.tmp",
                     ".checkpoint_9.pt.host.1.2.tmp", ".hidden_9.pt", "checkpoint_99999999999999999999.pt", "notes.txt"):
            self.put(f"runs/{name}", "not ours")
        self.path("runs/checkpoint_9.pt").mkdir()
        self.path("runs/checkpoint_8.pt").symlink_to("nowhere")
        self.assertEqual(sorted(self.listed("runs")), ["a_b_model_3.pt", "a_b_step_4.pt", "checkpoint_1.pt", "model_2.pt", "run_7_5.pt"])
        forms = {e["file"]: (e["form"], e["index"]) for e in self.json("ls", "runs")["files"]}
        self.assertEqual((forms["model_2.pt"], forms["a_b_model_3.pt"], forms["a_b_step_4.pt"], forms["run_7_5.pt"]), (("epoch", 2), ("model", 3), ("step", 4), ("epoch", 5)))
        self.assertEqual(self.listed("runs", "--prefix", "a_b"), ["a_b_step_4.pt", "a_b_model_3.pt"])
        self.assertEqual(self.listed("runs", "--prefix", "a"), [])
        self.assertEqual(self.listed("runs", "--ext", "pth"), ["checkpoint_9.pth"])
        self.refused(2, "ls", "runs", "--prefix", "x_model", says="--prefix: 'x_model' must not end in '_model'")
        self.refused(2, "ls", "runs", "--ext", ".pt", says="--ext: '.pt' is given without the dot")

    def test_an_empty_folder_has_none(self):
        self.path("empty").mkdir()
        self.assertEqual(self.ckpt("ls", "empty"), "empty: no checkpoints (files like checkpoint_0.pt)\n")
        self.assertEqual(self.json("ls", "empty"), {"dir": "empty", "files": []})

    def test_columns_are_aligned(self):
        lines = self.ckpt("ls", self.base).splitlines()
        self.assertEqual(lines[0].split(), ["file", "kind", "epoch", "step", "size", "cause", "run", "metrics"])
        self.assertEqual(len(lines), 5)
        for heading in ("kind", "cause", "run"):
            begin = lines[0].index(f" {heading}") + 1
            self.assertEqual([line[begin - 1] == " " != line[begin] for line in lines[1:]], [True] * 4, heading)
        for heading in ("epoch", "step", "size"):
            end = lines[0].index(f" {heading}") + 1 + len(heading)
            self.assertEqual([line[end - 1] != " " == line[end] for line in lines[1:]], [True] * 4, heading)


if __name__ == "__main__":
    unittest.main()
