"""Who may include whom, and whether every test is run.

    check_includes.py [ROOT]      ROOT: libmarlin's source folder

One chain: sdk <- checkpointers <- core <- examples. Beside it: sdk/testing, the contract suite for authors of plugins, which includes sdk
only and which tools, tests and plugins' tests may include, and the command line that tools share. Prints `FILE:LINE: the line: what is wrong` for each breach; exit code 1 if any.
"""
import re
import sys
from pathlib import Path

ROOT = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
PARTS = ["sdk", "checkpointers", "core"]  # each may include itself and what stands before it
# Headers outside of the parts' own include folders: where they are, and the folders besides that may include them.
BESIDE = {"testing": ("sdk/testing/include", ("sdk/testing", "core/tools")),
          "tools": ("checkpointers/tools/common/include", ("checkpointers/tools", "core/tools"))}
SOURCES = ("*.h", "*.cpp", "*.inc")
INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')

# What a user of the package need not have, so that no public header may need it.
FOREIGN = {"boost/": "Boost", "spdlog/": "spdlog", "fmt/": "fmt", "nlohmann/": "nlohmann-json", "isa-l": "ISA-L", "xxh": "xxHash", "gloo/": "gloo"}
DISTRIBUTED = ("torch/csrc/distributed/", "c10d/")
# Public headers that may include all of LibTorch (half a minute for each file that includes them), and why.
MAY_INCLUDE_TORCH = {}

problems = []


def files(folder, patterns=SOURCES):
    return sorted(file for pattern in patterns for file in (ROOT / folder).rglob(pattern))


def includes(file):
    """(line number, line, quote, what) for each include of a file."""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if match := INCLUDE.match(line):
            yield number, line.strip(), *match.groups()


def part_of(include):
    """The part that a public header belongs to: `marlin/sdk/error.h` to sdk. None: not one of ours."""
    if include == "marlin/marlin.h":
        return "core"
    match = re.match(r"marlin/(\w+)/", include)
    return match[1] if match else None


def breach(file, number, line, why):
    problems.append(f"{file.relative_to(ROOT)}:{number}: {line}: {why}")


def check_direction(file, allowed, who):
    for number, line, _, include in includes(file):
        part = part_of(include)
        home, allowed_in = BESIDE.get(part, (f"{part}/include", None))
        if allowed_in is not None and any(file.is_relative_to(ROOT / folder) for folder in allowed_in):
            allowed_here = [*allowed, part]
        else:
            allowed_here = allowed
        if part and part not in allowed_here:
            breach(file, number, line, f"{who} may include {' and '.join(allowed)} only")
        elif part and not (ROOT / home / include).is_file():
            breach(file, number, line, f"{part} has no such public header")


def check_public_header(file, part):
    text = file.read_text()
    if "#pragma once" not in text:
        breach(file, 1, text.splitlines()[0] if text else "", "a header begins with #pragma once")
    for number, line, quote, include in includes(file):
        if quote == '"' and not part_of(include):
            breach(file, number, line, "a public header includes public headers only, by their whole name (marlin/PART/...)")
        for start, name in FOREIGN.items():
            if include.startswith(start):
                breach(file, number, line, f"users of the package need not have {name}")
        if part == "sdk" and include.startswith(DISTRIBUTED):
            breach(file, number, line, "c10d stays out of the sdk's headers")
        if include in ("torch/torch.h", "torch/all.h", "torch/extension.h") and str(file.relative_to(ROOT)) not in MAY_INCLUDE_TORCH:
            breach(file, number, line, "a public header includes the LibTorch headers that it uses, not all of them")


def check_private_includes(file, home):
    """A quoted include that is not a public header is found beside the file, or in the sources of its own part."""
    for number, line, quote, include in includes(file):
        if quote == '"' and not part_of(include) and not any((folder / include).is_file() and (folder / include).resolve().is_relative_to(ROOT / home)
                                                             for folder in (file.parent, ROOT / home / "src")):
            breach(file, number, line, f"is not in {home}")


def tests_that_are_built():
    """Files that some CMakeLists.txt below tests/ names, with its globs and foreach loops written out."""
    named = set()
    for lists in files("tests", ["CMakeLists.txt"]):
        text = re.sub(r"#.*", "", lists.read_text())
        loops = {name: values.split() for name, values in re.findall(r"foreach\(\s*(\w+)\s+([\w\s]+?)\)", text)}
        for pattern in re.findall(r'[^\s()"]*_test\.cpp', text.replace("${CMAKE_CURRENT_SOURCE_DIR}/", "")):
            patterns = [pattern]
            for name, values in loops.items():
                patterns = [each.replace(f"${{{name}}}", value) for each in patterns for value in (values if f"${{{name}}}" in each else [""])]
            for each in patterns:
                if "${" not in each and not each.startswith("/"):
                    named.update(lists.parent.glob(each))
    return named


for index, part in enumerate(PARTS):
    for file in files(part):
        check_direction(file, PARTS[:index + 1], part)
        if file.is_relative_to(ROOT / part / "include") or file.is_relative_to(ROOT / "sdk/testing/include"):
            check_public_header(file, part)
        else:
            check_private_includes(file, part)

for area in ("plugins", "examples"):
    for folder in sorted(path for path in (ROOT / area).glob("*") if path.is_dir()):
        sources = files(folder.relative_to(ROOT))
        text = "".join(file.read_text() for file in sources)
        light = "MARLIN_PLUGIN" in text and ".make_backend" not in text and ".make_device" not in text
        for file in sources:
            check_direction(file, PARTS[:2] if light else PARTS, "a plugin of checkpointers or writers" if light else area)
            check_private_includes(file, folder.relative_to(ROOT))

for area in (*PARTS, "plugins", "tests"):
    for file in files(area):
        for number, line, _, include in includes(file):
            if re.search(r"(^|/)examples/", include):
                breach(file, number, line, "examples are included by nobody")

built = tests_that_are_built()
for file in files("tests", ["*_test.cpp"]):
    if file not in built:
        problems.append(f"{file.relative_to(ROOT)}:1: no CMakeLists.txt below tests/ names it, so it is never run")

print("\n".join(problems) if problems else "includes are in order, and every test is built")
sys.exit(1 if problems else 0)
