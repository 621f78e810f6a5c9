"""A model's training goes from Python to marlin::optim and back, and ends at the same parameters as one that stayed in Python.

usage: fused_interop.py OPTIMIZER_TOOL       (tests/interop/optimizer_tool.cpp; it explains the files)

With Python's fused=True the parameters and states are equal bit for bit; with Python's default they differ by no more than
1e-6 of the tensor's greatest after 50 steps. Exits with 1 if any does.
"""

import copy
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


def main():
    tool = sys.argv[1]
    failures = 0

    def judge(what, name, found, limit):
        nonlocal failures
        failures += not found <= limit
        print(f"{what:34} {name:16} {'bit for bit' if found == 0 else f'relative difference {found:.2g}'}{'' if found <= limit else '   TOO MUCH'}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def in_cpp(name, model, begin, end):
            """The model after C++ went on with it."""
            there, back = folder / f"{name}.there.pt", folder / f"{name}.back.pt"
            model.save(there, begin, end)
            subprocess.run([tool, "train", name, there, back], check=True)
            return back

        for name in CASES:
            for fused, limit in ((True, 0.0), (None, TOLERANCE)):
                which = "fused" if fused else "default"
                stayed = Model(name, fused=fused).train(0, STEPS)
                # Python begins, C++ ends.
                back = in_cpp(name, Model(name, fused=fused).train(0, SWITCH), SWITCH, STEPS)
                judge(f"Python {which} -> C++", name, difference(Model(name).load(back), stayed, fused is None), limit)
                # C++ begins, Python ends.
                back = in_cpp(name, Model(name, fused=fused), 0, SWITCH)
                model = Model(name).load(back)
                groups = model.optimizer.param_groups
                assert all(group["fused"] is True for group in groups), "ours says that it is fused"
                assert groups[1]["lr"] == 0.02 and len(groups) == 2
                for group in groups:
                    group["fused"] = fused
                judge(f"C++ -> Python {which}", name, difference(model.train(SWITCH, STEPS), stayed, fused is None), limit)
                # There and back again, and there.
                model = Model(name, fused=fused).train(0, 10)
                model = Model(name).load(in_cpp(name, model, 10, SWITCH))
                for group in model.optimizer.param_groups:
                    group["fused"] = fused
                model.train(SWITCH, 40)
                before = copy.deepcopy(model.tensors())
                model = Model(name).load(in_cpp(name, model, 40, 40))
                assert all(torch.equal(value, before[key]) for key, value in model.tensors().items()), "a state that is only handed through is the same"
                judge(f"Python {which} -> C++ -> Python -> C++", name, difference(Model(name).load(in_cpp(name, model, 40, STEPS)), stayed, fused is None), limit)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
