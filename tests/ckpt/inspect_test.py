"""marlin-ckpt inspect"""

import collections
import json
import unittest
import zipfile

from ckpt_support import CkptTest


def python_of(node):
    """What a node of the JSON tree stands for; a tensor as its dtype and shape."""
    kind = node["kind"]
    if kind == "dict":
        return (collections.OrderedDict if node["ordered"] else dict)((entry["key"], python_of(entry)) for entry in node["entries"])
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](map(python_of, node["items"]))
    if kind == "tensor":
        return ("tensor", node["dtype"], node["shape"], node["bytes"])
    return float(node["value"]) if kind == "float" else node["value"]


def without_values(value):
    """The same of what Python loaded."""
    import torch

    if isinstance(value, torch.Tensor):
        return ("tensor", str(value.dtype).removeprefix("torch."), list(value.shape), value.nbytes)
    if isinstance(value, dict):
        return type(value)((key, without_values(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_values, value))
    return value


class InspectTest(CkptTest):
    def tree(self, file):
        return self.json("inspect", file)["state"]

    def test_the_tree_is_what_python_loads(self):
        for name in ("checkpoint_2.pt", "checkpoint_model_2.pt"):
            with self.subTest(name):
                found, expected = python_of(self.tree(self.base / name)), without_values(self.load(self.base / name))
                self.assertEqual(found, expected)
                self.assertEqual(repr(found), repr(expected), "order and kinds, too")

    def test_the_record_is_that_of_the_file(self):
        file = self.base / "checkpoint_2.pt"
        document = self.json("inspect", file)
        record = json.loads(zipfile.ZipFile(file).read("checkpoint/marlin.json"))
        del record["xxh3_128"]
        self.assertEqual(document["record"], record)
        self.assertEqual((document["kind"], document["bytes"]), ("full", file.stat().st_size))
        text = self.ckpt("inspect", file)
        for key in ("format_version", "kind", "index", "epoch", "global_step", "cause", "run_id", "marlin_version", "torch_version", "metrics.val/accuracy", "records"):
            self.assertRegex(text, rf"(?m)^  {key} +\S")

    def test_people_see_names_shapes_dtypes_bytes_and_values(self):
        text = self.ckpt("inspect", self.base / "checkpoint_2.pt")
        self.assertRegex(text, r"(?m)^module_interface_state +OrderedDict +4 entries$")
        self.assertRegex(text, r"(?m)^  net\.0\.weight +float32 +\[128, 64\] +32768$")
        self.assertRegex(text, r"(?m)^  last_epoch +int +2$")
        self.assertRegex(text, r"(?m)^  in_epoch +bool +false$")
        self.assertRegex(text, r'(?m)^  run_id +string +"\w+"$')
        self.assertRegex(text, r"\n\d+ tensors of \d+\.\d KiB, \d+ other values\n\Z")

    def test_long_lists_are_cut_for_people_and_whole_for_scripts(self):
        import torch

        state = {"numbers": list(range(1000)), "tensors": [torch.full((2,), i) for i in range(30)], "pairs": [(i, str(i)) for i in range(20)], "text": "x" * 500, "none": None,
                 "empty": [[], (), {}]}
        file = self.save(state)
        self.assertEqual(python_of(self.tree(file)), without_values(state))
        text = self.ckpt("inspect", file)
        self.assertIn("no record (marlin.json)", text)
        self.assertRegex(text, r"(?m)^numbers +list +\[0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\] 1000 items$")
        self.assertRegex(text, r"(?m)^  \.\.\. and 22 more")
        self.assertRegex(text, r"(?m)^  7 +tuple +\[7, \"7\"\]$")
        self.assertNotIn("x" * 100, text)
        self.assertRegex(text, r"\n30 tensors of 480 B, 1042 other values\n\Z")
        document = self.json("inspect", file)
        self.assertEqual((document["tensors"], document["tensor_bytes"], document["values"], document["record"]), (30, 480, 1042, None))

    def test_numbers_that_json_lacks_and_keys_of_both_kinds(self):
        import math

        state = {"nan": math.nan, "inf": -math.inf, "zero": -0.0, "big": 2**63 - 1, "small": -(2**63), 7: 1, "7": 2, "\x1b[31mé": "a\nb\x7f\u009b"}
        file = self.save(state)
        entries = {str(entry["key"]) + entry["kind"]: entry.get("value") for entry in self.tree(file)["entries"]}
        self.assertEqual((entries["nanfloat"], entries["inffloat"]), ("nan", "-inf"))
        self.assertEqual(math.copysign(1, entries["zerofloat"]), -1)
        self.assertEqual((entries["bigint"], entries["smallint"]), (2**63 - 1, -(2**63)))
        self.assertEqual([entry["key"] for entry in self.tree(file)["entries"] if entry["key"] in (7, "7")], [7, "7"])
        text = self.ckpt("inspect", file)
        self.assertRegex(text, r'(?m)^\\x1b\[31mé +string +"a\\nb\\x7f\\x9b"$')

    def test_shared_storage_is_told(self):
        import torch

        base = torch.arange(6.0)
        file = self.save({"a": base, "b": [base[2:]], "c": base.clone(), "d": base.view(2, 3)})
        entries = {entry["key"]: entry for entry in self.tree(file)["entries"]}
        self.assertEqual([entries[key].get("shares_storage_with") for key in "acd"], [None, None, "a"])
        self.assertEqual(entries["b"]["items"][0]["shares_storage_with"], "a")
        self.assertRegex(self.ckpt("inspect", file), r"(?m)^  0 +float32 +\[4\] +16 +shares storage with a$")

    def test_every_dtype_has_pythons_name(self):
        import torch

        names = ("float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 complex32 uint16 uint32 uint64 "
                 "float8_e5m2 float8_e4m3fn float8_e5m2fnuz float8_e4m3fnuz float8_e8m0fnu float4_e2m1fn_x2 bits8 bits16 bits1x8 bits2x4 bits4x2").split()
        file = self.save({name: torch.zeros(16, dtype=torch.uint8).view(getattr(torch, name)) for name in names})
        self.assertEqual({entry["key"]: entry["dtype"] for entry in self.tree(file)["entries"]}, {name: name for name in names})
        self.ckpt("inspect", file)

    def test_attributes_are_shown(self):
        import torch

        file = self.save(torch.nn.Sequential(torch.nn.Linear(1, 1)).state_dict())
        self.assertEqual(python_of(self.tree(file)["attributes"])["_metadata"][""], {"version": 1})
        self.assertRegex(self.ckpt("inspect", file), r"(?m)^  _metadata +OrderedDict +2 entries$")

    def test_a_broken_file_is_one_line(self):
        file = self.copy(self.base / "checkpoint_2.pt", "cut.pt")
        self.cut(file, 10_000)
        self.refused(1, "inspect", "cut.pt", says=("cut.pt: ", "truncated"))
        self.refused(1, "inspect", "cut.pt", "--json", says=("cut.pt: ", "truncated"))
        self.put("text.pt", "hello")
        self.refused(1, "inspect", "text.pt", says="text.pt: ")


if __name__ == "__main__":
    unittest.main()
