"""docs/plugins.md and docs/recipes/*.md, as a reader follows them: what they show is built and run against the installed package.

    guide_test.py --build BUILD --work FOLDER [--docs FOLDER]      after `package_test.py install` with the same BUILD and FOLDER

A page is a project: its blocks of code are the files, its commands are run in their order. How a block is marked says what it is:

    cpp     a file of the project; its first line is `// NAME.cpp: what it is`
    cmake   the CMakeLists.txt
    sh      commands, with a comment `# exit code N` after one that fails. ~/marlin is the installed package
    text    right after sh: lines that the commands print, in this order; numbers, and what stands around the line, may differ.
            Anywhere else: for the eye
"""
import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from package_test import ENVIRONMENT, SOURCE, Package, emptied, expect, run

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
EXIT_CODE = re.compile(r"^(.*?)\s+# exit code (\d+)$")


class Page:
    """The blocks of one page."""

    def __init__(self, file):
        self.name = file.stem
        text = file.read_text()
        rest = FENCE.sub("", text)
        expect(not re.search(r"^\s*(```|~~~)", rest, re.M), f"every block of {file} to begin in the first column, and to end")
        blocks = list(FENCE.finditer(text))
        for block in blocks:
            expect(block[1] in ("cpp", "cmake", "sh", "text"), f"only blocks of cpp, cmake, sh and text in {file}, so that each is tested", block[0])
        self.sources = {}
        for code in (block[2] for block in blocks if block[1] == "cpp"):
            named = re.match(r"// (\w+\.(?:cpp|h)): ", code)
            expect(named and named[1] not in self.sources, f"a block of {file} to begin with `// NAME.cpp: what it is`, each with a name of its own", code[:200])
            self.sources[named[1]] = code
        self.projects = [block[2] for block in blocks if block[1] == "cmake"]
        expect(len(self.projects) == bool(self.sources), f"one block of cmake in {file}, if it has code", self.projects)
        self.folder = re.search(r"project\((\w+)", self.projects[0])[1] if self.projects else self.name
        self.commands = []  # (script, expected lines)
        for block, after in zip(blocks, [*blocks[1:], None]):
            if block[1] == "sh":
                shown = after and after[1] == "text" and not text[block.end():after.start()].strip()
                self.commands.append((block[2], after[2].splitlines() if shown else []))
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", rest):
            expect((file.parent / target).exists(), f"what {file} links to: {target}")


def script_of(commands, prefix):
    lines = ["set -e"]
    for line in commands.replace("~/marlin", shlex.quote(str(prefix))).splitlines():
        failing = EXIT_CODE.match(line)
        lines.append(f"code=0; {failing[1]} || code=$?; [ $code = {failing[2]} ] || {{ echo \"exit code $code\"; exit 99; }}" if failing else line)
    return "\n".join(lines)


def cause_of(checkpoint):
    with zipfile.ZipFile(checkpoint) as archive:
        return json.loads(archive.read(next(name for name in archive.namelist() if name.endswith("/marlin.json"))))["cause"]


class Guide(Package):
    def __init__(self, build, work, docs):
        super().__init__(build, work, SOURCE / "README.md")
        self.pages = [Page(file) for file in [docs / "plugins.md", *sorted((docs / "recipes").glob("*.md"))]]
        defined = dict(argument[2:].split("=", 1) for argument in self.configure_arguments if argument.startswith("-D"))
        # As the commands of a page do not say: which compiler, and that compiled files are listed.
        self.environment = {"CMAKE_GENERATOR": "Ninja", "CXX": defined["CMAKE_CXX_COMPILER"], "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
                            "CMAKE_CXX_COMPILER_LAUNCHER": defined.get("CMAKE_CXX_COMPILER_LAUNCHER", ""), "OMP_NUM_THREADS": "1"}

    def comparable(self, text, folder):
        """Without what differs from run to run."""
        text = text.replace(str(folder), "/home/you/" + folder.name).replace(str(self.prefix), "/home/you/marlin")
        return re.sub(r"\d+(\.\d+)?(e-\d+)?", "#", text)

    def follow(self, page):
        folder = emptied(self.work / "guide" / page.folder)
        for name, text in page.sources.items():
            (folder / name).write_text(text)
        for text in page.projects:
            (folder / "CMakeLists.txt").write_text(text)
        for commands, shown in page.commands:
            script = script_of(commands, self.prefix)
            result = run("bash", "-c", f"exec 2>&1\n{script}", folder=folder, environment=self.environment)
            printed = iter(self.comparable(result.out, folder).splitlines())
            for line in shown:
                expect(any(self.comparable(line, folder) in each for each in printed), f"{page.name}: the line `{line}` in what these commands print", result)
        if page.sources:
            build = folder / "build"
            compiled = {Path(entry["file"]).name for entry in json.loads((build / "compile_commands.json").read_text())}
            expect(compiled == set(page.sources), f"{page.name}: every block of code to be compiled", sorted(compiled ^ set(page.sources)))
            self.expect_no_foreign_headers(build)
        if page.name == "triggers":
            self.saves_on_signal(folder)

    def saves_on_signal(self, folder):
        """What triggers.md says of SIGUSR1; a page's commands cannot know when a program is far enough."""
        process = subprocess.Popen(["../build/triggers", "5000"], cwd=emptied(folder / "signalled"), env={**ENVIRONMENT, **self.environment},
                                   text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            for line in iter(process.stderr.readline, ""):
                saved = re.search(r"saved (checkpoints/checkpoint_step_(\d+)\.pt) ", line)
                if saved and saved[2] != "10" and cause_of(folder / "signalled" / saved[1]) == "request":  # the module asks at step 10
                    return
                process.send_signal(signal.SIGUSR1)
            expect(False, "triggers to save when it gets SIGUSR1")
        finally:
            process.kill()
            process.wait()

    def guide(self):
        """Every page; two at once, for each compiles one file or two."""
        expect(any(page.sources for page in self.pages), "pages with code")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self.follow, self.pages))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--docs", type=Path, default=SOURCE / "docs")
    given = parser.parse_args()
    Guide(given.build.resolve(), given.work.resolve(), given.docs.resolve()).guide()
