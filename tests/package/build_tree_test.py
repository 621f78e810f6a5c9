"""find_package(marlin) over libmarlin's build folder, and what marlin_add_plugin() refuses.

    build_tree_test.py --build BUILD --work FOLDER      Everything in BUILD must have been built. Writes to FOLDER/build_tree.
"""
import argparse
import re
from pathlib import Path

from package_test import HERE, SOURCE, Package, emptied, expect, expect_in, run


class BuildTree(Package):
    def consumer(self):
        """A program and a plugin that were built against the build folder run with what lies there."""
        build = self.configure(HERE / "build_tree", "build_tree/by_prefix", f"-DCMAKE_PREFIX_PATH={self.build}")
        run(build / "program", folder=build)
        folder = emptied(self.work / "build_tree" / "run")
        result = run(self.build / "bin" / "digits", "--checkpointer", build / "libplugin.so", "--progress", "off", "--max_steps", 2, folder=folder)
        expect_in(r"^done .* global_step=2 .*checkpoint=checkpoints/checkpoint_", result.last_line, result)

        config = re.search(r"^marlin_DIR:PATH=(.*)$", (build / "CMakeCache.txt").read_text(), re.M)[1]
        expect(Path(config) == self.build, f"the package of {self.build} to be used", config)
        self.configure(HERE / "build_tree", "build_tree/by_folder", f"-Dmarlin_DIR={self.build}", targets=["help"])

    def plugin_names(self):
        """A name that no host would take is refused when the plugin's project is configured, with a word about why."""
        script = self.work / "build_tree" / "names.cmake"
        built_in = {}
        for kind, flag in (("checkpointer", "--checkpointer"), ("backend", "--backend"), ("writer", "--writers")):
            result = run(self.build / "bin" / "digits", flag, "no_such_plugin", folder=self.work, code=2)
            for name in re.search(r"built in: ([\w, -]+)", result.err)[1].split(", "):
                built_in[name] = f"is the name of a built-in {kind}; give the plugin another one"
        expect(len(built_in) >= 4, "built-in checkpointers, backends and writers", built_in)
        for name, why in [*built_in.items(), *((name, "a plugin's name consists of letters, digits, _ and -") for name in ("a b", "a;b", "a/b", "a.b", "ä", ""))]:
            script.write_text(f'include("{SOURCE}/cmake/MarlinAddPlugin.cmake")\nmarlin_add_plugin("{name}" plugin.cpp)\n')
            result = run("cmake", "-P", script, folder=self.work, code=1)
            expect(f"marlin_add_plugin({name}): " in result.err and why in " ".join(result.err.split()), f"'{name}' to be refused: {why}", result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    test = BuildTree(given.build.resolve(), given.work.resolve(), SOURCE / "README.md")
    test.consumer()
    test.plugin_names()
