"""Makes the files here that Python wrote: python tests/golden/make_python_files.py FOLDER

They are never made anew in place: golden_test.cpp reads these very bytes, for ever. A later torch gets files of its own.
"""
import sys
from collections import OrderedDict
from pathlib import Path

import torch


def model():
    net = torch.nn.Sequential(OrderedDict(fc=torch.nn.Linear(4, 3), norm=torch.nn.BatchNorm1d(3)))
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.copy_((torch.arange(parameter.numel()) + 10 * number).reshape(parameter.shape))
    return net


def trained(fused):
    net = model()
    optimizer = torch.optim.AdamW([{"params": net.fc.parameters()}, {"params": net.norm.parameters(), "lr": 0.5}], lr=0.25, fused=fused)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 2, 5], gamma=0.5)
    for step in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 0.5 + step)
        optimizer.step()
        scheduler.step()
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "epoch": 3, "betas": (0.5, 0.25), "note": "gr\u00fc\u00df"}


def tensors():
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "base": base,
        "transposed": base.t(),
        "row": base[2],
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(2, 0),
        "bfloat16": torch.arange(5).to(torch.bfloat16),
        "float8": torch.arange(5).to(torch.float8_e4m3fn),
        "uint16": torch.arange(5).to(torch.uint16),
        "bool": torch.tensor([True, False, True]),
        "complex": torch.complex(torch.arange(3.0), torch.ones(3)),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "size": torch.Size([2, 3]),
        7: [None, True, -1, 2**40, 0.1],
    }


def main():
    folder = Path(sys.argv[1])
    version = ".".join(torch.__version__.split(".")[:2])
    torch.save(model().state_dict(), folder / f"python_{version}_model.pt")
    torch.save(trained(fused=True), folder / f"python_{version}_training.pt")
    torch.save(tensors(), folder / f"python_{version}_tensors.pt")


if __name__ == "__main__":
    main()
