"""The installed package, as its users meet it: an install, a plugin project, an application, a subdirectory.

    package_test.py STEP --build BUILD --work FOLDER [--readme FILE]      the steps: see STEPS at the end

`install` comes first: it empties FOLDER. Everything in BUILD must have been built. Run it with a Python that has torch.
"""
import argparse
import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
HERE = SOURCE / "tests" / "package"
MARKER = "<!-- built by tests/package -->"
# No launcher's variables, and no search path that could hide a missing run path.
ENVIRONMENT = {name: value for name, value in os.environ.items()
               if name not in ("LD_LIBRARY_PATH", "MARLIN_PLUGIN_PATH", "CMAKE_PREFIX_PATH", "WORLD_SIZE", "DESTDIR")}


class Result:
    def __init__(self, command, process):
        self.command, self.code, self.out, self.err = command, process.returncode, process.stdout, process.stderr
        self.last_line = (self.out.splitlines() or [""])[-1]

    def __str__(self):
        return f"$ {' '.join(map(str, self.command))}\n{self.out}{self.err}exit code {self.code}"


def run(*command, folder, code=0, environment=None):
    process = subprocess.run([str(part) for part in command], cwd=folder, env={**ENVIRONMENT, **(environment or {})}, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=500)
    result = Result(command, process)
    expect(result.code == code, f"exit code {code}", result)
    return result


def expect(holds, what, seen=""):
    if not holds:
        sys.exit(f"expected: {what}\n{seen}")


def expect_in(what, text, seen):
    expect(re.search(what, text), f"/{what}/", seen)


