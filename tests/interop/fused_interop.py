"""A model's training goes from Python to marlin::optim and back, and ends at the same parameters as one that stayed in Python.

usage: fused_interop.py OPTIMIZER_TOOL       (tests/interop/optimizer_tool.cpp; it explains the files)

With Python's fused=True the parameters and states are equal bit for bit; with Python's default they differ by no more than
1e-6 of the tensor's greatest after 50 steps. Exits with 1 if any does.
"""

import math
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
import torch  # noqa: E402

TOLERANCE = 1e-6
STEPS = 50
SWITCH = 20  # steps before the model goes to the other side

# The same names and hyper-parameters as in optimizer_tool.cpp.
CASES = {
    "sgd": (torch.optim.SGD, dict(lr=0.05, weight_decay=0.01)),
    "sgd_momentum": (torch.optim.SGD, dict(lr=0.05, momentum=0.9, dampening=0.1)),
    "sgd_nesterov": (torch.optim.SGD, dict(lr=0.05, momentum=0.9, nesterov=True)),
    "adam": (torch.optim.Adam, dict(lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)),
    "adam_amsgrad": (torch.optim.Adam, dict(lr=0.01, amsgrad=True)),
    "adamw": (torch.optim.AdamW, dict(lr=0.01, eps=1e-6)),
    "adamw_amsgrad": (torch.optim.AdamW, dict(lr=0.01, amsgrad=True, weight_decay=0.05)),
    "adagrad": (torch.optim.Adagrad, dict(lr=0.1, lr_decay=0.05, initial_accumulator_value=0.2)),
}
SHAPES = ((40, 3), (17,), (5,), (64, 33))


def set_gradients(params, step):
    """As in optimizer_tool.cpp: of a convex loss, exact in both, so that only the optimizers' arithmetic is compared."""
    for i, param in enumerate(params):
        if i != 2:
            param.grad = param.detach() - (2.0 + step % 7 * 0.125)


def train(optimizer, params, begin, end):
    for step in range(begin, end):
        set_gradients(params, step)
        optimizer.step()


class Model:
    def __init__(self, name, **extra):
        kind, options = CASES[name]
        torch.manual_seed(3)
        self.params = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
        self.optimizer = kind([{"params": self.params[:3]}, {"params": self.params[3:], "lr": 0.02}], **{**options, **extra})

    def train(self, begin, end):
        train(self.optimizer, self.params, begin, end)
        return self

    def save(self, file, begin, end):
        root = {"parameters": [p.detach() for p in self.params], "optimizer": self.optimizer.state_dict(), "begin": begin, "end": end}
        torch.save(root, file)

    def load(self, file):
        saved = torch.load(file, weights_only=True)
        with torch.no_grad():
            for param, value in zip(self.params, saved["parameters"]):
                param.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        return self

    def tensors(self):
        """Everything that training has changed, by name."""
        result = {f"parameter {i}": p.detach() for i, p in enumerate(self.params)}
        for key, entry in self.optimizer.state_dict()["state"].items():
            result.update({f"state {key}.{name}": value for name, value in entry.items() if value is not None})
        return result


def difference(model, expected, only_parameters=False):
    a, b = model.tensors(), expected.tensors()
    assert a.keys() == b.keys(), f"{a.keys() ^ b.keys()} on one side only"
    greatest = 0.0
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        if only_parameters and name.startswith("state"):
            continue
        if not torch.equal(a[name], b[name]):
            found = ((a[name] - b[name]).abs().max() / b[name].abs().max()).item()
            greatest = math.inf if math.isnan(found) else max(greatest, found, 1e-30)
    return greatest


class Cpp:
    """Models that C++ goes on with: all of one round in one process."""

    def __init__(self, tool, folder):
        self.tool, self.folder, self.jobs, self.count = tool, folder, [], 0

    def add(self, name, model, begin, end):
        """The file in which the model will be after the next round."""
        self.count += 1
        there, back = self.folder / f"{self.count}.there.pt", self.folder / f"{self.count}.back.pt"
        model.save(there, begin, end)
        self.jobs += [name, there, back]
        return back

    def round(self):
        subprocess.run([self.tool, "train", *self.jobs], check=True)
        self.jobs = []


class Run:
    """One case with Python's fused=True or with its default: all ways that its training takes, against one that stayed."""

    def __init__(self, name, fused, cpp):
        self.name, self.fused, self.cpp = name, fused, cpp
        self.stayed = Model(name, fused=fused).train(0, STEPS)
        self.ends_there = cpp.add(name, Model(name, fused=fused).train(0, SWITCH), SWITCH, STEPS)
        self.begins_there = cpp.add(name, Model(name, fused=fused), 0, SWITCH)
        self.to_and_fro = cpp.add(name, Model(name, fused=fused).train(0, 10), 10, SWITCH)

    def back(self, file):
        model = Model(self.name).load(file)
        groups = model.optimizer.param_groups
        assert all(group["fused"] is True for group in groups), "marlin::optim's states say that they are of fused optimizers"
        assert groups[1]["lr"] == 0.02 and len(groups) == 2
        for group in groups:
            group["fused"] = self.fused
        return model

    def second_round(self):
        self.model = self.back(self.to_and_fro).train(SWITCH, 40)
        self.handed_through = self.cpp.add(self.name, self.model, 40, 40)
        self.to_and_fro = self.cpp.add(self.name, self.model, 40, STEPS)

    def differences(self):
        def found(model):
            return difference(model, self.stayed, only_parameters=not self.fused)

        assert difference(self.back(self.handed_through), self.model) == 0, "a state that is only handed through is the same"
        which = "fused" if self.fused else "default"
        yield f"Python {which} -> C++", found(self.back(self.ends_there))
        yield f"C++ -> Python {which}", found(self.back(self.begins_there).train(SWITCH, STEPS))
        yield f"Python {which} -> C++ -> Python -> C++", found(self.back(self.to_and_fro))


def main():
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        cpp = Cpp(sys.argv[1], Path(temporary))
        runs = [Run(name, fused, cpp) for name in CASES for fused in (True, None)]
        cpp.round()
        for run in runs:
            run.second_round()
        cpp.round()
        for run in runs:
            for way, found in run.differences():
                holds = found <= (0.0 if run.fused else TOLERANCE)
                failures += not holds
                size = "bit for bit" if found == 0 else f"relative difference {found:.2g}"
                print(f"{way:40} {run.name:14} {size}{'' if holds else '   TOO MUCH'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
