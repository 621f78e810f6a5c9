"""marlin-ckpt prune"""

import os
import subprocess
import unittest

from ckpt_support import CKPT, CkptTest
from cli_support import DIGITS, environment, names


class PruneTest(CkptTest):
    def put_files(self, *file_names, folder="runs"):
        for name in file_names:
            self.copy(self.base / ("checkpoint_model_2.pt" if "_model_" in name else "checkpoint_1.pt"), f"{folder}/{name}")

    def left(self, folder="runs"):
        return names(self.path(folder))

    def test_the_newest_of_epochs_and_of_steps_stay_and_models_and_suspects_always(self):
        self.put_files(*(f"checkpoint_{i}.pt" for i in (8, 9, 10, 11)), *(f"checkpoint_step_{i}.pt" for i in (5, 70, 600)), "checkpoint_model_1.pt", "checkpoint_model_2.pt",
                       "checkpoint_suspect_3.pt", "checkpoint_suspect_4.pt", "checkpoint_best.pt")
        text = self.ckpt("prune", "runs", "--keep_last", 2)
        self.assertEqual(self.left(), sorted(["checkpoint_10.pt", "checkpoint_11.pt", "checkpoint_step_70.pt", "checkpoint_step_600.pt", "checkpoint_model_1.pt", "checkpoint_model_2.pt",
                                              "checkpoint_suspect_3.pt", "checkpoint_suspect_4.pt", "checkpoint_best.pt"]))
        size = f"{(self.base / 'checkpoint_1.pt').stat().st_size / 1024:.1f} KiB"
        self.assertEqual(text.splitlines()[:3], [f"removed  runs/checkpoint_8.pt       {size}", f"removed  runs/checkpoint_9.pt       {size}", f"removed  runs/checkpoint_step_5.pt  {size}"])
        self.assertRegex(text, r"\nremoved 3 files \(\d+\.\d KiB\), 4 stay\n\Z")
        self.assertEqual(self.ckpt("prune", "runs", "--keep_last", 2), "removed 0 files (0 B), 4 stay\n")

    def test_a_dry_run_removes_nothing_and_says_what_would_go(self):
        self.put_files(*(f"checkpoint_{i}.pt" for i in range(5)))
        before = {name: self.path("runs", name).read_bytes() for name in self.left()}
        text = self.ckpt("prune", "runs", "--keep_last", 3, "--dry_run")
        self.assertRegex(text, r"\Awould remove  runs/checkpoint_0\.pt  \S+ KiB\nwould remove  runs/checkpoint_1\.pt  \S+ KiB\nwould remove 2 files \(\S+ KiB\), 3 would stay\n\Z")
        document = self.json("prune", "runs", "--keep_last", 3, "--dry_run")
        self.assertEqual({name: self.path("runs", name).read_bytes() for name in self.left()}, before)
        self.assertEqual([entry["file"] for entry in document["removed"]], ["checkpoint_0.pt", "checkpoint_1.pt"])
        self.assertEqual((document["dry_run"], document["keep_last"], document["kept"], document["failed"]), (True, 3, ["checkpoint_4.pt", "checkpoint_3.pt", "checkpoint_2.pt"], []))
        # And that is what goes.
        really = self.json("prune", "runs", "--keep_last", 3)
        self.assertEqual((really["dry_run"], really["removed"], really["kept"]), (False, document["removed"], document["kept"]))
        self.assertEqual(self.left(), ["checkpoint_2.pt", "checkpoint_3.pt", "checkpoint_4.pt"])

    def test_the_same_stay_as_with_the_checkpointers_keep_last(self):
        words = [DIGITS, "--epochs", "6", "--checkpointer.keep_last", "2", "--progress", "off"]
        subprocess.run(words, cwd=self.dir, env=environment(), capture_output=True, timeout=120, check=True)
        self.put_files(*(f"checkpoint_{i}.pt" for i in range(6)), "checkpoint_model_5.pt")
        self.ckpt("prune", "runs", "--keep_last", 2)
        self.assertEqual(self.left(), self.left("checkpoints"))

    def test_broken_newest_files_are_neither_counted_nor_removed(self):
        self.put_files(*(f"checkpoint_{i}.pt" for i in range(6)))
        self.put("runs/checkpoint_6.pt", "torn")
        self.cut(self.path("runs/checkpoint_4.pt"), 3000)
        self.put("runs/checkpoint_0.pt", "old and torn")
        text = self.ckpt("prune", "runs", "--keep_last", 2)
        self.assertEqual(self.left(), ["checkpoint_3.pt", "checkpoint_4.pt", "checkpoint_5.pt", "checkpoint_6.pt"])
        self.assertIn("left alone, as it cannot be opened: runs/checkpoint_6.pt\nleft alone, as it cannot be opened: runs/checkpoint_4.pt\n", text)
        self.assertEqual(self.json("prune", "runs", "--keep_last", 2)["broken"], ["checkpoint_6.pt", "checkpoint_4.pt"])
        # With none that is whole, none goes.
        for i in range(9):
            self.put(f"torn/checkpoint_{i}.pt", "torn")
        self.assertEqual(self.json("prune", "torn", "--keep_last", 2)["removed"], [])
        self.assertEqual(len(self.left("torn")), 9)

    def test_each_prefix_is_counted_by_itself(self):
        self.put_files(*(f"{prefix}_{i}.pt" for prefix in ("a", "a_b", "c") for i in range(3)), "a_2.pth", "a_1.pth", "a_0.pth", "d_1.pt")
        self.put_files(*(f".a_{i}.pt.host.1.2.tmp" for i in range(4)))
        document = self.json("prune", "runs", "--keep_last", 2, "--prefix", "a", "--dry_run")
        self.assertEqual([entry["file"] for entry in document["removed"]], ["a_0.pt"])
        document = self.json("prune", "runs", "--keep_last", 2)
        self.assertEqual([entry["file"] for entry in document["removed"]], ["a_0.pt", "a_b_0.pt", "c_0.pt"])
        self.assertEqual(len([name for name in self.left() if not name.startswith(".")]), 10)
        self.assertEqual(len(self.left()), 14)
        self.ckpt("prune", "runs", "--keep_last", 2, "--ext", "pth")
        self.assertNotIn("a_0.pth", self.left())

    def test_fewer_than_two_are_refused(self):
        self.put_files(*(f"checkpoint_{i}.pt" for i in range(3)))
        for number, says in (("1", "must be at least 2, got 1"), ("0", "must be at least 2"), ("-1", "must be at least 2"), ("x", "must be a whole number, got 'x'"),
                             ("2.5", "must be a whole number"), ("", "keep_last"), ("99999999999999999999", "must be a whole number")):
            with self.subTest(number):
                self.refused(2, "prune", "runs", f"--keep_last={number}", says=says)
        self.refused(2, "prune", "runs", "--keep_last", "-1", says="must be at least 2, got -1")

    def test_a_folder_without_checkpoints(self):
        self.put("runs/notes.txt", "x")
        self.assertEqual(self.ckpt("prune", "runs", "--keep_last", 2), "runs: no checkpoints (files like checkpoint_0.pt)\n")
        self.assertEqual(self.left(), ["notes.txt"])

    def test_what_cannot_be_removed_is_told_and_ends_with_1(self):
        self.put_files(*(f"checkpoint_{i}.pt" for i in range(4)))
        user = 65534 if os.geteuid() == 0 else None
        self.dir.chmod(0o755)
        try:
            subprocess.run([CKPT, "--version"], user=user, env=environment(), check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            self.skipTest("the program lies where no other user reaches it")
        self.path("runs").chmod(0o555)
        finished = self.run_ckpt("prune", "runs", "--keep_last", 2, user=user)
        self.path("runs").chmod(0o755)
        self.assertEqual(finished.code, 1, str(finished))
        self.assertRegex(finished.err, r"\Aerror: [^\n]*checkpoint_0\.pt: Permission denied\nerror: [^\n]*checkpoint_1\.pt: Permission denied\n\Z")
        self.assertEqual(finished.out, "removed 0 files (0 B), 2 stay\n")
        self.assertEqual(len(self.left()), 4)


if __name__ == "__main__":
    unittest.main()
