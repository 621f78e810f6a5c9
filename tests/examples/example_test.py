"""Runs an example as its source says, and compares its last line with the one its source promises.

    example_test.py SOURCE PROGRAM

The source begins with a comment that has a line `Run:    NAME ARGUMENT...  (remarks)` and a line
`Expect: last line "TEXT"`, where ... in TEXT stands for anything, and after it, maybe, `(NAME above NUMBER)`.
"""
import re
import shlex
import subprocess
import sys
import tempfile

source, program = sys.argv[1:]
header = open(source).read()
run = re.search(r"^// Run: +\w+(.*?)(?: {2,}\(.*)?$", header, re.M)
expected = re.search(r'^// Expect: last line "(.*)"(?: \((\S+) above ([\d.]+)\))?$', header, re.M)
if not run or not expected:
    sys.exit(f"{source}: no `// Run:` or no `// Expect: last line \"...\"` in its first comment")
text, name, bound = expected.groups()

with tempfile.TemporaryDirectory() as folder:
    result = subprocess.run([program, *shlex.split(run[1])], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
print(result.stdout + result.stderr)
if result.returncode != 0:
    sys.exit(f"exit code {result.returncode}")
last = (result.stdout.splitlines() or [""])[-1]
if not re.fullmatch(re.escape(text).replace(re.escape("..."), ".*"), last):
    sys.exit(f"last line:  {last}\nbut expected: {text}")
if name:
    value = float(re.search(rf"(?:^| ){re.escape(name)}=(\S+)", last)[1])
    if not value > float(bound):
        sys.exit(f"{name} is {value}, not above {bound}")
