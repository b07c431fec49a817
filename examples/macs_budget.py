"""Prune a torchvision network to a MACs budget.

python -m examples.macs_budget
"""

from __future__ import annotations

import torch
from torchvision.models import mobilenet_v3_small

import fxprune


def main() -> None:
    torch.manual_seed(0)
    model = mobilenet_v3_small().eval()  # with weights="DEFAULT" it would be a trained one
    images = torch.randn(2, 3, 96, 96)

    result = fxprune.prune(
        model,
        images,
        budget=fxprune.Budget(macs=0.5),
        scope="global",
        normalise="mean",  # or layers of small weights lose all that they may
        round_to=8,
        ignore="features.0",
    )
    print(result.report)
    dense, left = fxprune.cost(result.analysis), fxprune.cost(result.analysis, result.plan)
    print(f"MACs per image: {dense.macs:,} -> {left.macs:,} ({left.macs / dense.macs:.1%})")

    # What one more unit would save, for the three groups where it saves most.
    savings = fxprune.savings(result.analysis, result.plan)
    for name in sorted(savings, key=lambda name: -savings[name].macs)[:3]:
        print(f"one unit less of {name}: {savings[name].macs:,} MACs")
    print(fxprune.verify(result.analysis.traced, result.plan, result.module, images))


if __name__ == "__main__":
    main()
