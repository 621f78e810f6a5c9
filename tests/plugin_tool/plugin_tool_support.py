"""What the tests of `marlin-plugin` share: running it, and plugins to run it on."""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from cli_support import BAD_PLUGINS, BUILD, SIGNS_OF_A_CRASH, CliTest, Finished, environment, names  # noqa: E402

TOOL = BUILD / "bin" / "marlin-plugin"
MIRROR = BUILD / "plugin_tool" / "libmirror_checkpointer.so"
GOOD = BAD_PLUGINS / "libgood.so"
COMMANDS = ("new", "list", "info", "check")


class PluginToolTest(CliTest):
    def run_tool(self, *args, env=None):
        process = subprocess.run([str(TOOL), *map(str, args)], cwd=self.dir, env=env or environment(), capture_output=True, timeout=300, stdin=subprocess.DEVNULL)
        finished = Finished(process)
        for sign in SIGNS_OF_A_CRASH:
            self.assertNotIn(sign, finished.err, str(finished))
        return finished

    def tool(self, *args, code=0, env=None):
        """Its standard output; nothing is on the standard error."""
        finished = self.run_tool(*args, env=env)
        self.assertEqual((finished.code, finished.err), (code, ""), str(finished))
        return finished.out

    def json(self, *args, code=0, env=None):
        """Its one JSON document."""
        return json.loads(self.tool(*args, "--json", code=code, env=env))

    def refused(self, code, *args, says=(), env=None):
        """Ends with this code and one line `error: ...` that holds every text of `says`; prints and leaves nothing."""
        before = sorted(self.dir.rglob("*"))
        finished = self.run_tool(*args, env=env)
        self.assertEqual(finished.code, code, str(finished))
        self.assertEqual(finished.out, "", str(finished))
        self.assertRegex(finished.err, r"\Aerror: [^\n]+\n\Z", str(finished))
        for text in [says] if isinstance(says, str) else says:
            self.assertIn(text, finished.err)
        self.assertEqual(sorted(self.dir.rglob("*")), before)
        return finished.err
