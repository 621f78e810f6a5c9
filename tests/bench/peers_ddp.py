#!/usr/bin/env python3
"""What Python's DistributedDataParallel takes for steps that marlin_bench times. Usage: peers_ddp.py STEPS PORT

Two processes over Gloo, one thread each; the first one starts the second. It says on one line what it works with. Then it answers every
line of standard input, the name of one of the blocks below, with a line of its own: the seconds a step that the block took, or the checksum.
"""
import os
import subprocess
import sys
import time
import warnings
from datetime import timedelta

warnings.simplefilter("ignore")
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

STEPS, PORT = map(int, sys.argv[1:3])
RANK = int(sys.argv[3]) if len(sys.argv) > 3 else 0
# The sizes that ddp_parts.h has.
LAYERS, WIDTH, BATCH, RATE = 12, 256, 32, 1e-3

torch.set_num_threads(1)
if RANK == 0:
    other = subprocess.Popen([sys.executable, *sys.argv, "1"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{PORT}", rank=RANK, world_size=2, timeout=timedelta(minutes=10))


class Loop:
    def __init__(self, fused):
        torch.manual_seed(2)
        self.inputs = torch.rand(2 * STEPS * BATCH, WIDTH)
        self.targets = torch.rand(2 * STEPS * BATCH, WIDTH)
        torch.manual_seed(1)
        layers = [torch.nn.Linear(WIDTH, WIDTH)]
        for _ in range(LAYERS - 1):
            layers += [torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH)]
        self.net = torch.nn.Sequential(*layers)
        self.ddp = DistributedDataParallel(self.net)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=RATE, fused=fused)

    def epoch(self):
        total = 0.0
        for step in range(STEPS):
            begin = (2 * step + RANK) * BATCH
            self.optimizer.zero_grad()
            loss = F.mse_loss(self.ddp(self.inputs[begin : begin + BATCH]), self.targets[begin : begin + BATCH])
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        if not total > 0.0:
            raise RuntimeError("the loss came to nothing")

    def timed(self):
        dist.barrier()
        start = time.perf_counter()
        self.epoch()
        dist.barrier()
        return (time.perf_counter() - start) / STEPS


DEFAULT, FUSED = Loop(None), Loop(True)


def checksum():
    """Of the parameters that the default optimizer has come to, after the first block."""
    return sum(parameter.detach().abs().sum(dtype=torch.float64).item() for parameter in DEFAULT.net.parameters())


BLOCKS = {"python_ddp": DEFAULT.timed, "python_ddp_fused": FUSED.timed, "checksum": checksum, "end": lambda: 0}


def both(name):
    """Both processes run the block that the first one names."""
    names = list(BLOCKS)
    told = torch.tensor(names.index(name) if name else 0)
    dist.broadcast(told, src=0)
    return names[told], BLOCKS[names[told]]()


if RANK == 1:
    while both(None)[0] != "end":
        pass
    sys.exit()
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is not an answer
print(f"torch={torch.__version__}", file=answers, flush=True)
for line in sys.stdin:
    print(both(line.strip())[1], file=answers, flush=True)
both("end")
other.wait()
