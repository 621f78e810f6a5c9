#!/usr/bin/env python3
"""safetensors files between libmarlin and Python's package safetensors, both ways. Usage: safetensors_interop.py SAFETENSORS_TOOL"""
import json
import os
import subprocess
import sys
import tempfile
import unittest
import warnings

warnings.simplefilter("ignore")  # that there is no numpy
import safetensors
import torch
from safetensors.torch import load, load_file

TOOL = sys.argv.pop()
DTYPES = "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64 float8_e5m2 float8_e4m3fn float8_e8m0fnu".split()
NEWER = "complex64 float8_e5m2fnuz float8_e4m3fnuz".split()  # read by libmarlin, and not written


def run_tool(*arguments):
    done = subprocess.run([TOOL, *arguments], capture_output=True, text=True, timeout=120)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"safetensors_tool {arguments}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.returncode, done.stdout


def save_file(tensors, file, metadata=None):
    """safetensors.torch.save_file without NumPy, which that asks for to get at the bytes of a tensor: the package writes the file."""
    kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    specs = {}
    for name, tensor in kept.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        specs[name] = safetensors.TensorSpec(dtype=dtype, shape=list(tensor.shape), data_ptr=tensor.data_ptr(), data_len=tensor.nbytes)
    safetensors.serialize_file(specs, file, metadata=metadata)


def raw(tensor):
    tensor = tensor.contiguous()
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def patterned(name, size=6):
    dtype = getattr(torch, name)
    bits = 1 if name == "bool" else 255
    return torch.tensor([(i * 37 + 11) & bits for i in range(size * dtype.itemsize)], dtype=torch.uint8).view(dtype)


def written_by_tool():
    base = torch.arange(24.0).reshape(4, 6)
    return {name: patterned(name) for name in DTYPES} | {
        "base": base, "transposed": base.t(), "slice": base[1:3, 2:5], "scalar": torch.tensor(3.5), "empty": torch.empty(2, 0, 3), 'é漢 "quoted" \\ \n': torch.ones(1)}


def without_hashes(metadata):
    return {key: text for key, text in (metadata or {}).items() if not key.startswith("marlin_")}


