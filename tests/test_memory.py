"""A prune needs little more memory than the model and the result."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.resident import RESET

SCRIPT = """
import torch
from tests.resident import growth, size, wide_mlp
growth(wide_mlp(8, 2).eval(), {"input": torch.randn(2, 8)})
model = wide_mlp(3072, 4).eval()
grown, pruned = growth(model, {"input": torch.randn(2, 3072)})
print(size(model), size(pruned), grown)
"""


@pytest.mark.skipif(not RESET.exists(), reason="needs Linux")
def test_the_peak_of_a_prune_is_the_model_and_the_result() -> None:
    # Pages of libraries that the system maps anew meanwhile add to a run now and then.
    model, result, grown = min((_measured() for _ in range(3)), key=lambda found: found[2])
    assert 0 < result < model / 2
    assert grown <= result + 0.1 * model


def _measured() -> tuple[float, ...]:
    """MiB of the model and of the result, and what a prune adds, in a process of its own."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return tuple(map(float, run.stdout.split()))
