"""marlin-ckpt verify"""

import os
import random
import subprocess
import unittest
import warnings
import zipfile

from ckpt_support import CKPT, CkptTest
from cli_support import LONG, environment


class VerifyTest(CkptTest):
    def test_whole_files_are_ok(self):
        for name in ("checkpoint_2.pt", "checkpoint_model_2.pt"):
            file = self.base / name
            records = len(zipfile.ZipFile(file).namelist())
            self.assertEqual(self.ckpt("verify", file), f"{file}  ok  {records} records match their hashes (XXH3-128)\n")
            document = self.json("verify", file)
            self.assertTrue(document["whole"])
            self.assertEqual([(f["file"], f["status"], f["hashes"]) for f in document["files"]], [(str(file), "ok", True)])

    def test_every_changed_bit_that_carries_meaning_is_found(self):
        # Not covered by any checksum are only times and the like in the ZIP headers, which nobody reads.
        whole = (self.base / "checkpoint_2.pt").read_bytes()
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        chooser, missed = random.Random(seed), []
        places = [chooser.randrange(len(whole)) for _ in range(400 if LONG else 40)]
        data, size = self.place_of(self.base / "checkpoint_2.pt", "data/0")
        places += [data, data + size - 1]
        for place in places:
            file = self.put("flipped.pt", whole)
            self.flip(file, place, chooser.randrange(8))
            finished = self.run_ckpt("verify", file)
            if finished.code == 0:
                missed.append(place)
                self.assertIn("equal", self.ckpt("diff", file, self.base / "checkpoint_2.pt"))
            else:
                self.assertEqual(finished.code, 1, f"seed {seed}, place {place}: {finished}")
                self.assertRegex(finished.out, r"\A\S+flipped\.pt  (broken|unsupported)  \S[^\n]+\n\Z")
        self.assertLess(len(missed), len(places) / 5, f"seed {seed}: {missed}")

    def test_a_changed_tensor_is_named(self):
        file = self.copy(self.base / "checkpoint_2.pt", "flipped.pt")
        self.flip(file, self.place_of(file, "data/2")[0] + 3)
        self.assertEqual(self.ckpt("verify", "flipped.pt", code=1), "flipped.pt  broken  data/2: its bytes do not match their hash (XXH3)\n")
        document = self.json("verify", "flipped.pt", code=1)
        self.assertEqual((document["whole"], document["files"][0]["status"], document["files"][0]["problem"]),
                         (False, "broken", "data/2: its bytes do not match their hash (XXH3)"))

    def test_every_cut_is_found(self):
        whole = (self.base / "checkpoint_2.pt").read_bytes()
        for size in (0, 1, 30, 64, 5000, len(whole) // 2, len(whole) - 22, len(whole) - 1):
            with self.subTest(size=size, of=len(whole)):
                self.put("cut.pt", whole[:size])
                self.assertRegex(self.ckpt("verify", "cut.pt", code=1), r"\Acut\.pt  broken  [^\n]+\n\Z")

    def test_a_file_without_record_is_a_note(self):
        state = self.load(self.base / "checkpoint_2.pt")
        file = self.save(state)
        self.assertEqual(self.ckpt("verify", "python.pt"), "python.pt  ok  no record: only checksums (CRC-32) could be compared\n")
        document = self.json("verify", "python.pt")
        self.assertEqual((document["whole"], document["files"][0]["hashes"]), (True, False))
        self.flip(file, self.place_of(file, "data/0")[0])
        self.assertRegex(self.ckpt("verify", "python.pt", code=1), r"\Apython\.pt  broken  data/0: ")

    def test_what_is_no_checkpoint(self):
        import torch

        self.put("text.pt", "hello\n")
        self.assertRegex(self.ckpt("verify", "text.pt", code=1), r"\Atext\.pt  broken  .*not a checkpoint")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(torch.nn.Linear(1, 1)).save(str(self.path("script.pt")))
        self.assertRegex(self.ckpt("verify", "script.pt", code=1), r"\Ascript\.pt  unsupported  .*TorchScript")

    def test_a_safetensors_file_is_called_that(self):
        self.ckpt("export", self.base / "checkpoint_model_2.pt", "weights.safetensors")
        says = "a safetensors file, not a .pt checkpoint; --checkpointer safetensors and Python's safetensors read it"
        self.assertEqual(self.ckpt("verify", "weights.safetensors", code=1), f"weights.safetensors  unsupported  {says}\n")
        self.refused(1, "inspect", "weights.safetensors", says=f"weights.safetensors: {says}")
        whole = self.path("weights.safetensors").read_bytes()
        self.put("cut.safetensors", whole[:40])
        self.assertRegex(self.ckpt("verify", "cut.safetensors", code=1), r"\Acut\.safetensors  broken  .*not a checkpoint")

    def test_a_folder_has_one_line_for_each(self):
        self.take_base(to="runs")
        self.assertTrue(self.json("verify", "runs")["whole"])
        self.save({"a": 1}, "runs/python_3.pt")
        self.flip(self.path("runs/checkpoint_1.pt"), self.place_of(self.path("runs/checkpoint_1.pt"), "data/1")[0])
        self.put("runs/notes.txt", "no checkpoint")
        text = self.ckpt("verify", "runs", code=1)
        self.assertEqual([line.split()[:2] for line in text.splitlines()],
                         [["checkpoint_2.pt", "ok"], ["checkpoint_1.pt", "broken"], ["checkpoint_0.pt", "ok"], ["checkpoint_model_2.pt", "ok"], ["python_3.pt", "ok"]])
        self.assertEqual({line.index(line.split()[1]) for line in text.splitlines()}, {len("checkpoint_model_2.pt") + 2}, "aligned")
        document = self.json("verify", "runs", code=1)
        self.assertEqual((document["whole"], [f["status"] for f in document["files"]]), (False, ["ok", "broken", "ok", "ok", "ok"]))
        self.assertIn("ok", self.ckpt("verify", "runs", "--prefix", "python"))
        self.refused(2, "verify", "runs/checkpoint_2.pt", "--prefix", "python", says="--prefix and --ext choose files of a folder")

    def test_an_empty_folder_has_none(self):
        self.path("empty").mkdir()
        self.assertEqual(self.ckpt("verify", "empty"), "empty: no checkpoints (files like checkpoint_0.pt)\n")
        self.assertEqual(self.json("verify", "empty"), {"whole": True, "files": []})

    def test_a_file_that_may_not_be_read(self):
        user = 65534 if os.geteuid() == 0 else None
        file = self.copy(self.base / "checkpoint_2.pt", "locked.pt")
        file.chmod(0)
        self.dir.chmod(0o755)
        try:
            subprocess.run([CKPT, "--version"], user=user, env=environment(), check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            self.skipTest("the program lies where no other user reaches it")
        finished = self.run_ckpt("verify", "locked.pt", user=user)
        self.assertEqual(finished.code, 1, str(finished))
        self.assertRegex(finished.out, r"\Alocked\.pt  unreadable  .*Permission denied\n\Z")


if __name__ == "__main__":
    unittest.main()
