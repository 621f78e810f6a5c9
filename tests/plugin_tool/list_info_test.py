"""marlin-plugin list and info: what is told of plugins without loading them."""

import os
import shutil
import unittest

from plugin_tool_support import BAD_PLUGINS, GOOD, PluginToolTest, environment


class ListTest(PluginToolTest):
    def test_folders_are_searched_in_order_and_the_first_of_a_name_is_taken(self):
        first, second = self.path("first"), self.path("second")
        for folder in (first, second):
            folder.mkdir()
            shutil.copy(GOOD, folder)
        shutil.copy(BAD_PLUGINS / "libgood_writer.so", second)
        self.put("first/libempty.so")
        self.put("first/notes.txt", "no plugin")
        env = environment(MARLIN_PLUGIN_PATH=f"{second}:{self.path('nosuch')}")
        document = self.json("list", "--plugin_path", first, env=env)
        self.assertEqual([(entry["folder"], entry["exists"]) for entry in document["folders"][:3]], [(str(first), True), (str(second), True), (str(self.path("nosuch")), False)])
        self.assertTrue(document["folders"][3]["folder"].endswith("/marlin/plugins"))
        seen = [(p["name"], p["version"], p["kind"], p["file"], p["loads"], p["shadowed_by"]) for p in document["plugins"]]
        self.assertEqual(seen[:4], [
            ("empty", None, None, str(first / "libempty.so"), False, None),
            ("good", "1.2.3", "checkpointer", str(first / "libgood.so"), True, None),
            ("good", "1.2.3", "checkpointer", str(second / "libgood.so"), True, str(first / "libgood.so")),
            ("good_writer", "1", "writer", str(second / "libgood_writer.so"), True, None)])
        text = self.tool("list", "--plugin_path", first, env=env)
        self.assertIn(f"searched: {first}, {second}, {self.path('nosuch')} (no such folder), ", text)
        self.assertRegex(text, r"(?m)^good +1\.2\.3 +checkpointer +\S+/first/libgood\.so +built for libmarlin \d+\.\d+\.\d+, LibTorch \d+\.\d+$")
        self.assertRegex(text, r"(?m)^good +1\.2\.3 +checkpointer +\S+/second/libgood\.so +shadowed by \S+/first/libgood\.so; built for ")
        self.assertRegex(text, r"(?m)^empty +- +- +\S+/first/libempty\.so +refused: the file is empty")

    def test_plugins_that_would_be_refused_are_listed_with_the_reason_and_never_loaded(self):
        plugins = {p["name"]: p for p in self.json("list", "--plugin_path", BAD_PLUGINS)["plugins"]}
        for name, why in {"later_abi": "SDK ABI", "other_torch": "LibTorch", "two_kinds": "exactly one", "wrong_name": "its descriptor says that it is", "no_descriptor": "exports no marlin_plugin",
                          "default": "built-in"}.items():
            self.assertFalse(plugins[name]["loads"], name)
            self.assertIn(why, plugins[name]["refusal"])
        self.assertTrue(plugins["throws_at_load"]["loads"])  # a static initialiser that would end the process


class InfoTest(PluginToolTest):
    def test_all_facts_of_a_plugin(self):
        document = self.json("info", GOOD)
        self.assertEqual((document["name"], document["version"], document["kind"], document["loads"], document["refusal"]), ("good", "1.2.3", "checkpointer", True, None))
        self.assertRegex(document["libmarlin"], r"^\d+\.\d+\.\d+$")
        self.assertRegex(document["libtorch"], r"^\d+\.\d+\.\d+")
        self.assertRegex(document["compiler"], r"^(g\+\+|clang) \d+")
        self.assertEqual((document["cplusplus"], document["glibcxx_use_cxx11_abi"], document["glibcxx_debug"], document["sanitizer"], document["cuda"]), (202002, 1, False, "none", "none"))
        text = self.tool("info", GOOD)
        for line in (r"name +good", r"version +1\.2\.3", r"kind +checkpointer", r"SDK ABI +\d+", r"LibTorch +\d+\.\d+\.\d+\S*", r"_GLIBCXX_USE_CXX11_ABI +1", r"_GLIBCXX_DEBUG +no",
                     r"sanitizer +none", r"libmarlin +\d+\.\d+\.\d+", r"compiler +\S.*", r"C\+\+ standard +C\+\+20", r"NDEBUG +(yes|no)", r"CUDA +none", r"loads here +yes"):
            self.assertRegex(text, rf"(?m)^{line}$")

    def test_what_would_be_refused_says_why_and_ends_with_1(self):
        self.assertRegex(self.tool("info", BAD_PLUGINS / "libother_torch.so", code=1), r"(?m)^loads here +no: built with LibTorch ")
        document = self.json("info", BAD_PLUGINS / "libtwo_kinds.so", code=1)
        self.assertEqual((document["kind"], document["loads"]), ("checkpointer, writer", False))
        self.assertIn("exactly one", document["refusal"])
        later = self.json("info", BAD_PLUGINS / "liblater_abi.so", code=1)
        self.assertIsNone(later["name"])
        self.assertIn("later SDK ABI", later["refusal"])

    def test_what_is_no_plugin_is_one_line(self):
        self.refused(1, "info", BAD_PLUGINS / "libno_descriptor.so", says="exports no marlin_plugin")
        self.put("libtext.so", "hello")
        self.refused(1, "info", "libtext.so", says="not a shared library")
        os.mkfifo(self.path("libpipe.so"))
        self.refused(1, "info", "libpipe.so", says="not a regular file")


if __name__ == "__main__":
    unittest.main()
