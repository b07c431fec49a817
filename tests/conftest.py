"""What every test shares: importable torchvision, one thread, fixed seeds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests import torchvision_shim  # noqa: F401  (before any test imports torchvision)

# The tests run one process per core; more threads than that only wait for each other.
torch.set_num_threads(1)

# Slow shared machines make wall-clock deadlines flaky; the same examples on every run make a
# failure reproducible.
settings.register_profile("fxprune", deadline=None, derandomize=True)
settings.load_profile("fxprune")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
