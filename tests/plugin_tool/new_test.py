"""marlin-plugin new. That what it writes builds and passes its test is in tests/package."""

import os
import unittest

from plugin_tool_support import PluginToolTest, names

FILES = {kind: sorted(["CMakeLists.txt", "README.md", "plugin.cpp", f"{kind}.h", f"{kind}.cpp", f"{kind}_test.cpp"]) for kind in ("checkpointer", "writer", "backend")}


class NewTest(PluginToolTest):
    def test_each_kind_is_written_with_its_name_in_place(self):
        for kind, files in FILES.items():
            with self.subTest(kind=kind):
                out = self.tool("new", f"own_{kind}", "--kind", kind)
                self.assertEqual(names(self.path(f"own_{kind}")), files)
                self.assertIn(f"cmake -S own_{kind} -B own_{kind}/build", out)
                for file in files:
                    text = self.path(f"own_{kind}", file).read_text()
                    self.assertNotIn("@", text, file)
                self.assertIn(f'.name = "own_{kind}"', self.path(f"own_{kind}", "plugin.cpp").read_text())
                self.assertIn(f"new Own{kind.capitalize()}(host", self.path(f"own_{kind}", "plugin.cpp").read_text())

    def test_a_checkpointer_is_made_if_no_kind_is_given(self):
        document = self.json("new", "mine", "--dir", "deep/er")
        self.assertEqual(document, {"folder": "deep/er/mine", "kind": "checkpointer", "files": FILES["checkpointer"]})
        self.assertEqual(names(self.path("deep", "er", "mine")), FILES["checkpointer"])

    def test_names_that_cannot_be_are_refused(self):
        for name in ("Mine", "9lives", "a-b", "a b", "a/b", "..", "", "_x", "x" * 41, "caf\u00e9"):
            self.refused(2, "new", name, says="cannot be a plugin's name: it takes 1 to 40 lower-case letters")
        self.refused(2, "new", "default", says="'default' is the name of a built-in checkpointer")
        self.refused(2, "new", "sp", "--kind", "backend", says="'sp' is the name of a built-in backend")
        self.refused(2, "new", "jsonl", "--kind", "writer", says="'jsonl' is the name of a built-in writer")
        self.refused(2, "new", "test", says="a CMake target of that name")
        self.refused(2, "new", "marlin_sdk", says="a CMake target of that name")
        self.refused(2, "new", "mine", "--kind", "writre", says="did you mean writer?")

    def test_nothing_is_overwritten(self):
        self.path("mine").mkdir()
        self.refused(2, "new", "mine", says="'mine' is there already")
        os.symlink("nowhere", self.path("link"))
        self.refused(2, "new", "link", says="'link' is there already")
        self.put("file", "kept")
        self.refused(1, "new", "mine", "--dir", "file/below", says="cannot make the folder 'file/below/mine': Not a directory")


if __name__ == "__main__":
    unittest.main()
