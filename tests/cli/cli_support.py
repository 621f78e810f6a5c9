"""What the command-line tests share: running `digits` in a folder of its own, and judging what it said and left."""

import ctypes
import os
import re
import select
import shutil
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("MARLIN_BINARY_DIR", SOURCE / "build"))
DIGITS = BUILD / "bin" / "digits"
BAD_PLUGINS = BUILD / "bad_plugins"
DATA = SOURCE / "examples" / "digits" / "digits.csv"
LONG = bool(os.environ.get("MARLIN_TEST_LONG"))

STEPS = 23  # of one epoch: 1437 training images in batches of 64
LOG_LINE = re.compile(r"\[\d\d:\d\d:\d\d\] \[(debug|info|warning|error)\] \S")
PROGRESS_LINE = re.compile(r"(epoch \d+/\d+|validation)( \[[= ]+\] \d+%)?  \d+/\d+")
SIGNS_OF_A_CRASH = ("terminate", "what():", "backtrace", "frame #", "Exception raised from", "c10::", "Assertion", "Sanitizer", "core dumped")


def environment(**changes):
    """One thread, so that tests beside each other do not slow each other down, and nothing of the caller's that digits reads."""
    result = {k: v for k, v in os.environ.items() if k not in ("MARLIN_PLUGIN_PATH", "TERM", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")}
    result["OMP_NUM_THREADS"] = "1"
    result.update(changes)
    return result


def names(folder):
    """What lies in a folder, hidden files too, sorted; nothing if there is no folder."""
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def checkpoints(epochs, model=None):
    """The sorted names of checkpoints of these epochs, and of one model file."""
    return sorted([f"checkpoint_{e}.pt" for e in epochs] + ([] if model is None else [f"checkpoint_model_{model}.pt"]))


class Finished:
    def __init__(self, process):
        self.code, self.out, self.err = process.returncode, process.stdout.decode(), process.stderr.decode(errors="replace")
        self.last = self.out.rstrip("\n").rsplit("\n", 1)[-1]

    def __str__(self):
        return f"exit code {self.code}\n--- stdout\n{self.out}--- stderr\n{self.err}"


class CliTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="marlin_cli_"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def path(self, *parts):
        return self.dir.joinpath(*parts)

    def put(self, name, content=""):
        file = self.path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def copy(self, source, name):
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if Path(source).is_dir() else shutil.copyfile)(source, target)
        return target

    def run_digits(self, *args, cwd=None, env=None, user=None):
        words = [str(DIGITS), *map(str, args)]
        process = subprocess.run(words, cwd=cwd or self.dir, env=env or environment(), capture_output=True, timeout=120, stdin=subprocess.DEVNULL, user=user)
        finished = Finished(process)
        for sign in SIGNS_OF_A_CRASH:
            self.assertNotIn(sign, finished.err, str(finished))
        for line in re.split(r"\n|\r", finished.err):
            line = line.replace("\x1b[K", "")
            known = not line or LOG_LINE.match(line) or PROGRESS_LINE.match(line) or line.startswith("error: ")
            self.assertTrue(known, f"a line on stderr of no known kind: {line!r}\n{finished}")
        return finished

    def ok(self, *args, **how):
        """Runs to exit code 0, without an error."""
        finished = self.run_digits(*args, **how)
        self.assertEqual(finished.code, 0, str(finished))
        self.assertNotIn("error: ", finished.err, str(finished))
        return finished

    def fails(self, code, *args, says=(), **how):
        """Ends with this code and one line `error: ...` that holds every text of `says`."""
        finished = self.run_digits(*args, **how)
        self.assertEqual(finished.code, code, str(finished))
        errors = [line for line in finished.err.splitlines() if line.startswith("error:")]
        self.assertEqual(len(errors), 1, str(finished))
        for text in [says] if isinstance(says, str) else says:
            self.assertIn(text, errors[0])
        self.assertNotRegex(finished.out, r"(?m)^(done|stopped|nothing to do) ", "a failed run must not end as one that is done")
        return errors[0]

    def refused(self, code, *args, says=(), **how):
        """Fails before anything is trained, with that one line and nothing else."""
        before = sorted(p for p in self.dir.rglob("*"))
        finished = self.run_digits(*args, **how)
        self.assertEqual(finished.out, "", str(finished))
        self.assertRegex(finished.err, r"\Aerror: [^\n]+\n\Z", str(finished))
        self.assertEqual(finished.code, code, str(finished))
        for text in [says] if isinstance(says, str) else says:
            self.assertIn(text, finished.err)
        self.assertEqual(sorted(p for p in self.dir.rglob("*")), before, "a refused run must leave nothing")
        return finished.err

    def assertDone(self, finished, epochs, steps=None, checkpoint=None, kind="done"):
        steps = epochs * STEPS if steps is None else steps
        self.assertRegex(finished.last, rf"^{kind} epochs={epochs} global_step={steps}\b", str(finished))
        if checkpoint:
            self.assertTrue(finished.last.endswith(f" checkpoint={checkpoint}"), finished.last)


class FolderEvents:
    """What happens in a folder, in order and at once (inotify)."""

    CREATE, MOVED_TO, DELETE = 0x100, 0x80, 0x200

    def __init__(self, folder):
        libc = ctypes.CDLL(None, use_errno=True)
        self.file = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.file < 0 or libc.inotify_add_watch(self.file, os.fsencode(folder), self.CREATE | self.MOVED_TO | self.DELETE) < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(folder))

    def close(self):
        os.close(self.file)

    def wait(self, seconds):
        """The (event, name) since the last call, as soon as there are any; none after this time."""
        if not select.select([self.file], [], [], seconds)[0]:
            return []
        piece, result = os.read(self.file, 1 << 20), []
        while piece:
            _, event, _, size = struct.unpack_from("iIII", piece)
            result.append((event & 0x3FF, piece[16 : 16 + size].rstrip(b"\0").decode()))
            piece = piece[16 + size :]
        return result


