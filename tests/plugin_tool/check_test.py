"""marlin-plugin check"""

import re
import unittest

from plugin_tool_support import BAD_PLUGINS, GOOD, MIRROR, PluginToolTest

CHECKS = ["round trip", "models", "period and force", "load of nothing", "newest wins", "kill in the middle of a save", "full disk", "power cut", "broken file", "exceptions",
          "two in one process", "resume into a new process"]


class CheckTest(PluginToolTest):
    def test_a_plugin_that_keeps_the_contract(self):
        out = self.tool("check", MIRROR, "--mirror_dir", "backup")
        lines = out.splitlines()
        self.assertEqual([re.match(r"ok   ([a-z ]+)(: [^\n]+)? \(\d+\.\d s\)$", line)[1] for line in lines[:-1]], CHECKS, out)
        self.assertEqual(lines[-1], "12 checks: 12 ok, 0 failed, 0 not run")
        self.assertEqual(list(self.dir.iterdir()), [], "checks leave nothing in the working folder")

    def test_a_plugin_that_keeps_everything_in_memory(self):
        document = self.json("check", GOOD, "--limit", "1000", code=1)
        status = {check["check"]: check["status"] for check in document["checks"]}
        self.assertEqual(list(status), CHECKS)
        self.assertFalse(document["good"])
        self.assertEqual(status["resume into a new process"], "failed")
        self.assertEqual(status["models"], "failed")
        self.assertEqual([name for name, outcome in status.items() if outcome == "not run"], ["kill in the middle of a save", "full disk", "power cut", "broken file"])

    def test_one_check_and_the_list_of_them(self):
        self.assertEqual(self.tool("check", GOOD, "--list").splitlines(), CHECKS)
        self.assertRegex(self.tool("check", MIRROR, "--mirror_dir=backup", "--only", "round trip"), r"\Aok   round trip \(\d+\.\d s\)\n1 check: 1 ok, 0 failed, 0 not run\n\Z")
        self.assertRegex(self.tool("check", GOOD, "--only", "models", code=1), r"\AFAIL models: save_model failed: .*no room for models \(\d+\.\d s\)\n1 check: 0 ok, 1 failed, 0 not run\n\Z")
        self.refused(2, "check", GOOD, "--only", "modles", says="did you mean 'models'?")

    def test_options_of_the_plugin_are_checked_once(self):
        self.refused(2, "check", MIRROR, says="checkpointer.mirror_dir: must name the folder")
        self.refused(2, "check", MIRROR, "--miror_dir", "backup", says="did you mean mirror_dir?")
        self.refused(2, "check", MIRROR, "--checkpointer.mirror_dir", "backup", says="--checkpointer.mirror_dir: the plugin's own options have no prefix here; did you mean --mirror_dir?")
        self.refused(2, "check", MIRROR, "--checkpointer.unlike_all", "x", says="no option 'checkpointer.unlike_all'; there are: ")
        self.refused(2, "check", MIRROR, "--mirror_dir", says="--mirror_dir: a value is missing")
        self.refused(2, "check", GOOD, "--limit", "many", says="--limit")

    def test_what_cannot_be_loaded_is_one_line(self):
        self.refused(1, "check", BAD_PLUGINS / "libother_torch.so", says="built with LibTorch")
        self.refused(1, "check", BAD_PLUGINS / "libthrows_when_made.so", "--how", "standard", says=("make_checkpointer failed", "two\\nlines"))
        self.refused(1, "check", BAD_PLUGINS / "libthrows_at_load.so", says=("cannot be loaded: a static initialiser threw", "no licence for this machine"))

    def test_a_plugin_that_ends_the_process_is_said_to(self):
        ends = BAD_PLUGINS / "libends_process.so"
        self.refused(1, "check", ends, "--call", "make", says="while it was loaded and made, the process called exit(3)")
        for how, what in {"exit": r"called exit\(3\)", "quick_exit": "ended with code 3", "_exit": "ended with code 3", "null": "ended by SIGSEGV", "abort": "ended by SIGABRT"}.items():
            out = self.tool("check", ends, "--how", how, "--only", "newest wins", code=1)
            self.assertRegex(out, rf"\AFAIL newest wins: the process {what}[^\n]*\n1 check: 0 ok, 1 failed, 0 not run\n\Z")

    def test_a_check_has_a_time_limit(self):
        slow = BAD_PLUGINS / "libtakes_long.so"
        self.assertRegex(self.tool("check", slow, "--only", "newest wins", "--timeout_seconds", "1", code=1),
                         r"\AFAIL newest wins: the process took longer than 1 s; if it needs longer, give it more with --timeout_seconds \(\d+\.\d s\)\n1 check: ")
        self.refused(2, "check", slow, "--timeout_seconds", "0", says="--timeout_seconds: must be 1 to 1000000, got 0")
        self.refused(2, "check", slow, "--timeout_seconds", "soon", says="--timeout_seconds: must be a whole number, got 'soon'")

    def test_writers_and_backends(self):
        self.assertRegex(self.tool("check", BAD_PLUGINS / "libgood_writer.so"), r"\Aok   writes events: [^\n]+\nok   odd names[^\n]+\nok   a second run[^\n]+\n3 checks: 3 ok")
        self.assertIn("FAIL writes events: ", self.tool("check", BAD_PLUGINS / "libthrowing_writer.so", code=1))
        backend = BAD_PLUGINS / "libthrowing_backend.so"
        self.assertRegex(self.tool("check", backend), r"\Aok   trains two steps: two steps, loss [^\n]+\nok   resumes [^\n]+\n2 checks: 2 ok")
        self.assertRegex(self.tool("check", backend, "--call", "get_state", code=1), r"(?m)^FAIL resumes: [^\n]*get_state failed")


if __name__ == "__main__":
    unittest.main()