def emptied(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


class Package:
    def __init__(self, build, work, readme):
        self.build, self.work, self.readme = build, work, readme
        self.prefix = work / "prefix"
        cache = dict(re.findall(r"^(\w+):\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.M))
        self.configure_arguments = ["-G", "Ninja", f"-DCMAKE_CXX_COMPILER={cache['CMAKE_CXX_COMPILER']}"]
        ccache = cache.get("MARLIN_CCACHE", "")
        if os.access(ccache, os.X_OK):
            self.configure_arguments.append(f"-DCMAKE_CXX_COMPILER_LAUNCHER={ccache}")

    @property
    def libtorch(self):
        """What the installed package says that it was built with."""
        config = next(self.prefix.rglob("marlinConfig.cmake")).read_text()
        return re.search(r'MARLIN_LIBTORCH_HINT "(.+)"', config)[1]

    # --- steps -------------------------------------------------------------------------------------------------------------

    def install(self):
        """Files are where they belong, and nothing points back into the build. The other steps use the package where it was moved to."""
        emptied(self.work)
        run("cmake", "--install", self.build, "--prefix", self.work / "installed_here", folder=self.work)
        (self.work / "installed_here").rename(self.prefix)
        for name in ["bin/digits", "bin/marlin-ckpt", "bin/marlin-plugin", "share/marlin/digits.csv", "share/marlin/template/checkpointer/plugin.cpp.in",
                     "lib/libmarlin_testing.a", "lib/libmarlin_sdk.so", "lib/libmarlin_checkpointers.so", "lib/libmarlin.so", "lib/marlin/plugins/libsafetensors.so"]:
            expect((self.prefix / name).is_file(), f"{name} to be installed")

        public = {header.relative_to(folder) for part in ("sdk", "sdk/testing", "checkpointers", "core")
                  for folder in [SOURCE / part / "include"] for header in folder.rglob("*.h")}
        installed = {header.relative_to(self.prefix / "include") for header in (self.prefix / "include").rglob("*.h")}
        expect(public == installed, "all public headers to be installed, and no other", sorted(map(str, public ^ installed)))

        for binary in [*self.prefix.glob("bin/*"), *self.prefix.rglob("*.so")]:
            dynamic = run("readelf", "-d", binary, folder=self.work).out
            expect(str(self.build) not in dynamic and "installed_here" not in dynamic, f"{binary} to find its libraries wherever the package is", dynamic)
        for name in self.prefix.rglob("marlinTargets*.cmake"):
            expect(str(SOURCE) not in name.read_text(), f"{name} not to name the source folder {SOURCE}")

    def plugin(self):
        """examples/mirror_checkpointer, built against the package, with the installed digits."""
        build = self.configure(SOURCE / "examples" / "mirror_checkpointer", "mirror_checkpointer", f"-DCMAKE_PREFIX_PATH={self.prefix}")
        self.expect_no_foreign_headers(build)
        self.mirror = build / "libmirror_checkpointer.so"
        exported = run("nm", "-D", "--defined-only", self.mirror, folder=self.work).out
        expect("marlin_plugin" in exported and "MirrorCheckpointer" not in exported, "the descriptor to be exported, and the class not", exported)

        self.folder = emptied(self.work / "run")
        self.survives_loss_and_damage()
        self.refuses_what_cannot_be_meant()
        self.keeps_one_copy_if_the_other_fails()
        self.is_found_by_name(build)

    def new_plugin(self):
        """marlin-plugin new: what it writes builds against the package, passes its own test, and trains with the installed digits."""
        tool = self.prefix / "bin" / "marlin-plugin"
        sources = emptied(self.work / "new_plugin")
        for kind, name in [("checkpointer", "mine"), ("writer", "my_table"), ("backend", "my_backend")]:
            made = run(tool, "new", name, *([] if kind == "checkpointer" else ["--kind", kind]), folder=sources)
            expect_in(rf"-DCMAKE_PREFIX_PATH={re.escape(str(self.prefix))}$", made.out.splitlines()[2], made)
            build = self.configure(sources / name, f"new_plugin_{kind}", f"-DCMAKE_PREFIX_PATH={self.prefix}")
            self.expect_no_foreign_headers(build)
            run("ctest", "--no-tests=error", "--output-on-failure", folder=build)
            checked = run(tool, "check", f"{build}/lib{name}.so", folder=self.work)
            expect_in(r"^\d+ checks?: \d+ ok, 0 failed, 0 not run$", checked.last_line, checked)

        folder = emptied(self.work / "new_plugin_run")
        plugins = {flag: self.work / f"new_plugin_{kind}" / f"lib{name}.so"
                   for flag, kind, name in [("--checkpointer", "checkpointer", "mine"), ("--writers", "writer", "my_table"), ("--backend", "backend", "my_backend")]}
        digits = [self.prefix / "bin" / "digits", "--progress", "off"]
        for flag, plugin in plugins.items():
            digits += [flag, plugin]
        result = run(*digits, "--epochs", 3, folder=folder)
        expect_in(r"^done epochs=3 global_step=69 .*checkpoint=checkpoints/mine_step_69.pt$", result.last_line, result)
        result = run(*digits, "--resume", "auto", "--epochs", 5, folder=folder)
        expect_in(r"resumed from checkpoints/mine_step_69.pt: ", result.err, result)
        expect_in(r"^done epochs=5 global_step=115 .*checkpoint=checkpoints/mine_step_115.pt$", result.last_line, result)
        expect_in(r"(?m)^epoch,4,115,train/loss,", (folder / "my_table.csv").read_text(), "the table that my_table wrote")
        result = run(*digits, "--epochs", 5, folder=folder, code=2)
        expect_in(r"holds checkpoints of an earlier run: give --resume auto", result.err, result)

    def application(self):
        """The program of README.md, built by the project of README.md, which knows nothing but the package."""
        sources = emptied(self.work / "sine_sources")
        (sources / "sine.cpp").write_text(readme_block(self.readme, "cpp"))
        (sources / "CMakeLists.txt").write_text(readme_block(self.readme, "cmake"))
        build = self.configure(sources, "sine", f"-DCMAKE_PREFIX_PATH={self.prefix}")
        self.expect_no_foreign_headers(build)
        folder = emptied(self.work / "sine_run")
        result = run(build / "sine", "--epochs", 2, "--progress", "off", folder=folder)
        expect_in(r"^done epochs=2 ", result.last_line, result)
        result = run(build / "sine", "--epochs", 3, "--resume", "auto", folder=folder)
        expect_in(r"^done epochs=3 ", result.last_line, result)

    def subdirectory(self):
        """By add_subdirectory: configured, and what a consumer writes is compiled; libmarlin itself was compiled often enough."""
        build = self.configure(HERE / "subdirectory", "subdirectory", f"-DMARLIN_SOURCE={SOURCE}", f"-DMARLIN_LIBTORCH_DIR={self.libtorch}",
                               targets=["CMakeFiles/program.dir/program.cpp.o", "CMakeFiles/plugin.dir/plugin.cpp.o"])
        rules = (build / "marlin" / "cmake_install.cmake").read_text()
        expect("marlinConfig.cmake" not in rules, "libmarlin not to be installed with its consumer", rules)

    def other_libtorch(self):
        """A LibTorch on CMAKE_PREFIX_PATH is taken before the one libmarlin was built with, and refused if it is of another minor."""
        other = emptied(self.work / "other_libtorch")
        for name, text in {"lib/libtorch_cpu.so": "", "lib/libc10.so": "", "include/torch/headeronly/version.h":
                           "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 99\n#define TORCH_VERSION_PATCH 1\n"}.items():
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            (other / name).write_text(text)
        shutil.copytree(other / "include" / "torch" / "headeronly", other / "include/torch/csrc/api/include/torch")
        result = run("cmake", "-S", SOURCE / "examples" / "mirror_checkpointer", "-B", emptied(self.work / "refused"), *self.configure_arguments,
                     f"-DCMAKE_PREFIX_PATH={other};{self.prefix}", folder=self.work, code=1)
        text = " ".join(result.err.split())
        expect("libmarlin was built with LibTorch" in text and "2.99.1, whose binary interface may differ" in text, "the other LibTorch to be refused by version", result)

    # --- what `plugin` promises ----------------------------------------------------------------------------------------------

    def digits(self, *arguments, code=0):
        return run(self.prefix / "bin" / "digits", "--checkpointer", self.mirror, "--progress", "off", *arguments, folder=self.folder, code=code)

    def resumed(self, epochs, *, source, instead_of):
        result = self.digits("--checkpointer.mirror_dir", "backup", "--resume", "auto", "--epochs", epochs)
        for name in instead_of:
            expect_in(rf"\[warning\].* {re.escape(name)}: ", result.err, result)
        expect_in(rf"resumed from {re.escape(source)}: ", result.err, result)
        first = int(re.search(r"\d+", source)[0]) + 1
        ran = [int(epoch) for epoch in re.findall(r"^epoch=(\d+) .*train/loss", result.out, re.M)]
        expect(ran == list(range(first, epochs)), f"epochs {first} to {epochs - 1} to be trained", result)
        expect_in(rf"^done epochs={epochs} global_step={23 * epochs} ", result.last_line, result)

    def survives_loss_and_damage(self):
        checkpoints, backup = self.folder / "checkpoints", self.folder / "backup"
        first = self.digits("--checkpointer.mirror_dir", "backup", "--epochs", 3)
        expect_in(r"^done epochs=3 global_step=69 ", first.last_line, first)
        names = ["checkpoint_0.pt", "checkpoint_1.pt", "checkpoint_2.pt", "checkpoint_model_2.pt"]
        for folder in (checkpoints, backup):
            expect(sorted(os.listdir(folder)) == names, f"{names} in {folder}", os.listdir(folder))
        expect(filecmp.cmpfiles(checkpoints, backup, names, shallow=False)[0] == names, "the copies to be equal")

        shutil.rmtree(checkpoints)
        self.resumed(5, source="backup/checkpoint_2.pt", instead_of=["checkpoints/checkpoint_2.pt"])
        expect(not (checkpoints / "checkpoint_2.pt").exists(), "nothing to be mended in silence")
        change_a_byte(checkpoints / "checkpoint_4.pt")
        self.resumed(6, source="backup/checkpoint_4.pt", instead_of=["checkpoints/checkpoint_4.pt"])
        os.truncate(backup / "checkpoint_5.pt", 5000)
        self.resumed(7, source="checkpoints/checkpoint_5.pt", instead_of=["backup/checkpoint_5.pt"])
        change_a_byte(checkpoints / "checkpoint_6.pt")
        (backup / "checkpoint_6.pt").unlink()
        self.resumed(8, source="checkpoints/checkpoint_5.pt", instead_of=["checkpoints/checkpoint_6.pt", "backup/checkpoint_6.pt", "backup/checkpoint_5.pt"])

        # Python opens both copies, and a run with all these troubles ended where one without any does.
        run(self.prefix / "bin" / "digits", "--epochs", 8, "--checkpointer.save_dir", "untroubled", "--progress", "off", folder=self.folder)
        run(sys.executable, "-c", """
import torch
a, b, c = (torch.load(f"{folder}/checkpoint_7.pt", weights_only=True) for folder in ("checkpoints", "backup", "untroubled"))
model = torch.load("backup/checkpoint_model_7.pt", weights_only=True)
assert list(a["module_interface_state"]) == ["net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias"], a["module_interface_state"].keys()
for name, tensor in a["module_interface_state"].items():
    for other in (b["module_interface_state"], c["module_interface_state"], model):
        assert torch.equal(tensor, other[name]), name
assert a["trainer_state"]["last_epoch"] == b["trainer_state"]["last_epoch"] == 7
""", folder=self.folder)

        nothing = self.digits("--checkpointer.mirror_dir", "backup", "--resume", "auto", "--epochs", 8)
        expect_in(r"^nothing to do epochs=8 ", nothing.last_line, nothing)
        (backup / "checkpoint_model_7.pt").unlink()
        self.digits("--checkpointer.mirror_dir", "backup", "--resume", "auto", "--epochs", 8)
        expect((backup / "checkpoint_model_7.pt").is_file(), "the missing model file to be written at the end of a run that has nothing else to do")
        for path in ("./backup", "backup/checkpoint_7.pt"):
            named = self.digits("--checkpointer.mirror_dir", "backup", "--resume", path, "--epochs", 8)
            expect_in(r"resumed from \S*backup/checkpoint_7.pt: ", named.err, named)
        change_a_byte(backup / "checkpoint_7.pt")
        self.digits("--checkpointer.mirror_dir", "backup", "--resume", "backup/checkpoint_7.pt", code=3)

    def refuses_what_cannot_be_meant(self):
        for text, code, arguments in [
                (r"checkpointer\.mirror_dir: must name", 2, []),
                (r"checkpointer\.mirror_dir: .* same folder", 2, ["--checkpointer.mirror_dir", "./checkpoints/"]),
                (r"checkpointer\.mirror_dir: .* same folder", 2, ["--checkpointer.save_dir", "new", "--checkpointer.mirror_dir", "x/../new/"]),
                (r"'backup' holds checkpoints of an earlier run .*--resume auto", 2, ["--checkpointer.save_dir", "new", "--checkpointer.mirror_dir", "backup"]),
                (r"cannot make folder /proc/", 2, ["--checkpointer.save_dir", "new", "--checkpointer.mirror_dir", "/proc/backup"]),
                (r"no checkpoint to resume from: .* in new, newer", 3, ["--checkpointer.save_dir", "new", "--checkpointer.mirror_dir", "newer", "--resume", "must"])]:
            result = self.digits(*arguments, code=code)
            expect_in(f"error: .*{text}", result.err, result)
        expect_in(r"--checkpointer.mirror_dir", self.digits("--help").out, "--help")

    def keeps_one_copy_if_the_other_fails(self):
        for broken, whole in (("one", "two"), ("two", "one")):
            for folder in ("one", "two"):
                emptied(self.folder / folder)
            (self.folder / broken / "checkpoint_2.pt").mkdir()  # a folder of that name: no file can be renamed onto it
            result = self.digits("--checkpointer.save_dir", "one", "--checkpointer.mirror_dir", "two", "--epochs", 3, code=4)
            expect_in(rf"could not save .*folder '{broken}': .*only written: {whole}/checkpoint_2.pt", result.err, result)
            result = self.digits("--checkpointer.save_dir", "one", "--checkpointer.mirror_dir", "two", "--resume", "must", "--epochs", 4)
            expect_in(rf"resumed from {whole}/checkpoint_2.pt: ", result.err, result)

    def is_found_by_name(self, build):
        run("cmake", "--install", build, "--prefix", self.prefix, folder=self.folder)
        self.mirror = "mirror_checkpointer"
        self.digits("--checkpointer.save_dir", "by_name", "--checkpointer.mirror_dir", "by_name_too", "--checkpointer.period", 2, "--epochs", 2)
        expect(sorted(os.listdir(self.folder / "by_name_too")) == ["checkpoint_0.pt", "checkpoint_1.pt", "checkpoint_model_1.pt"],
               "epoch 0, and the last one whatever the period says", os.listdir(self.folder / "by_name_too"))

    # --- tools -----------------------------------------------------------------------------------------------------------------

    def configure(self, source, name, *arguments, targets=("all",)):
        """Configures a project into an empty folder, and builds it."""
        build = emptied(self.work / name)
        run("cmake", "-S", source, "-B", build, *self.configure_arguments, *arguments, folder=self.work)
        run("cmake", "--build", build, "-j2", "--target", *targets, folder=self.work)
        return build

    def expect_no_foreign_headers(self, build):
        """Consumers see libmarlin's headers and LibTorch's, not those of what libmarlin itself uses."""
        libtorch = self.libtorch
        for line in run("ninja", "-C", build, "-t", "deps", folder=self.work).out.splitlines():
            header = line.strip()
            if header.startswith(libtorch):
                continue
            expect(not re.search(r"/(boost|spdlog|fmt|nlohmann|isa-l|gloo)/", header), "no header of a library that a consumer need not have", header)
            expect(not header.startswith(tuple(f"{SOURCE / part}/" for part in ("sdk", "checkpointers", "core"))),
                   "the installed headers to be used, not those of the source tree", header)


def readme_block(readme, language):
    """The block of that language that comes right after a line with the marker."""
    blocks = re.findall(rf"^{re.escape(MARKER)}\n+```{language}\n(.*?)^```$", readme.read_text(), re.M | re.S)
    expect(len(blocks) == 1, f"one line '{MARKER}' before a ```{language} block in {readme}")
    return blocks[0]


def change_a_byte(file):
    with open(file, "r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


STEPS = ["install", "plugin", "new_plugin", "application", "subdirectory", "other_libtorch"]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--readme", type=Path, default=SOURCE / "README.md")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    getattr(Package(given.build.resolve(), given.work.resolve(), given.readme), given.step)()
