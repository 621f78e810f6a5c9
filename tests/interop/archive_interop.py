#!/usr/bin/env python3
"""Checkpoint files between libmarlin and Python's torch, both ways. Usage: archive_interop.py ARCHIVE_TOOL"""
import binascii
import collections
import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest
import warnings
import zipfile

warnings.simplefilter("ignore")  # that there is no numpy, that complex32 is experimental, that torch.jit is old
import torch
from torch import nn

TOOL = sys.argv.pop()
INF, NAN = float("inf"), float("nan")


def canonical(value, storages=None):
    """Text that is equal if kinds, order, bits, strides, offsets, sizes of storages and their sharing are."""
    storages = {} if storages is None else storages
    if isinstance(value, float):
        return "f" + struct.pack(">d", value).hex()
    if value is None or isinstance(value, (bool, int, str)):
        return repr(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().resolve_conj().resolve_neg()
        storage = value.untyped_storage()
        number = storages.setdefault(storage._cdata, (len(storages), storage))[0]  # kept, so that no other takes its place
        flat = value.contiguous()
        start = flat.storage_offset() * flat.element_size()
        data = bytes(flat.untyped_storage())[start : start + flat.numel() * flat.element_size()]
        return f"t({value.dtype} {list(value.shape)} {value.stride()} {value.storage_offset()} #{number} {storage.nbytes()} {binascii.crc32(data)})"
    if isinstance(value, (tuple, list)):
        brackets = "()" if isinstance(value, tuple) else "[]"
        return brackets[0] + "".join(canonical(x, storages) + "," for x in value) + brackets[1]
    if isinstance(value, dict):
        kind = "Ordered" if type(value) is collections.OrderedDict else ""
        text = kind + "{" + "".join(canonical(k) + ":" + canonical(x, storages) + "," for k, x in value.items()) + "}"
        attributes = getattr(value, "__dict__", None)
        return text + ("@" + canonical(attributes, storages) if attributes else "")
    raise TypeError(type(value))


def run_tool(*arguments):
    done = subprocess.run([TOOL, *arguments], capture_output=True, text=True, timeout=120)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"archive_tool {arguments}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.returncode, done.stdout


# What archive_tool.cpp writes.
def patterned(dtype, size):
    bits = 1 if dtype == torch.bool else 255
    item_size = torch.empty(0, dtype=dtype).element_size()
    data = torch.tensor([(i * 37 + 11) & bits for i in range(size * item_size)], dtype=torch.uint8)
    return torch.empty(0, dtype=dtype).set_(data.untyped_storage(), 0, (size,), (1,))


def written_by_tool():
    names = """float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 complex32 uint16 uint32 uint64
        float8_e5m2 float8_e4m3fn float8_e5m2fnuz float8_e4m3fnuz float8_e8m0fnu float4_e2m1fn_x2 bcomplex32
        bits8 bits16 bits1x8 bits2x4 bits4x2""".split()
    base = torch.arange(24.0).reshape(4, 6)
    z = torch.complex(torch.arange(3.0), torch.arange(3.0) + 1)
    odd = torch.arange(10, dtype=torch.uint8)
    ordered = collections.OrderedDict(weight=torch.ones(2))
    ordered._metadata = collections.OrderedDict([("", {"version": 1}), ("1", {"version": 2})])
    return {
        "dtypes": {name: patterned(getattr(torch, name), 6) for name in names},
        "tensors": {
            "base": base,
            "slice": base[1:3, 2:5],
            "transposed": base.t(),
            "steps": base[:, ::2],
            "as int": base.view(torch.int32),
            "expanded": torch.ones(1).expand(5),
            "scalar": torch.tensor(3.5),
            "empty": torch.empty(2, 0, 3),
            "parameter": torch.ones(2),
            "conj": z.conj().resolve_conj(),
            "neg": z.conj().imag.resolve_neg(),
            "odd": torch.empty(0).set_(odd.untyped_storage(), 0, (2,), (1,)),
            "list": [base[1], torch.zeros(2)],
        },
        "values": {
            "none": None,
            "bools": (True, False),
            "ints": [0, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63)],
            "floats": (0.1, -0.0, INF, -INF, NAN),
            "text": "é漢😀",
            "empty": ("", [], (), {}),
            "keys": {0: 1, -5: 2, "0": 3},
            "nested": (1, (2.5, "x"), [{"k": [1]}]),
        },
        "ordered": ordered,
    }


