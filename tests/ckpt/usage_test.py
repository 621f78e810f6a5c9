"""How `marlin-ckpt` is called: help, and what is refused with exit code 2."""

import subprocess
import unittest

from ckpt_support import CKPT, COMMANDS, CkptTest, environment


class UsageTest(CkptTest):
    base_epochs = 1

    def test_help_names_every_command_and_each_has_its_own(self):
        text = self.ckpt("--help")
        for command in COMMANDS:
            self.assertRegex(text, rf"(?m)^  {command} +\S")
            own = self.ckpt(command, "--help")
            self.assertRegex(own, rf"\Ausage: marlin-ckpt {command} ")
            self.assertIn("--json", own)
            self.assertLessEqual(max(map(len, own.splitlines())), 140)
        self.assertRegex(self.ckpt("--version"), r"\Alibmarlin \d+\.\d+\.\d+ \(LibTorch \d+\.\d+\.\d+\)\n\Z")

    def test_a_command_is_wanted(self):
        self.refused(2, says="a command is missing: ls, inspect, verify, diff, export, prune")
        self.refused(2, "isnpect", "x.pt", says=("unknown command 'isnpect'", "did you mean inspect?"))
        self.refused(2, "frobnicate", says=("unknown command 'frobnicate'", "there are ls, inspect"))
        self.refused(2, "--json", "ls", ".", says=("unknown flag --json", "the command comes first"))
        self.refused(2, "--hepl", says=("unknown flag --hepl", "did you mean --help?"))

    def test_unknown_flags_are_refused_with_the_nearest(self):
        self.refused(2, "ls", ".", "--jsno", says="unknown flag --jsno; did you mean --json?")
        self.refused(2, "ls", ".", "--js", says="unknown flag --js")  # no prefix is guessed
        self.refused(2, "prune", ".", "--keep-last", "2", says="did you mean --keep_last?")
        self.refused(2, "inspect", "x.pt", "--prefix", "y", says="unknown flag --prefix; marlin-ckpt inspect --help")
        self.refused(2, "ls", "-l", ".", says="unknown flag -l")

    def test_words_and_values_are_counted(self):
        self.refused(2, "ls", says=("DIR is missing", "usage: marlin-ckpt ls DIR"))
        self.refused(2, "diff", "a.pt", says="B is missing")
        self.refused(2, "ls", ".", "more", says="unexpected argument 'more'")
        self.refused(2, "prune", ".", says="give --keep_last N, or --keep RULES")
        self.refused(2, "prune", ".", "--keep_last", says="keep_last")
        self.refused(2, "ls", ".", "--json=yes", says="--json")
        self.refused(2, "ls", ".", "--prefix", "a", "--prefix", "b", says="--prefix: given twice")

    def test_files_and_folders_that_are_not_there(self):
        for command, *more in (("inspect",), ("verify",), ("diff", self.base / "checkpoint_0.pt"), ("export", "out.safetensors")):
            self.refused(2, command, "nosuch.pt", *more, says="'nosuch.pt': No such file or directory")
        self.refused(2, "diff", self.base / "checkpoint_0.pt", "nosuch.pt", says="'nosuch.pt': No such file or directory")
        for command in ("inspect", "diff", "export"):
            more = () if command == "inspect" else ("other",)
            self.refused(2, command, self.base, *more, says="is a folder; name one file of it")
        for command, *more in (("ls",), ("prune", "--keep_last", "2")):
            self.refused(2, command, "nosuch", *more, says="'nosuch': No such file or directory")
            self.refused(2, command, self.base / "checkpoint_0.pt", *more, says="is not a folder")

    def test_names_that_begin_with_dashes_stand_after_two(self):
        self.copy(self.base / "checkpoint_0.pt", "--json")
        self.assertIn("ok", self.ckpt("verify", "--", "--json"))

    def test_names_with_control_characters_stay_on_their_line(self):
        self.copy(self.base / "checkpoint_0.pt", "runs/a\nb\x1b[31m_0.pt")
        text = self.ckpt("ls", "runs")
        self.assertNotIn("\x1b", text)
        self.assertIn("a\\nb\\x1b[31m_0.pt", text)
        self.assertEqual(self.json("ls", "runs")["files"][0]["file"], "a\nb\x1b[31m_0.pt")
        self.refused(2, "inspect", "no\nsuch", says="no\\nsuch")

    def test_output_that_cannot_be_written_is_an_error(self):
        with open("/dev/full", "w") as full:
            process = subprocess.run([CKPT, "ls", self.base], stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60)
        self.assertEqual((process.returncode, process.stderr), (1, b"error: standard output cannot be written to\n"))


if __name__ == "__main__":
    unittest.main()