class SafetensorsInterop(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="marlin_interop_")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.file, self.again = os.path.join(folder.name, "first.safetensors"), os.path.join(folder.name, "again.safetensors")

    def assertSame(self, found, expected):
        self.assertEqual(found.keys(), expected.keys())
        for name, tensor in expected.items():
            self.assertEqual((found[name].dtype, found[name].shape, raw(found[name])), (tensor.dtype, tensor.shape, raw(tensor)), name)

    def check_opens(self, file, expected, metadata):
        """By each of the package's readers."""
        self.assertSame(load_file(file), expected)
        self.assertSame(torch.load(file), expected)  # it takes files of this extension, too
        if not any(tensor.dtype == torch.float8_e8m0fnu for tensor in expected.values()):  # which this one lacks
            with open(file, "rb") as stream:
                self.assertSame(load(stream.read()), expected)
        with safetensors.safe_open(file, framework="pt") as opened:
            self.assertSame({name: opened.get_tensor(name) for name in opened.keys()}, expected)
            self.assertEqual(without_hashes(opened.metadata()), metadata)

    def test_python_opens_what_libmarlin_writes(self):
        self.assertEqual(run_tool("write", self.file), (0, ""))
        self.check_opens(self.file, written_by_tool(), {"format": "pt", "note": 'é "quoted"'})

    def test_what_python_writes_comes_back_equal(self):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(4, 5)).state_dict()
        many = {f"layers.{i}.weight": torch.randn(i % 5 + 1, i % 7) for i in range(300)}
        for name, state, metadata in (("dtypes", {name: patterned(name) for name in DTYPES}, {"format": "pt"}), ("model", model, None), ("many", many, {"a": "1", "b": 'é "x"'}),
                                      ("scalars", {"s": torch.tensor(3.5), "i": torch.tensor(7)}, None), ("empty", {}, None), ("names", {"": torch.ones(1), "é.漢": torch.ones(2)}, {"": ""}),
                                      ("odd sizes", {"a": torch.arange(3, dtype=torch.uint8), "b": torch.ones(2), "c": torch.ones(1, dtype=torch.float16)}, None)):
            with self.subTest(name):
                save_file(state, self.file, metadata)
                self.assertEqual(run_tool("rewrite", self.file, self.again), (0, ""))
                self.check_opens(self.again, state, metadata or {})

    def test_dtypes_that_not_all_readers_know_are_read_and_refused_by_name_when_written(self):
        for name in NEWER:
            save_file({"t": patterned(name)}, self.file)
            status, output = run_tool("rewrite", self.file, self.again)
            self.assertEqual((status, output), (1, f"unsupported: tensor 't': many readers of safetensors know no dtype {name}\n"))
            self.assertFalse(os.path.exists(self.again))
        save_file({"t": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, self.file)
        self.assertEqual(run_tool("rewrite", self.file, self.again), (1, f"unsupported: {self.file}: tensor 't': dtype 'F4' is none that is read here\n"))

    def test_a_file_that_python_wrote_anew_with_stale_hashes_is_told(self):
        run_tool("write", self.file)
        with safetensors.safe_open(self.file, framework="pt") as opened:
            metadata = opened.metadata()
        changed = load_file(self.file)
        changed["base"] = changed["base"] + 1
        save_file(changed, self.file, metadata)
        status, output = run_tool("rewrite", self.file, self.again)
        self.assertEqual(status, 1)
        self.assertIn("corrupt: " + self.file + ": header: ", output)
        save_file(changed, self.file, without_hashes(metadata))
        self.assertEqual(run_tool("rewrite", self.file, self.again), (0, ""))
        self.check_opens(self.again, changed, without_hashes(metadata))

    def test_what_python_refuses_libmarlin_refuses(self):
        def file_of(header, data=b""):
            text = header.encode()
            return len(text).to_bytes(8, "little") + text + data

        entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
        for name, content in (("cut", file_of("{" + entry + "}")), ("more", file_of("{" + entry + "}", b"12345")), ("no header", b"\xff" * 64), ("empty", b""),
                              ("gap", file_of('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"12345678")),
                              ("overlap", file_of("{" + entry + ',"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}', b"123456")),
                              ("shape", file_of('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"1234")), ("metadata", file_of('{"__metadata__":{"a":1}}')),
                              ("UTF-8", file_of("{}").replace(b"{}", b'{"\xff\xff":{}}').replace(b"\x02", b"\x09", 1))):
            with self.subTest(name):
                with open(self.file, "wb") as stream:
                    stream.write(content)
                with self.assertRaises(Exception):
                    load_file(self.file)
                status, output = run_tool("rewrite", self.file, self.again)
                self.assertEqual((status, output.count("\n")), (1, 1))
                self.assertIn("corrupt: " + self.file + ": ", output)

    def test_python_opens_both_files_of_a_checkpoint(self):
        self.assertEqual(run_tool("checkpoint", self.folder), (0, ""))
        self.assertEqual(sorted(os.listdir(self.folder)), ["checkpoint_3.json", "checkpoint_3.safetensors", "checkpoint_model_3.safetensors"])
        model = {"net.0.weight": torch.arange(6.0).reshape(2, 3), "net.0.bias": torch.ones(2)}
        module = torch.nn.Module()
        module.net = torch.nn.Sequential(torch.nn.Linear(3, 2))
        module.load_state_dict(load_file(os.path.join(self.folder, "checkpoint_model_3.safetensors")), strict=True)
        self.assertSame(module.state_dict(), model)
        tensors = load_file(os.path.join(self.folder, "checkpoint_3.safetensors"))
        expected = {"module_interface_state." + name: tensor for name, tensor in model.items()}
        expected |= {"trainer_state.optimizers.0.state.0.step": torch.tensor(4.0), "trainer_state.optimizers.0.state.0.exp_avg": torch.full((2, 3), 0.5)}
        self.assertSame(tensors, expected)
        with open(os.path.join(self.folder, "checkpoint_3.json")) as stream:
            record = json.load(stream)
        self.assertEqual((record["kind"], record["epoch"], record["global_step"], record["run_id"], list(record["records"])), ("full", 3, 40, "r1", ["checkpoint_3.safetensors"]))

        def python(value):
            """What a program needs to make a state of the record and the tensors."""
            if isinstance(value, list):
                return [python(item) for item in value]
            if not isinstance(value, dict):
                return value
            if "dict" in value:
                return {key: python(item) for key, item in value["dict"]}
            if "tuple" in value:
                return tuple(python(item) for item in value["tuple"])
            return float(value["float"]) if "float" in value else tensors[value["tensor"]]

        archive = os.path.join(self.folder, "state.pt")
        self.assertEqual(run_tool("archive", self.folder, archive), (0, ""))
        self.assertEqual(str(python(record["state"])), str(torch.load(archive, weights_only=True)))


if __name__ == "__main__":
    unittest.main(warnings="ignore")