def corpus():
    """What Python programs put into checkpoints."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(5))
    model(torch.randn(2, 3, 6, 6))

    def stepped(kind, **options):
        optimizer = kind(model.parameters(), **options)
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        return optimizer.state_dict()

    optim, lrs = torch.optim, torch.optim.lr_scheduler
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    yield "module with batch norm", model.state_dict()
    yield "module with tied weights", tied.state_dict()
    yield "big module", nn.Sequential(*[nn.Linear(4, 4) for _ in range(200)]).state_dict()
    yield "adamw", stepped(optim.AdamW, lr=1e-3)
    yield "adamw, amsgrad, lr a tensor", stepped(optim.AdamW, lr=torch.tensor(1e-3), amsgrad=True, foreach=False)
    yield "sgd", stepped(optim.SGD, lr=0.1)
    yield "sgd with momentum", stepped(optim.SGD, lr=0.1, momentum=0.9)

    schedulers = {
        "StepLR": lambda o: lrs.StepLR(o, 3),
        "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 4, 4]),
        "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 10),
        "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=20),
        "LambdaLR": lambda o: lrs.LambdaLR(o, lambda epoch: 0.9**epoch),
        "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o),
        "SequentialLR": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o, 0.1, total_iters=3), lrs.CosineAnnealingLR(o, 10)], [3]),
        "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 5),
        "ChainedScheduler": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)]),
    }
    for name, make in schedulers.items():
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = make(optimizer)
        for _ in range(5):
            optimizer.step()
            scheduler.step(1.0) if isinstance(scheduler, lrs.ReduceLROnPlateau) else scheduler.step()
        yield name, scheduler.state_dict()

    yield "nested", {
        "model": model.state_dict(), "optimizer": stepped(optim.AdamW), "epoch": 3, "ints": [0, 127, 255, 65535, 2**31, -1, -300, 2**40, -(2**62)],
        "floats": [0.1, INF, NAN], "none": None, "tuples": ((), (1,), (1, 2), (1, 2.0, "x"), (1, 2, 3, 4, (5,))), "lists": [1, [2, [3]], {}, []],
        "bools": (True, False), "text": "é漢😀", "empty text": "", 1: "a key that is a number", -5: "negative", "size": torch.Size([2, 3]),
        "long": "x" * 300, "many": list(range(5000)), "same": ["again"] * 3, "counter": collections.Counter("abca"),
    }  # fmt: skip
    base, weight = torch.arange(24.0).reshape(4, 6), torch.randn(3, 4)
    yield "tensors", {
        "base": base, "view": base[1:3, 2:5], "transposed": base.t(), "row": base[2], "expanded": torch.ones(1).expand(5), "scalar": torch.tensor(3.5),
        "empty": [torch.empty(0), torch.empty(0, 3), torch.empty(2, 0, 3)], "bfloat16": torch.randn(5).bfloat16(), "half": torch.randn(5).half(),
        "double": torch.randn(5).double(), "int8": torch.tensor([-1, 2], dtype=torch.int8), "uint8": torch.tensor([1, 255], dtype=torch.uint8),
        "int16": torch.tensor([1, -2], dtype=torch.int16), "int32": torch.tensor([1, -2], dtype=torch.int32), "bool": torch.tensor([True, False]),
        "complex": [torch.randn(2, dtype=torch.complex64), torch.randn(2, dtype=torch.complex128)], "parameter": nn.Parameter(weight),
        "frozen": nn.Parameter(torch.ones(2), requires_grad=False), "same": weight, "same again": weight, "tied": [weight, weight[1:]],
        "rng": torch.get_rng_state(), "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "grad": torch.ones(2, requires_grad=True),
    }  # fmt: skip
    yield "low precision", {
        "float8_e4m3fn": torch.randn(4).to(torch.float8_e4m3fn), "float8_e5m2": torch.randn(4).to(torch.float8_e5m2),
        "float8_e8m0fnu": torch.randn(4).to(torch.float8_e8m0fnu), "uint16": torch.arange(4).to(torch.uint16), "uint32": torch.arange(4).to(torch.uint32),
        "uint64": torch.arange(4).to(torch.uint64), "complex32": torch.randn(3).to(torch.complex32),
    }  # fmt: skip


def refused():
    """What is no state dict's, and the word by which it must be refused."""
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = 1
    yield "dtype", {"d": torch.float32}, "torch.float32"
    yield "device", {"d": torch.device("cpu")}, "a device (torch.device)"
    yield "set", {"s": {1, 2}}, "a Python set (__builtin__.set)"
    yield "bytes", {"b": b"a\x80"}, "Python bytes (_codecs.encode)"
    yield "complex", {"c": 1j}, "a Python complex number (__builtin__.complex)"
    yield "conjugate", {"c": torch.randn(2, dtype=torch.complex64).conj()}, "a conjugate or negative view"
    yield "parameter with attribute", {"p": parameter}, "_rebuild_parameter_with_state"
    yield "sparse", {"s": torch.eye(3).to_sparse()}, "a sparse tensor (torch._utils._rebuild_sparse_tensor)"
    yield "quantised", {"q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "_rebuild_qtensor"
    yield "meta", {"m": torch.empty(2, device="meta")}, "a meta tensor"
    yield "large integer", {"i": 2**70}, "more than 64 bits"
    yield "key that is a float", {1.5: 2}, "a dict key"
    yield "key that is a tuple", {(1, 2): 3}, "a dict key"
    yield "storage", {"u": torch.ones(2).untyped_storage()}, "as a value"
    yield "module", nn.Linear(2, 2), "torch.nn.modules.linear.Linear"
    yield "function", {"f": os.system}, "posix.system"
    yield "defaultdict", {"d": collections.defaultdict(int)}, "collections.defaultdict"
    yield "tensor alone", torch.ones(2), "does not hold a dict"


class ArchiveInterop(unittest.TestCase):
    maxDiff = 3000

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="marlin_interop_")
        self.addCleanup(folder.cleanup)
        self.file, self.again = os.path.join(folder.name, "first.pt"), os.path.join(folder.name, "again.pt")

    def check_loads(self, file, expected):
        for options in ({}, {"mmap": True}):
            loaded = torch.load(file, weights_only=True, **options)
            self.assertEqual(canonical(loaded), canonical(expected), f"torch.load with {options}")
        with zipfile.ZipFile(file) as archive:
            self.assertIsNone(archive.testzip())

    def test_python_loads_what_libmarlin_writes(self):
        self.assertEqual(run_tool("write", self.file), (0, ""))
        self.check_loads(self.file, written_by_tool())
        self.assertEqual(canonical(torch.load(self.file, weights_only=False)), canonical(written_by_tool()))
        for parameter in torch.load(self.file)["tensors"].values():
            self.assertFalse(torch.is_tensor(parameter) and parameter.requires_grad)

    def test_the_layout_is_that_of_torch_save(self):
        run_tool("write", self.file)
        with zipfile.ZipFile(self.file) as archive:
            entries = archive.infolist()
            names = [entry.filename.removeprefix("checkpoint/") for entry in entries]
            storages = [name for name in names if name.startswith("data/")]
            first = ["data.pkl", ".format_version", ".storage_alignment", "byteorder"]
            self.assertEqual(names, [*first, *storages, "version", ".data/serialization_id", "marlin.json"])
            self.assertEqual(storages, [f"data/{i}" for i in range(len(storages))])
            with open(self.file, "rb") as file:
                data = file.read()
            for entry in entries:
                name_size, extra_size = struct.unpack_from("<HH", data, entry.header_offset + 26)
                self.assertEqual((entry.header_offset + 30 + name_size + extra_size) % 64, 0, entry.filename)
            record = json.loads(archive.read("checkpoint/marlin.json"))
        self.assertEqual((record["format_version"], record["index"], record["metrics"]), (1, 3, {"val/loss": 0.25, "val/nan": "nan"}))

    def test_offsets_that_python_computes_instead_of_reading_are_right(self):
        run_tool("write", self.file)
        with torch.utils.serialization.config.patch({"load.calculate_storage_offsets": True}):
            self.assertEqual(canonical(torch.load(self.file, weights_only=True, mmap=True)), canonical(written_by_tool()))

    def test_what_python_writes_comes_back_equal(self):
        for name, state in corpus():
            with self.subTest(name):
                torch.save(state, self.file)
                expected = torch.load(self.file, weights_only=True)
                if name == "nested":
                    expected["size"] = tuple(expected["size"])
                    expected["counter"] = dict(expected["counter"])
                self.assertEqual(run_tool("rewrite", self.file, self.again), (0, ""))
                self.check_loads(self.again, expected)

    def test_modules_and_optimizers_take_what_comes_back(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(5, 3)).sum().backward()
        optimizer.step()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, self.file)
        self.assertEqual(run_tool("rewrite", self.file, self.again), (0, ""))
        state = torch.load(self.again, weights_only=True)
        other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        other_optimizer = torch.optim.AdamW(other.parameters())
        other.load_state_dict(state["model"])
        other_optimizer.load_state_dict(state["optimizer"])
        self.assertEqual(canonical(other.state_dict()), canonical(model.state_dict()))
        self.assertEqual(canonical(other_optimizer.state_dict()), canonical(optimizer.state_dict()))

    def check_refused(self, name, word):
        status, output = run_tool("rewrite", self.file, self.again)
        self.assertEqual(status, 1, name)
        self.assertIn(word, output, name)
        self.assertIn(self.file, output, name)
        self.assertEqual(output.count("\n"), 1, "a message is one line")
        self.assertFalse(os.path.exists(self.again))

    def test_what_is_no_state_dict_is_refused_by_name(self):
        for name, value, word in refused():
            with self.subTest(name):
                torch.save(value, self.file)
                self.check_refused(name, word)

    def test_other_formats_are_refused_by_name(self):
        torch.save({"a": torch.ones(2)}, self.file, _use_new_zipfile_serialization=False)
        self.check_refused("legacy", "before PyTorch 1.6")
        torch.save({"a": torch.ones(2)}, self.file, pickle_protocol=4)
        self.check_refused("protocol 4", "pickle protocol 4")
        torch.serialization.set_crc32_options(False)
        torch.save({"a": torch.ones(2)}, self.file)
        torch.serialization.set_crc32_options(True)
        self.check_refused("without checksums", "holds no checksums")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), self.file)
        self.check_refused("TorchScript", "a TorchScript or torch::save archive")

    def test_a_zip_file_that_was_unpacked_and_packed_again_is_read(self):
        state = {"a": torch.randn(5), "b": torch.arange(3)}
        torch.save(state, self.file)
        with zipfile.ZipFile(self.file) as source, zipfile.ZipFile(self.file + ".zip", "w", zipfile.ZIP_STORED) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry.filename))
        self.assertEqual(run_tool("rewrite", self.file + ".zip", self.again), (0, ""))
        self.check_loads(self.again, state)


if __name__ == "__main__":
    unittest.main(warnings="ignore")
