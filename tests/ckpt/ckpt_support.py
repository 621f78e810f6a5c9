"""What the tests of `marlin-ckpt` share: running it, and files of one real run of `digits` to run it on."""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from cli_support import BUILD, SIGNS_OF_A_CRASH, Finished, WithRun, environment  # noqa: E402

CKPT = BUILD / "bin" / "marlin-ckpt"
COMMANDS = ("ls", "inspect", "verify", "diff", "export", "prune")


class CkptTest(WithRun):
    """`base` has checkpoint_0.pt to checkpoint_2.pt and checkpoint_model_2.pt of one run; tests copy what they change."""

    base_epochs = 3

    def run_ckpt(self, *args, user=None):
        process = subprocess.run([str(CKPT), *map(str, args)], cwd=self.dir, env=environment(), capture_output=True, timeout=120, stdin=subprocess.DEVNULL, user=user)
        finished = Finished(process)
        for sign in SIGNS_OF_A_CRASH:
            self.assertNotIn(sign, finished.err + finished.out, str(finished))
        return finished

    def ckpt(self, *args, code=0):
        """Its standard output; nothing is on the standard error."""
        finished = self.run_ckpt(*args)
        self.assertEqual((finished.code, finished.err), (code, ""), str(finished))
        return finished.out

    def json(self, *args, code=0):
        """Its one JSON document."""
        return json.loads(self.ckpt(*args, "--json", code=code))

    def refused(self, code, *args, says=(), user=None):
        """Ends with this code and one line `error: ...` that holds every text of `says`; prints and leaves nothing."""
        before = {path: path.read_bytes() for path in self.dir.rglob("*") if path.is_file()}
        finished = self.run_ckpt(*args, user=user)
        self.assertEqual(finished.code, code, str(finished))
        self.assertEqual(finished.out, "", str(finished))
        self.assertRegex(finished.err, r"\Aerror: [^\n]+\n\Z", str(finished))
        for text in [says] if isinstance(says, str) else says:
            self.assertIn(text, finished.err)
        self.assertEqual({path: path.read_bytes() for path in self.dir.rglob("*") if path.is_file()}, before)
        return finished.err

    def save(self, state, name="python.pt"):
        """A file of Python's."""
        import torch

        file = self.path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, file)
        return file

    def load(self, file):
        import torch

        return torch.load(file, weights_only=True)

    def flip(self, file, place, bit=0):
        """Changes one bit of a file."""
        content = bytearray(file.read_bytes())
        content[place] ^= 1 << bit
        file.write_bytes(content)

    def cut(self, file, size):
        file.write_bytes(file.read_bytes()[:size])

    def place_of(self, file, record):
        """Where a record's bytes begin in a file, and how many they are."""
        import zipfile

        with zipfile.ZipFile(file) as archive:
            info = next(info for info in archive.infolist() if info.filename.split("/", 1)[1] == record)
        header = file.read_bytes()[info.header_offset : info.header_offset + 30]
        return info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), info.file_size
