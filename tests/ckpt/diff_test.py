"""marlin-ckpt diff"""

import collections
import math
import struct
import unittest

from ckpt_support import CkptTest


class DiffTest(CkptTest):
    def diff(self, a, b):
        """The differences of two states that Python writes, by path; the text says the same."""
        self.save(a, "a.pt")
        self.save(b, "b.pt")
        text = self.run_ckpt("diff", "a.pt", "b.pt")
        document = self.json("diff", "a.pt", "b.pt", code=text.code)
        self.assertEqual((text.code, text.err), (1 if document["differences"] else 0, ""), str(text))
        self.assertEqual((document["equal"], text.out.startswith("equal: ")), (text.code == 0, text.code == 0))
        for difference in document["differences"]:
            self.assertRegex(text.out, rf"(?m)^{difference['path']} ")
        return {difference["path"]: difference for difference in document["differences"]}

    def test_a_file_and_its_copy_are_equal(self):
        copy = self.copy(self.base / "checkpoint_2.pt", "copy.pt")
        document = self.json("diff", self.base / "checkpoint_2.pt", copy)
        self.assertEqual((document["equal"], document["differences"]), (True, []))
        self.assertEqual(self.ckpt("diff", self.base / "checkpoint_2.pt", copy), f"equal: {document['values']} values, {document['tensors']} of them tensors\n")

    def test_what_python_loads_and_saves_again_is_equal(self):
        # Another record (none), other dicts' attributes, another layout of the archive.
        again = self.save(self.load(self.base / "checkpoint_2.pt"))
        self.assertTrue(self.json("diff", self.base / "checkpoint_2.pt", again)["equal"])

    def test_two_epochs_differ_where_python_finds_it(self):
        import torch

        a, b = self.base / "checkpoint_1.pt", self.base / "checkpoint_2.pt"
        document = self.json("diff", a, b, code=1)
        by_path = {difference["path"]: difference for difference in document["differences"]}
        left, right = self.load(a), self.load(b)
        for name, tensor in left["module_interface_state"].items():
            other = right["module_interface_state"][name]
            found = by_path[f"module_interface_state.{name}"]
            self.assertEqual(found["what"], "elements")
            self.assertEqual(found["elements"], tensor.numel())
            self.assertEqual(found["different_elements"], int((tensor.view(torch.int32) != other.view(torch.int32)).sum()))
            self.assertEqual(found["max_abs_difference"], float((tensor.double() - other.double()).abs().max()))
        epochs = by_path["trainer_state.last_epoch"]
        self.assertEqual((epochs["what"], epochs["a"], epochs["b"]), ("value", {"kind": "int", "value": 1}, {"kind": "int", "value": 2}))
        self.assertNotIn("trainer_state.run_id", by_path)
        text = self.ckpt("diff", a, b, code=1)
        weight = by_path["module_interface_state.net.0.weight"]
        self.assertRegex(text, rf"(?m)^module_interface_state\.net\.0\.weight +{weight['different_elements']} of 8192 elements differ, by up to {weight['max_abs_difference']:.6g}$")
        self.assertRegex(text, r"(?m)^trainer_state\.last_epoch +1 in A, 2 in B$")
        self.assertRegex(text, rf"\ndifferent: {len(by_path)} differ; {document['values']} values compared\n\Z")

    def test_one_bit_of_one_element_is_a_difference(self):
        import torch

        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.uint16, torch.uint32, torch.uint64,
                      torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.complex64, torch.complex32, torch.bits16, torch.float4_e2m1fn_x2):
            with self.subTest(str(dtype)):
                raw = torch.zeros(64, dtype=torch.uint8)
                changed = raw.clone()
                changed[8] = 1
                found = self.diff({"x": raw.view(dtype)}, {"x": changed.view(dtype)})["x"]
                self.assertEqual((found["elements"], found["different_elements"], found["elements_with_nan"]), (64 // dtype.itemsize, 1, 0))
                self.assertTrue(found["max_abs_difference"] is None if "bits" in str(dtype) or "float4" in str(dtype) or "e8m0" in str(dtype) else found["max_abs_difference"] > 0)

    def test_by_how_much_is_exact(self):
        import torch

        big = 2**62
        for a, b, much in ((torch.tensor([big]), torch.tensor([big + 1]), 1.0),
                           (torch.tensor([-(2**63)]), torch.tensor([2**63 - 1]), 2.0**64),
                           (torch.tensor([-128], dtype=torch.int8), torch.tensor([127], dtype=torch.int8), 255.0),
                           (torch.tensor([True, False]), torch.tensor([False, False]), 1.0),
                           (torch.tensor([1.0, math.inf]), torch.tensor([1.0, 2.0]), "inf"),
                           (torch.tensor([3 + 4j]), torch.tensor([0j]), 5.0),
                           (torch.tensor(1.0), torch.tensor(1.5), 0.5),
                           (torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t(), torch.tensor([[1.0, 3.0], [2.0, 6.0]]), 2.0)):
            with self.subTest(str(a)):
                self.assertEqual(self.diff({"x": a}, {"x": b})["x"]["max_abs_difference"], much)

    def test_nan_equals_nan_of_the_same_bits_only(self):
        import torch

        nan, other = (struct.unpack("<d", struct.pack("<Q", bits))[0] for bits in (0x7FF8000000000000, 0x7FF8000000000001))
        self.assertEqual(self.diff({"x": nan, "t": torch.tensor([nan, 1.0])}, {"x": nan, "t": torch.tensor([nan, 1.0])}), {})
        found = self.diff({"x": nan, "t": torch.tensor([nan, 1.0, 2.0], dtype=torch.float64)}, {"x": other, "t": torch.tensor([1.0, 1.0, 2.5], dtype=torch.float64)})
        self.assertEqual(found["x"]["what"], "value")
        self.assertEqual((found["t"]["different_elements"], found["t"]["elements_with_nan"], found["t"]["max_abs_difference"]), (2, 1, 0.5))
        found = self.diff({"t": torch.tensor([nan])}, {"t": torch.tensor([1.0])})["t"]
        self.assertEqual((found["elements_with_nan"], found["max_abs_difference"]), (1, None))

    def test_zeros_of_other_signs_differ(self):
        import torch

        found = self.diff({"x": 0.0, "t": torch.tensor([0.0])}, {"x": -0.0, "t": torch.tensor([-0.0])})
        self.assertEqual((found["x"]["what"], found["t"]["max_abs_difference"]), ("value", 0.0))

    def test_dtypes_shapes_and_kinds(self):
        import torch

        a = {"dtype": torch.zeros(2), "shape": torch.zeros(2, 3), "kind": 1, "list": [1, 2], "length": [1, 2, 3], "null": None, "flag": True, "text": "x" * 99 + "a"}
        b = {"dtype": torch.zeros(2).double(), "shape": torch.zeros(3, 2), "kind": 1.0, "list": (1, 2), "length": [1, 5], "null": {}, "flag": 1, "text": "x" * 99 + "b"}
        found = self.diff(a, b)
        self.assertEqual({path: difference["what"] for path, difference in found.items()},
                         {"dtype": "layout", "shape": "layout", "kind": "kind", "list": "kind", "length": "kind", "length.1": "value", "null": "kind", "flag": "kind", "text": "value"})
        self.assertEqual((found["shape"]["a"]["shape"], found["shape"]["b"]["shape"]), ([2, 3], [3, 2]))
        text = self.ckpt("diff", "a.pt", "b.pt", code=1)
        self.assertRegex(text, r"(?m)^dtype +float32 \[2\] in A, float64 \[2\] in B$")
        self.assertRegex(text, r"(?m)^kind +int 1 in A, float 1 in B$")
        self.assertRegex(text, r"(?m)^list +list of 2 in A, tuple of 2 in B$")
        self.assertRegex(text, r"(?m)^length +list of 3 in A, list of 2 in B$")

    def test_what_only_one_has(self):
        import torch

        found = self.diff({"a": 1, "both": 2, "more": {"x": 1, "y": 2}, 0: "number"}, {"both": 2, "b": torch.zeros(2), "0": "number"})
        self.assertEqual({path: difference["what"] for path, difference in found.items() if path != "0"}, {"a": "only_in_a", "more": "only_in_a", "b": "only_in_b"})
        text = self.ckpt("diff", "a.pt", "b.pt", code=1)
        self.assertRegex(text, r"(?m)^more +only in A: dict of 2$")
        self.assertRegex(text, r"(?m)^b +only in B: float32 \[2\]$")
        self.assertEqual(sum(line.startswith("0 ") for line in text.splitlines()), 2, "the keys 0 and '0' are two")
        self.assertRegex(text, r"\ndifferent: 3 only in A, 2 only in B; 1 value compared\n\Z")

    def test_order_dict_kinds_attributes_and_sharing_do_not_count(self):
        import torch

        base = torch.arange(6.0)
        ordered = torch.nn.Linear(2, 2).state_dict()
        plain = dict(reversed(ordered.items()))
        self.assertTrue(ordered._metadata)
        self.assertEqual(self.diff({"m": ordered, "x": base, "y": base[:2], "o": collections.OrderedDict(p=1)},
                                   {"o": {"p": 1}, "y": base[:2].clone(), "x": base.clone(), "m": plain}), {})
        self.assertEqual(self.diff({"t": base.reshape(2, 3).t()}, {"t": base.reshape(2, 3).t().contiguous()}), {}, "strides")

    def test_a_broken_file_is_one_line(self):
        file = self.copy(self.base / "checkpoint_2.pt", "flipped.pt")
        self.flip(file, self.place_of(file, "data/1")[0])
        self.refused(1, "diff", "flipped.pt", self.base / "checkpoint_2.pt", says="flipped.pt: data/1: its bytes do not match")
        self.refused(1, "diff", self.base / "checkpoint_2.pt", "flipped.pt", "--json", says="flipped.pt: data/1: its bytes do not match")


if __name__ == "__main__":
    unittest.main()
