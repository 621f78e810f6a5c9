"""How `marlin-plugin` is called: help, and what is refused with exit code 2."""

import subprocess
import unittest

from plugin_tool_support import COMMANDS, GOOD, TOOL, PluginToolTest, environment


class UsageTest(PluginToolTest):
    def test_help_names_every_command_and_each_has_its_own(self):
        text = self.tool("--help")
        for command in COMMANDS:
            self.assertRegex(text, rf"(?m)^  {command} +\S")
            own = self.tool(command, "--help")
            self.assertRegex(own, rf"\Ausage: marlin-plugin {command} ")
            self.assertLessEqual(max(map(len, own.splitlines())), 150)
        self.assertIn("[--OPTION VALUE ...]", self.tool("check", "--help"))
        self.assertRegex(self.tool("--version"), r"\Alibmarlin \d+\.\d+\.\d+ \(LibTorch \d+\.\d+\.\d+\)\n\Z")

    def test_a_command_is_wanted(self):
        self.refused(2, says="a command is missing: new, list, info, check; marlin-plugin --help")
        self.refused(2, "chekc", "x.so", says=("unknown command 'chekc'", "did you mean check?"))

    def test_words_are_counted_and_unknown_flags_refused(self):
        self.refused(2, "new", says=("NAME is missing", "usage: marlin-plugin new NAME"))
        self.refused(2, "info", "a.so", "b.so", says="unexpected argument 'b.so'")
        self.refused(2, "list", "--plugin_pth", "x", says="did you mean --plugin_path?")
        self.refused(2, "new", "mine", "--knid", "writer", says="did you mean --kind?")

    def test_files_that_are_not_there(self):
        for command in ("info", "check"):
            self.refused(2, command, "nosuch.so", says="'nosuch.so': No such file or directory")
            self.refused(2, command, ".", says="is a folder; name one file of it")

    def test_output_that_cannot_be_written_is_an_error(self):
        with open("/dev/full", "w") as full:
            process = subprocess.run([TOOL, "info", GOOD], stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60)
        self.assertEqual((process.returncode, process.stderr), (1, b"error: standard output cannot be written to\n"))


if __name__ == "__main__":
    unittest.main()
