"""Save a pruned network, and load it where the code of its class does not exist.

python -m examples.save_and_load [DIRECTORY]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import fxprune

ELSEWHERE = """
import sys, torch, fxprune
module = fxprune.load(sys.argv[1])
print("elsewhere:", module(torch.ones(4, 3, 32, 32)).sum().item())
"""


class Network(nn.Module):
    """Images [N, 3, H, W] → logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + torch.relu(self.block(x))).mean((2, 3)))


def main(directory: str = "examples/output/network") -> None:
    torch.manual_seed(0)
    result = fxprune.prune(Network().eval(), torch.randn(2, 3, 32, 32), sparsity=0.5)
    fxprune.save(result, directory)
    for file in sorted(Path(directory).iterdir()):
        print(f"{file.name:20} {file.stat().st_size:6,} bytes")

    # In this process, from the class: its parameters never take the memory of the full size.
    module = fxprune.load(directory, Network)
    print("here:     ", module(torch.ones(4, 3, 32, 32)).sum().item())

    # In another one, without the class: the graph is made of known operators and modules.
    subprocess.run([sys.executable, "-c", ELSEWHERE, directory], check=True)

    # The files know each other. Whoever edits one, on purpose or not, is told.
    plan = Path(directory) / "plan.json"
    plan.write_text(plan.read_text(encoding="utf-8") + " ", encoding="utf-8")
    try:
        fxprune.load(directory)
    except fxprune.CheckpointError as error:
        print("refused:", str(error).rpartition("/")[2])


if __name__ == "__main__":
    main(*sys.argv[1:])
