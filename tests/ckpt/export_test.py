"""marlin-ckpt export"""

import json
import unittest

from ckpt_support import CkptTest
from cli_support import STEPS

# Of the format's description: a tensor's dtype there, and PyTorch's.
DTYPES = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "I16": "int16", "U16": "uint16",
          "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64"}


def read_safetensors(file):
    """(tensors, metadata), by the format's description, checked against its every rule."""
    import torch

    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert size <= 100_000_000 and 8 + size <= len(content), "the header's length"
    assert size % 8 == 0, "the header is padded"
    text = content[8 : 8 + size].decode()
    assert text.startswith("{") and text.rstrip(" ").endswith("}"), "begins with a brace, ends with spaces only"
    pairs = json.loads(text, object_pairs_hook=lambda found: found)
    assert len({key for key, _ in pairs}) == len(pairs), "no name twice"
    header = json.loads(text)
    metadata = header.pop("__metadata__", {})
    assert all(isinstance(value, str) for value in metadata.values()), "metadata is text"
    data, tensors, end = content[8 + size :], {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        assert begin == end and set(entry) == {"dtype", "shape", "data_offsets"}, "no gaps"
        dtype = getattr(torch, DTYPES[entry["dtype"]])
        count = 1
        for length in entry["shape"]:
            count *= length
        assert stop - begin == count * dtype.itemsize, "as many bytes as elements"
        assert begin % dtype.itemsize == 0, "aligned"
        raw = torch.frombuffer(bytearray(data[begin:stop]), dtype=torch.uint8) if stop > begin else torch.empty(0, dtype=torch.uint8)
        tensors[name], end = raw.view(dtype).reshape(entry["shape"]), stop
    assert end == len(data), "nothing after the last"
    try:
        from safetensors.torch import load_file
    except ImportError:
        return tensors, metadata
    other = load_file(file)
    assert other.keys() == tensors.keys() and all(same_bits(other[name], tensors[name]) for name in other), "Python's safetensors reads the same"
    return tensors, metadata


def same_bits(a, b):
    import torch

    raw = [torch.as_tensor(t).contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def flat(value, path=""):
    """The tensors of what Python loaded, by dotted path; and how many other values there are."""
    import torch

    if isinstance(value, torch.Tensor):
        return {path: value}, 0
    if not isinstance(value, (dict, list, tuple)):
        return {}, 1
    tensors, others = {}, 0
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        more, count = flat(item, f"{path}.{key}" if path else str(key))
        tensors.update(more)
        others += count
    return tensors, others


class ExportTest(CkptTest):
    def assertSame(self, found, expected):
        self.assertEqual(sorted(found), sorted(expected))
        for name, tensor in expected.items():
            self.assertTrue(same_bits(found[name], tensor), name)

    def test_of_a_whole_state_the_module_named_as_in_the_model(self):
        text = self.ckpt("export", self.base / "checkpoint_2.pt", "out.safetensors")
        file = self.path("out.safetensors")
        self.assertEqual(text, f"wrote out.safetensors: 4 tensors, {file.stat().st_size / 1024:.1f} KiB\n")
        tensors, metadata = read_safetensors(file)
        state = self.load(self.base / "checkpoint_2.pt")
        self.assertSame(tensors, state["module_interface_state"])
        self.assertEqual((metadata["format"], metadata["kind"], metadata["epoch"], metadata["global_step"], metadata["run_id"]),
                         ("pt", "full", "2", str(3 * STEPS), state["trainer_state"]["run_id"]))
        listed = {entry["file"]: entry for entry in self.json("ls", self.base)["files"]}
        self.assertEqual(json.loads(metadata["metrics"]), listed["checkpoint_2.pt"]["metrics"])
        # The model file of the same epoch holds the same, and the same state gives the same bytes.
        self.ckpt("export", self.base / "checkpoint_model_2.pt", "model.safetensors")
        self.assertSame(read_safetensors(self.path("model.safetensors"))[0], tensors)
        self.ckpt("export", self.base / "checkpoint_2.pt", "again.safetensors")
        self.assertEqual(self.path("again.safetensors").read_bytes(), file.read_bytes())

    def test_all_tensors_by_their_paths(self):
        document = self.json("export", self.base / "checkpoint_2.pt", "all.safetensors", "--part", "all")
        tensors, _ = read_safetensors(self.path("all.safetensors"))
        expected, others = flat(self.load(self.base / "checkpoint_2.pt"))
        self.assertSame(tensors, expected)
        self.assertIn("module_interface_state.net.0.weight", tensors)
        self.assertTrue(any(name.startswith("trainer_state.optimizers.0.state.0.") for name in tensors), sorted(tensors))
        self.assertEqual((document["tensors"], document["values_left_out"], document["bytes"]), (len(expected), others, self.path("all.safetensors").stat().st_size))
        text = self.ckpt("export", self.base / "checkpoint_2.pt", "all.safetensors", "--part", "all", "--force")
        self.assertIn(f"note: left out, as no tensor: {others} values\n", text)

    def test_every_dtype_view_and_shape_of_python(self):
        import torch

        base = torch.arange(24.0).reshape(4, 6)
        state = {name: torch.arange(16, dtype=torch.uint8).view(getattr(torch, name)) for name in DTYPES.values() if name != "bool"}
        state |= {"bool": torch.tensor([True, False, True]), "scalar": torch.tensor(3.5), "empty": torch.empty(2, 0, 3), "slice": base[1:3, 2:5], "transposed": base.t(), "base": base,
                  "expanded": torch.ones(1).expand(5), "nan": torch.tensor([float("nan"), -0.0]), "odd": torch.arange(3, dtype=torch.uint8), "nested": {"list": [base[0], (base[1], 1)]},
                  'é "quoted" \\ \n': torch.ones(1)}
        self.save(state)
        self.ckpt("export", "python.pt", "out.safetensors")
        tensors, metadata = read_safetensors(self.path("out.safetensors"))
        self.assertSame(tensors, flat(state)[0])
        self.assertEqual(metadata, {"format": "pt"})

    def test_tied_weights_are_written_for_each(self):
        import torch

        weight = torch.arange(1000.0)
        self.save({"a": weight, "b": weight, "part": weight[10:20]})
        self.ckpt("export", "python.pt", "out.safetensors")
        self.assertSame(read_safetensors(self.path("out.safetensors"))[0], {"a": weight, "b": weight, "part": weight[10:20]})

    def test_what_the_format_lacks_is_refused_by_name(self):
        import torch

        for state, *says in (({"fine": torch.ones(1), "a": {"wave": torch.ones(2, dtype=torch.complex64)}}, "tensor 'a.wave'", "no dtype complex64"),
                             ({"half": torch.zeros(2, dtype=torch.float8_e4m3fnuz)}, "tensor 'half'", "no dtype float8_e4m3fnuz"),
                             ({"packed": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "tensor 'packed'", "no dtype float4_e2m1fn_x2"),
                             ({"bits": torch.zeros(2, dtype=torch.uint8).view(torch.bits8)}, "tensor 'bits'", "no dtype bits8"),
                             ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "tensor 'a.b'", "two of this name"),
                             ({"__metadata__": torch.ones(1)}, "'__metadata__'", "keeps this name"),
                             ({"number": 1}, "there is no tensor")):
            with self.subTest(says[0]):
                self.save(state)
                self.refused(1, "export", "python.pt", "out.safetensors", says=("python.pt: ", *says))

    def test_what_is_there_stays_unless_it_is_told_not_to(self):
        self.put("out.safetensors", "precious")
        self.refused(2, "export", self.base / "checkpoint_2.pt", "out.safetensors", says=("'out.safetensors' is there already", "--force"))
        copy = self.copy(self.base / "checkpoint_2.pt", "copy.pt")
        self.refused(2, "export", copy, copy, "--force", says="is the checkpoint itself")
        self.path("link.pt").symlink_to("copy.pt")
        self.refused(2, "export", copy, "link.pt", "--force", says="is the checkpoint itself")
        self.path("folder").mkdir()
        self.refused(2, "export", copy, "folder", "--force", says="'folder' is a folder")
        self.refused(2, "export", copy, "new.safetensors", "--part", "half", says="--part: must be module or all, got 'half'")
        self.ckpt("export", copy, "out.safetensors", "--force")
        self.assertEqual(len(read_safetensors(self.path("out.safetensors"))[0]), 4)

    def test_a_broken_file_or_folder_leaves_nothing(self):
        file = self.copy(self.base / "checkpoint_2.pt", "flipped.pt")
        self.flip(file, self.place_of(file, "data/1")[0])
        self.refused(1, "export", "flipped.pt", "out.safetensors", says="flipped.pt: data/1: its bytes do not match")
        self.refused(1, "export", self.base / "checkpoint_2.pt", "/proc/out.safetensors", says="/proc/out.safetensors")


if __name__ == "__main__":
    unittest.main()
