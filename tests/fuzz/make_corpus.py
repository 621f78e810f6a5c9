"""Makes the seeds in corpus/: .deps/venv/bin/python tests/fuzz/make_corpus.py build/bin/archive_tool [FOLDER]

A seed is a digit that says what the rest is (archive_input.h), then a file, a pickle or a commit record that Python's torch.save or
libmarlin wrote. All are read whole, but for those named told_: these must be refused.
"""
import io
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

warnings.simplefilter("ignore")  # that there is no numpy
import torch

TOOL = sys.argv[1]
FOLDER = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("corpus")
FILE, PICKLE, COMMIT_RECORD, HASHED, LAYOUT = b"0", b"1", b"2", b"3", b"4"


def tensors():
    """Storages of 96, 8, 0, 10, 5, 10, 3, 24 and 8 bytes, as archive_input.h puts them beside a pickle."""
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "base": base,
        "transposed": base.t(),
        "row": base[2],
        "expanded": base[3, :1].expand(5),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(2, 0),
        "bfloat16": torch.arange(5).to(torch.bfloat16),
        "float8": torch.arange(5).to(torch.float8_e4m3fn),
        "uint16": torch.arange(5).to(torch.uint16),
        "bool": torch.tensor([True, False, True]),
        "complex": torch.complex(torch.arange(3.0), torch.ones(3)),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def training():
    """A module with attributes on its state, an optimizer and a scheduler; storages of 96 and 8 bytes."""
    torch.manual_seed(0)
    net = torch.nn.Linear(12, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25, momentum=0.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 2, 5])
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}


def values():
    shared = [1, 2]
    return {
        "numbers": [None, True, False, 0, 255, 256, -1, 2**31, 2**63 - 1, -(2**63), 0.1, float("nan"), float("-inf")],
        "text": ("", "gr\u00fc\u00df", "\U0001f600"),
        "nested": [[[[[[()]]]]]],
        "shared": [shared, shared, {"again": shared}],
        "ordered": OrderedDict(a=1),
        "counter": Counter({2: 2, 5: 1}),
        "size": torch.Size([2, 3]),
        -5: {},
    }


def saved(state, **options):
    stream = io.BytesIO()
    torch.save(state, stream, **options)
    return stream.getvalue()


def rewritten(file):
    """What libmarlin makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.pt"), Path(folder, "out.pt")
        source.write_bytes(file)
        subprocess.run([TOOL, "rewrite", source, target], check=True)
        return target.read_bytes()


def record(file, name):
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return archive.read(next(full for full in archive.namelist() if full.split("/", 1)[1] == name))


def zipped(records, comment=b""):
    """By Python's zipfile, which writes no descriptors where it can go back."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo("folder/" + name), data)
        archive.comment = comment
    return stream.getvalue()


def without_hashes(json):
    return json[: json.index(b',\n "records": {')] + b"\n}\n"


def for_a_bare_archive(json):
    """Only the records that archive_input.h puts beside a commit record, and not the hash at the end."""
    lines = json[: json.index(b',\n "xxh3_128": "')].split(b"\n")
    kept = [line for line in lines if b'"xxh3_128"' not in line or line.startswith((b'  "data.pkl"', b'  "byteorder"', b'  "version"'))]
    kept[-2] = kept[-2].rstrip(b",")
    return b"\n".join(kept)


def wide(number):
    """In eight bytes, so that every bit of it can change."""
    return b"\x8a\x08" + struct.pack("<q", number)


def narrow(number):
    return b"K" + bytes([number])


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def one_tensor(integer, storage=b"torch\nFloatStorage\n", items=24, offset=2, sizes=(3, 2), strides=(4, 1), dtype=None):
    """A pickle of nothing else, over data/0: short, so that a random change meets a number."""
    numbers = lambda values: b"(" + b"".join(integer(value) for value in values) + b"t"
    function = b"ctorch._utils\n_rebuild_tensor_" + (b"v3\n" if dtype else b"v2\n")
    identity = b"(" + text(b"storage") + b"c" + storage + text(b"0") + text(b"cpu") + integer(items) + b"tQ"
    arguments = b"(" + identity + integer(offset) + numbers(sizes) + numbers(strides) + b"\x89N" + (b"c" + dtype if dtype else b"") + b"t"
    return b"\x80\x02}" + text(b"w") + function + arguments + b"Rs."


def seeds():
    plain = {"data.pkl": b"\x80\x02}.", "byteorder": b"little", "version": b"3\n"}
    yield "file_zipfile", FILE, zipped(plain, comment=b"a comment")
    yield "told_file_compressed", FILE, zipped(plain).replace(b"PK\x03\x04\x14\0\0\0\0\0", b"PK\x03\x04\x14\0\0\0\x08\0")
    yield "told_file_cut", FILE, zipped(plain)[:-30]
    yield "told_file_from_before_1_6", FILE, saved({"a": 1}, _use_new_zipfile_serialization=False)
    for name, state in (("tensors", tensors()), ("training", training()), ("values", values())):
        by_python = saved(state)
        by_marlin = rewritten(by_python)
        if name != "values":
            yield f"file_python_{name}", FILE, by_python
            yield f"file_marlin_{name}", FILE, by_marlin
        yield f"pickle_python_{name}", PICKLE, record(by_python, "data.pkl")
        yield f"pickle_marlin_{name}", PICKLE, record(by_marlin, "data.pkl")
    yield "pickle_tensor", PICKLE, one_tensor(narrow)
    yield "pickle_tensor_wide", PICKLE, one_tensor(wide)
    yield "pickle_tensor_untyped", PICKLE, one_tensor(wide, b"torch.storage\nUntypedStorage\n", 96, dtype=b"torch\ncomplex32\n")
    yield "pickle_tensor_empty", PICKLE, one_tensor(wide, sizes=(0, 2))
    yield "pickle_attributes", PICKLE, b"\x80\x02ccollections\nOrderedDict\n)R}" + text(b"a") + b"}" + text(b"b") + b"K\1ssb."
    by_marlin = rewritten(saved({}))
    yield "record_first_version", COMMIT_RECORD, without_hashes(record(by_marlin, "marlin.json"))
    metrics = b'"metrics": {"a/loss": 0.25, "b": "nan", "c": "-inf", "d": 7}'
    assert b'"metrics": {}' in record(by_marlin, "marlin.json")
    yield "record_metrics", COMMIT_RECORD, without_hashes(record(by_marlin, "marlin.json").replace(b'"metrics": {}', metrics))
    yield "told_layout", LAYOUT, b"".join(bytes(entry) for entry in ((97, 0, 0, 20), (98, 0, 16, 40), (99, 1, 40, 100), (100, 2, 90, 0)))
    yield "hashed", HASHED, for_a_bare_archive(record(by_marlin, "marlin.json"))


def main():
    FOLDER.mkdir(exist_ok=True)
    total = 0
    for name, part, data in seeds():
        (FOLDER / name).write_bytes(part + data)
        total += 1 + len(data)
        print(f"{1 + len(data):6} {name}")
    print(f"{total:6} bytes in all")
    assert total < 64 << 10


if __name__ == "__main__":
    main()