class WithRun(CliTest):
    """Has in `base` the files of one run of 4 epochs, shared by the tests of a class; they copy what they change."""

    base_epochs = 4
    base_args = ()

    @classmethod
    def setUpClass(cls):
        cls.base_dir = Path(tempfile.mkdtemp(prefix="marlin_cli_base_"))
        cls.addClassCleanup(shutil.rmtree, cls.base_dir, ignore_errors=True)
        words = [DIGITS, "--epochs", str(cls.base_epochs), "--progress", "off", *cls.base_args]
        cls.base_run = Finished(subprocess.run(words, cwd=cls.base_dir, env=environment(), capture_output=True, timeout=120, check=True))
        cls.base = cls.base_dir / "checkpoints"

    def take_base(self, *file_names, to="checkpoints"):
        """Copies the run's files, or those named, into a folder of the test."""
        target = self.path(to)
        target.mkdir(parents=True, exist_ok=True)
        for name in file_names or names(self.base):
            shutil.copyfile(self.base / name, target / name)
        return target


def load(file):
    """The whole file as Python sees it."""
    import torch

    return torch.load(file, map_location="cpu", weights_only=True)


def bits(tensor):
    tensor = tensor.contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.nbytes else b""


def flat(value, name=""):
    """(name, leaf) of a nested state; of a loaded checkpoint, what a run's identity is made of is left out."""
    import torch

    if isinstance(value, dict):
        for key, item in value.items():
            if key != "run_id":
                yield from flat(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from flat(item, f"{name}[{i}]")
    elif isinstance(value, torch.Tensor):
        yield name, (str(value.dtype), tuple(value.shape), bits(value))
    else:
        yield name, value


def differing(file_a, file_b):
    """The names of what is not equal, bit for bit, in two files."""
    a, b = dict(flat(load(file_a))), dict(flat(load(file_b)))
    return sorted(key for key in a.keys() | b.keys() if key not in a or key not in b or a[key] != b[key])
