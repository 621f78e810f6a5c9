"""Optimizer states go from C++ to Python and back, and training goes on from them to the same parameters.

usage: optimizer_interop.py OPTIMIZER_TOOL       (tests/interop/optimizer_tool.cpp; it explains the files)
Exits with 1 if any parameter differs by more than 1e-6 of the tensor's greatest.
"""

import copy
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
import torch  # noqa: E402

TOLERANCE = 1e-6

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
    "rmsprop": (torch.optim.RMSprop, dict(lr=0.01, alpha=0.9)),
    "rmsprop_centered": (torch.optim.RMSprop, dict(lr=0.01, momentum=0.8, centered=True, weight_decay=0.01)),
}
# What Python users may have set besides: it is in the file, and must not disturb.
VARIANTS = {
    "plain": (dict(), set(CASES)),
    "foreach": (dict(foreach=True), set(CASES)),
    "fused": (dict(fused=True), {name for name in CASES if not name.startswith("rmsprop")}),
    "tensor_lr": (dict(lr=torch.tensor(0.01)), {"sgd", "adam", "adamw"}),
    "named": (dict(), {"sgd_momentum", "adamw"}),
    "scheduled": (dict(), {"sgd_momentum", "adamw"}),
}


def parameters():
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (4,), (5,), (2, 4))]


def groups_of(params, named=False):
    first, second = params[:3], params[3:]
    if named:
        first, second = ([(f"{which}.{i}", p) for i, p in enumerate(group)] for which, group in (("a", first), ("b", second)))
    return [{"params": first}, {"params": second}]


def gradients_for(params, steps):
    return [[None if i == 2 else torch.randn(p.shape) for i, p in enumerate(params)] for _ in range(steps)]


def train(optimizer, params, gradients, after_step=lambda: None):
    for step in gradients:
        for param, gradient in zip(params, step):
            param.grad = None if gradient is None else gradient.clone()  # foreach SGD changes it in place
        optimizer.step()
        after_step()


def difference(params, expected):
    return max(((p.detach() - e).abs().max() / e.abs().max()).item() for p, e in zip(params, expected))


def to_python(name, file):
    """C++ wrote, Python goes on."""
    kind, options = CASES[name]
    saved = torch.load(file, weights_only=True)
    params = parameters()
    # Only the file can bring the right hyper-parameters.
    optimizer = kind(groups_of(params), lr=0.5)
    with torch.no_grad():
        for param, value in zip(params, saved["parameters"]):
            param.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])

    reference = kind(groups_of(parameters()), **options)
    for index, group in enumerate(optimizer.param_groups):
        for key, value in reference.param_groups[index].items():
            if key != "params" and not (key == "lr" and index == 1):
                assert group[key] == value and type(group[key]) in (type(value), float), f"{key}: {group[key]!r}, not {value!r}"
    assert optimizer.param_groups[1]["lr"] == 0.02
    train(optimizer, params, saved["gradients"])
    state = optimizer.state_dict()["state"]
    assert all(entry["step"].item() == 6 for key, entry in state.items() if "step" in entry and key != 2), state
    return difference(params, saved["expected"])


def from_python(name, variant, file):
    """Python writes what C++ shall go on from."""
    kind, options = CASES[name]
    extra, _ = VARIANTS[variant]
    torch.manual_seed(2)
    params = parameters()
    optimizer = kind(groups_of(params, named=variant == "named"), **{**options, **extra})
    after_step = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9).step if variant == "scheduled" else lambda: None
    train(optimizer, params, gradients_for(params, 3), after_step)
    root = {"parameters": [p.detach().clone() for p in params], "gradients": gradients_for(params, 3)}
    root["optimizer"] = copy.deepcopy(optimizer.state_dict())
    train(optimizer, params, root["gradients"])
    root["expected"] = [p.detach().clone() for p in params]
    torch.save(root, file)


def main():
    tool = sys.argv[1]
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([tool, "write", folder], check=True)
        written = {file.stem: file for file in folder.iterdir()}
        assert set(written) == set(CASES), f"the two halves know other cases: {sorted(written)}"
        for name, file in written.items():
            found = to_python(name, file)
            failures += not found <= TOLERANCE
            print(f"C++ -> Python  {name:32} relative difference {found:.2g}", flush=True)
        files = []
        for variant, (_, names) in VARIANTS.items():
            for name in sorted(names):
                files.append(folder / f"{name}.{variant}.pt")
                from_python(name, variant, files[-1])
        failures += subprocess.run([tool, "check", *files]).returncode != 0
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
