"""What Python does with the files of digits, and digits with those of Python."""

import re
import subprocess
import sys
import unittest

from cli_support import DATA, SOURCE, STEPS, WithRun, environment, load, names

QUIET = ("--progress", "off")


class PythonOpensTest(WithRun):
    def model(self):
        from torch import nn

        class Digits(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.0), nn.Linear(128, 10))

            def forward(self, images):
                return self.net(images)

        return Digits()

    def validation_data(self):
        import torch

        table = torch.tensor([[float(x) for x in line.split(",")] for line in DATA.read_text().splitlines()])
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(1797))[len(table) * 8 // 10 :]
        return table[order, :64] / 16.0, table[order, 64].long()

    def test_all_files_open_with_and_without_mmap(self):
        import torch

        self.assertEqual(len(names(self.base)), 5)
        for file in names(self.base):
            for mmap in (False, True):
                opened = torch.load(self.base / file, weights_only=True, mmap=mmap)
                self.assertEqual(list(opened), ["net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias"] if "model" in file else ["module_interface_state", "trainer_state", "trainer_backend_state"])
        whole = load(self.base / "checkpoint_2.pt")
        self.assertEqual(whole["trainer_state"]["last_epoch"], 2)
        self.assertEqual(whole["trainer_backend_state"]["global_step_completed"], 3 * STEPS)
        self.assertGreater((self.base / "checkpoint_3.pt").stat().st_size, 20_000)
        self.assertLess((self.base / "checkpoint_3.pt").stat().st_size, 200_000)

    def test_the_model_is_as_good_in_python(self):
        import torch

        said = re.search(r"val/accuracy=(\S+) val/loss=(\S+)", self.base_run.last)
        images, labels = self.validation_data()
        for state in (load(self.base / "checkpoint_model_3.pt"), load(self.base / "checkpoint_3.pt")["module_interface_state"]):
            model = self.model()
            self.assertEqual(str(model.load_state_dict(state, strict=True)), "<All keys matched successfully>")
            with torch.no_grad():
                scores = model.eval()(images)
            self.assertEqual(f"{(scores.argmax(1) == labels).double().mean():.4f}", said[1])
            self.assertAlmostEqual(torch.nn.functional.cross_entropy(scores, labels).item(), float(said[2]), delta=1e-4)

    def test_the_optimizer_goes_on_in_python(self):
        import torch

        whole = load(self.base / "checkpoint_3.pt")
        model = self.model()
        model.load_state_dict(whole["module_interface_state"])
        optimizer = torch.optim.AdamW(model.parameters())
        optimizer.load_state_dict(whole["trainer_state"]["optimizers"][0])
        self.assertEqual(optimizer.param_groups[0]["lr"], 0.003)
        self.assertEqual({state["step"].item() for state in optimizer.state.values()}, {4.0 * STEPS})
        saved = whole["trainer_state"]["optimizers"][0]["state"]
        for i, parameter in enumerate(model.parameters()):
            for name in ("exp_avg", "exp_avg_sq"):
                self.assertTrue(torch.equal(optimizer.state[parameter][name], saved[i][name]))
        images, labels = self.validation_data()
        before = torch.nn.functional.cross_entropy(model(images), labels)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        self.assertLess(torch.nn.functional.cross_entropy(model(images), labels).item(), before.item())

    def test_a_checkpoint_saved_again_by_python_is_resumed_exactly(self):
        import torch

        whole = load(self.base / "checkpoint_1.pt")
        torch.save(whole, self.path("again.pt"))
        self.ok("--epochs", 4, "--resume", "./again.pt", *QUIET)
        self.assertEqual(self.path("checkpoints/checkpoint_model_3.pt").read_bytes(), (self.base / "checkpoint_model_3.pt").read_bytes())


class ReadmeSessionTest(WithRun):
    base_epochs = 5

    def test_opens_a_checkpoint_continues_training_and_hands_it_back(self):
        readme = (SOURCE / "README.md").read_text()
        session = re.search(r"<!-- run by tests/cli -->\n```python\n(.*?)```", readme, re.S)[1]
        self.take_base(to="five")
        self.copy(DATA, "examples/digits/digits.csv")
        words = [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", session]
        python = subprocess.run(words, cwd=self.dir, env=environment(), capture_output=True, timeout=120)
        self.assertEqual((python.returncode, python.stdout.decode().strip()), (0, "4 115"), python.stderr.decode())

        resumed = self.ok("--epochs", 8, "--resume", "auto", "--checkpointer.save_dir", "five", *QUIET)
        self.assertDone(resumed, 8, checkpoint="five/checkpoint_7.pt")
        self.assertIn("resumed from five/checkpoint_5.pt: 6 epochs, 138 steps done", resumed.err)
        self.assertIn("checkpoint_5.pt could not be verified", resumed.err)
        said = re.search(r"val/accuracy=(\S+)", resumed.last)
        self.assertGreater(float(said[1]), 0.95, "the moments that Python handed back were of use")


if __name__ == "__main__":
    unittest.main()
