"""What the command-line tests share: running `digits` in a folder of its own, and judging what it said and left."""

import ctypes
import os
import re
import random
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest
import zipfile
from contextlib import closing
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
    result = {k: v for k, v in os.environ.items() if k not in ("MARLIN_PLUGIN_PATH", "TERM", "RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")}
    result["OMP_NUM_THREADS"] = "1"
    result.update(changes)
    return result


def names(folder):
    """What lies in a folder, hidden files too, sorted; nothing if there is no folder."""
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def checkpoints(epochs, model=None):
    """The sorted names of checkpoints of these epochs, and of one model file."""
    return sorted([f"checkpoint_{e}.pt" for e in epochs] + ([] if model is None else [f"checkpoint_model_{model}.pt"]))


def random_of_this_run():
    """Random numbers by a seed that is printed; MARLIN_TEST_SEED sets it."""
    seed = int(os.environ.get("MARLIN_TEST_SEED", time.time_ns() % 1_000_000))
    print(f"MARLIN_TEST_SEED={seed}", flush=True)
    return random.Random(seed)


def contents(folder):
    """All that lies below a folder: of a file its bytes and when it was written, of a folder None."""
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) if p.is_file() else None for p in Path(folder).rglob("*")}


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

    def assertNothingStrange(self, finished):
        """No sign of a crash, and on stderr only what it writes there when all is well, or an error."""
        for sign in SIGNS_OF_A_CRASH:
            self.assertNotIn(sign, finished.err, str(finished))
        for line in re.split(r"\n|\r", finished.err):
            line = line.replace("\x1b[K", "")
            known = not line or LOG_LINE.match(line) or PROGRESS_LINE.match(line) or line.startswith("error: ")
            self.assertTrue(known, f"a line on stderr of no known kind: {line!r}\n{finished}")

    def run_digits(self, *args, cwd=None, env=None, user=None):
        words = [str(DIGITS), *map(str, args)]
        process = subprocess.run(words, cwd=cwd or self.dir, env=env or environment(), capture_output=True, timeout=120, stdin=subprocess.DEVNULL, user=user)
        finished = Finished(process)
        self.assertNothingStrange(finished)
        return finished

    def launch(self, *args, cwd=None, **how):
        """The program while it runs; it does not outlive the test."""
        running = Running(*args, cwd=cwd or self.dir, **how)
        self.addCleanup(running.end)
        return running

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

    def assertAllWhole(self, folder):
        """Every file here that a run could go on from, or take weights from, is whole."""
        for name in names(folder):
            if name.startswith("."):
                continue
            with zipfile.ZipFile(folder / name) as archive:
                self.assertIsNone(archive.testzip(), name)  # every record against its CRC-32
            self.assertIn("net.0.weight" if "model" in name else "module_interface_state", load(folder / name), name)


class FolderEvents:
    """What happens in a folder, in order and at once (inotify): names that come and go, and what else is asked for."""

    CREATE, MOVED_TO, DELETE, MODIFY, OPEN = 0x100, 0x80, 0x200, 0x2, 0x20

    def __init__(self, folder, also=0):
        libc = ctypes.CDLL(None, use_errno=True)
        self.file = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.file < 0 or libc.inotify_add_watch(self.file, os.fsencode(folder), self.CREATE | self.MOVED_TO | self.DELETE | also) < 0:
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


class Running:
    """A started `digits`. What it writes goes to files, which do not fill up as pipes do."""

    def __init__(self, *args, cwd, env=None, sigint=signal.SIG_DFL):
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        words = [str(DIGITS), *map(str, args)]
        # Who started the tests in the background has SIGINT ignored, and children inherit that.
        self.process = subprocess.Popen(words, cwd=cwd, env=env or environment(), stdout=self.out, stderr=self.err, stdin=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, sigint))

    def await_event(self, events, wanted):
        """The name of the first event of a folder that is wanted, at once; None if the process ended without."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            for event, name in events.wait(0 if ended else 0.05):
                if wanted(event, name):
                    return name
            if ended:
                return None
        raise TimeoutError(f"what was waited for has not happened\n{self.so_far()}")

    def await_signals(self, line, wanted):
        """Waits until this line of /proc/PID/status (SigCgt: handlers there are; ShdPnd: not delivered yet) is as wanted, a mask."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"it has ended\n{self.finished()}")
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            if (found := re.search(rf"(?m)^{line}:\s*([0-9a-f]+)$", status)) and wanted(int(found[1], 16)):
                return
            time.sleep(0.001)
        raise TimeoutError(f"{line} is not as wanted")

    def send(self, number):
        self.process.send_signal(number)

    def so_far(self):
        self.out.seek(0), self.err.seek(0)
        return Finished(subprocess.CompletedProcess(self.process.args, self.process.poll(), self.out.read(), self.err.read()))

    def finished(self):
        """What it came to, once it has ended by itself or by a signal."""
        self.process.wait(120)
        return self.so_far()

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.out.close(), self.err.close()


def start_training(folder, *args, **how):
    """A run in a folder, fresh or gone on with, once its training has begun: signals stop it from then on, and its record is open."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with closing(FolderEvents(folder / "logs", also=FolderEvents.OPEN)) as events:
        running = Running(*args, "--writers", "stdout,jsonl", cwd=folder, **how)
        try:
            if running.await_event(events, lambda event, name: event == events.OPEN and name == "metrics.jsonl") is None:
                raise AssertionError(f"it ended before training began\n{running.finished()}")
        except BaseException:
            running.end()
            raise
    running.start_up = time.monotonic() - began
    return running


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
