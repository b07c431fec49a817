"""What a first prune in a process has to wait for."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys, torch, fxprune
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
result = fxprune.prune(model, torch.randn(3, 4), sparsity=0.5)
fxprune.verify(result.analysis.traced, result.plan, result.module, torch.randn(2, 4))
print(getattr(result.module, "0").out_features, "torch._dynamo" in sys.modules)
"""


def test_torchs_compiler_is_not_imported() -> None:
    """It takes longer than the prunes of most models do."""
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["4", "False"]
