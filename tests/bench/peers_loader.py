#!/usr/bin/env python3
"""What Python's DataLoader takes for work that marlin_bench times. Usage: peers_loader.py blur|shift

Says on one line what it works with. Then answers every line of standard input, the name of one of the blocks below, with a line of
its own: the seconds a sample that the block took, or the checksum.
"""
import os
import sys
import time
import warnings

warnings.simplefilter("ignore")
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

BATCH = 64


def blur(image):
    image = image.flip(2).roll((3, -5), (1, 2))
    image = image * 0.75 + F.avg_pool2d(image, 5, 1, 2) * 0.25
    image = image.pow(0.8)
    return (image - image.mean()) / (image.std() + 1e-5)


def shift(image):
    return image.flip(2).roll((3, -5), (1, 2)).sub_(0.1307).div_(0.3081)


# The operators and sizes that loader_workers.cpp uses.
IMAGES, SIDE, transform = {"blur": (4096, 64, blur), "shift": (32768, 28, shift)}[sys.argv[1]]


class Images(Dataset):
    def __init__(self):
        torch.manual_seed(1)
        self.images = torch.rand(IMAGES, 1, SIDE, SIDE)
        self.labels = torch.arange(IMAGES)

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return transform(self.images[index]), self.labels[index]


torch.set_num_threads(1)
LOADER = DataLoader(Images(), batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True)


def checksum():
    """Of an epoch of the loader, whatever its order; loader_workers.cpp has the same sum."""
    total, seen = 0.0, torch.zeros(IMAGES, dtype=torch.int64)
    for images, labels in LOADER:
        total += (images.flatten(1).abs().double().sum(1) * (labels + 1)).sum().item()
        seen[labels] += 1
    if not bool((seen == 1).all()):
        raise RuntimeError("an epoch does not hold each image once")
    return total


def dataloader_2_workers():
    delivered = 0
    start = time.perf_counter()
    for images, _ in LOADER:
        delivered += len(images)
    seconds = time.perf_counter() - start
    if delivered != IMAGES:
        raise RuntimeError("an epoch was cut short")
    return seconds / IMAGES


BLOCKS = {block.__name__: block for block in (checksum, dataloader_2_workers)}
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is not an answer
print(f"torch={torch.__version__} workers={LOADER.num_workers}", file=answers, flush=True)
for line in sys.stdin:
    print(BLOCKS[line.strip()](), file=answers, flush=True)
