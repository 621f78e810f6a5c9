"""marlin-ckpt prune"""

import os
import re
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
        self.assertRegex(text, "".join(rf"would remove  runs/checkpoint_{i}\.pt  no rule keeps it\n" for i in (0, 1)) + "".join(rf"stays         runs/checkpoint_{i}\.pt  last:3\n" for i in (2, 3, 4))
                         + r"would remove 2 files \(\S+ KiB\), 3 would stay\n\Z")
        document = self.json("prune", "runs", "--keep_last", 3, "--dry_run")
        self.assertEqual({name: self.path("runs", name).read_bytes() for name in self.left()}, before)
        self.assertEqual([entry["file"] for entry in document["removed"]], ["checkpoint_0.pt", "checkpoint_1.pt"])
        self.assertEqual((document["dry_run"], document["keep"], document["kept"], document["failed"]), (True, "last:3", ["checkpoint_4.pt", "checkpoint_3.pt", "checkpoint_2.pt"], []))
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


class PruneRulesTest(CkptTest):
    """prune --keep RULES: a union of rules, and for every file the reason why it stays or goes."""

    base_epochs = 5

    def explained(self, *args, folder="checkpoints"):
        """Of each checkpoint what is said: (what becomes of it, why)."""
        self.take_base(to=folder)
        before = {name: self.path(folder, name).read_bytes() for name in names(self.path(folder))}
        text = self.ckpt("prune", folder, *args, "--dry_run")
        self.assertEqual({name: self.path(folder, name).read_bytes() for name in names(self.path(folder))}, before)
        columns = [re.split(r" {2,}", line) for line in text.splitlines()]
        return {line[1]: (line[0], line[2]) for line in columns if len(line) == 3 and re.fullmatch(rf"{folder}/checkpoint_\d+\.pt", line[1])}

    def said(self, *reasons):
        """One for each epoch; None: no rule keeps it."""
        return {f"checkpoints/checkpoint_{epoch}.pt": ("would remove", "no rule keeps it") if reason is None else ("stays", reason) for epoch, reason in enumerate(reasons)}

    def test_every_file_is_explained(self):
        text = self.ckpt("prune", self.take_base(), "--keep", "last:2,best:1:val/accuracy", "--dry_run")
        self.assertRegex(text, r"(?m)^stays         \S*checkpoints/checkpoint_4\.pt {2,}last:2, best:1:val/accuracy$")
        self.assertRegex(text, r"(?m)^stays         \S*checkpoints/checkpoint_3\.pt {2,}last:2$")
        self.assertRegex(text, r"(?m)^would remove  \S*checkpoints/checkpoint_0\.pt {2,}no rule keeps it$")
        self.assertEqual(self.explained("--keep", "last:2,best:1:val/accuracy"), self.said(None, None, None, "last:2", "last:2, best:1:val/accuracy"))

    def test_each_rule(self):
        for rules, *reasons in (
            ("last:3", None, None, "last:3", "last:3", "last:3"),
            ("last:9", *["last:9"] * 5),
            ("last:2,best:2:val/loss", "best:2:val/loss", "best:2:val/loss", None, "last:2", "last:2"),
            ("last:2,best:3:val/loss:min", None, None, "best:3:val/loss:min", "last:2, best:3:val/loss:min", "last:2, best:3:val/loss:min"),
            ("last:2,best:1:val/f1", None, None, None, "last:2", "last:2"),
            ("last:2,every:2", "every:2", None, "every:2", "last:2", "last:2, every:2"),
            ("last:2,pin:0", "pin:0", None, None, "last:2", "last:2"),
            ("last:2,every:4,pin:4", "every:4", None, None, "last:2", "last:2, every:4, pin:4"),
        ):
            with self.subTest(rules):
                self.assertEqual(self.explained("--keep", rules), self.said(*reasons))

    def test_what_was_said_is_what_goes(self):
        would = self.explained("--keep", "last:2,best:1:val/loss,pin:2")
        self.ckpt("prune", "checkpoints", "--keep", "last:2,best:1:val/loss,pin:2")
        left = [name for name in names(self.path("checkpoints")) if "_model_" not in name]
        self.assertEqual(left, ["checkpoint_0.pt", "checkpoint_2.pt", "checkpoint_3.pt", "checkpoint_4.pt"])
        self.assertEqual(left, sorted(file.split("/")[1] for file, (becomes, _) in would.items() if becomes == "stays"))
        self.assertIn("checkpoint_model_4.pt", names(self.path("checkpoints")), "models always stay")
        document = self.json("prune", "checkpoints", "--keep", "last:2", "--dry_run")
        self.assertEqual(sorted(entry["file"] for entry in document["removed"]), ["checkpoint_0.pt", "checkpoint_2.pt"])

    def test_a_broken_file_is_neither_counted_nor_removed(self):
        self.take_base()
        self.cut(self.path("checkpoints/checkpoint_4.pt"), 3000)
        self.ckpt("prune", "checkpoints", "--keep", "last:2")
        self.assertEqual([name for name in names(self.path("checkpoints")) if "_model_" not in name], ["checkpoint_2.pt", "checkpoint_3.pt", "checkpoint_4.pt"])

    def test_bad_rules_are_refused_by_name(self):
        self.take_base()
        for rules in ("newest:3", "last", "last:0", "last:x", "best:1", "best:0:val/loss", "best:1:val/loss:most", "every:0", "pin:-1", "last:2,last:2"):
            with self.subTest(rules):
                self.refused(2, "prune", "checkpoints", "--keep", rules, says="--keep")
        self.refused(2, "prune", "checkpoints", "--keep", "last:2,newest:3", says="newest:3")


if __name__ == "__main__":
    unittest.main()
