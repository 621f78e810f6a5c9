#!/usr/bin/env python3
"""What Python's libraries take for work that marlin_bench times. Usage: peers_checkpoint.py CHECKPOINT FOLDER

Loads CHECKPOINT, writes it as FOLDER/by_torch.pt, and says on one line what it works with. Then answers every line of standard
input, the name of one of the blocks below, with a line of its own: the seconds that the block took.
"""
import ctypes
import os
import pathlib
import shutil
import sys
import time
import warnings

warnings.simplefilter("ignore")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / ".deps" / "peers"))
import ignite
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ignite.handlers import DiskSaver

LIBC = ctypes.CDLL(None)
FOLDER = pathlib.Path(sys.argv[2])
FILE = FOLDER / "by_torch.pt"
torch.set_num_threads(1)
STATE = torch.load(sys.argv[1], weights_only=True)
torch.save(STATE, FILE)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # dcp.async_save asks for one


def seconds_of(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def save(work, path):
    """Of a save that makes `path`, which goes again: nothing that is still to be written is left for the blocks after this one."""
    os.sync()  # of what the blocks before made and removed
    seconds, result = seconds_of(work)
    if result is not None:
        result.result()  # of a future
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return seconds


def torch_save():
    file = FOLDER / "torch_save.pt"
    return save(lambda: torch.save(STATE, file), file)


def ignite_disk_saver():
    """Writes a temporary file and renames it; does not sync."""
    saver = DiskSaver(str(FOLDER), require_empty=False)
    return save(lambda: saver(STATE, "ignite.pt"), FOLDER / "ignite.pt")


def dcp_async_save_call():
    """Until the call returns, which is how long training would stand still; the rest of the save is waited for, untimed."""
    folder = FOLDER / "dcp"
    return save(lambda: dcp.async_save(STATE, checkpoint_id=str(folder)), folder)


def torch_load_again():
    """Into memory that the one before gave back to the C library, not to the system."""
    seconds, state = seconds_of(lambda: torch.load(FILE, weights_only=True))
    if state.keys() != STATE.keys():
        raise RuntimeError("torch.load gave another state")
    return seconds


def torch_load():
    """As in a process that has just started."""
    LIBC.malloc_trim(0)
    return torch_load_again()


BLOCKS = {block.__name__: block for block in (torch_save, ignite_disk_saver, torch_load, torch_load_again, dcp_async_save_call)}
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is not an answer
print(f"torch={torch.__version__} ignite={ignite.__version__}", file=answers, flush=True)
for line in sys.stdin:
    print(BLOCKS[line.strip()](), file=answers, flush=True)
dist.destroy_process_group()
