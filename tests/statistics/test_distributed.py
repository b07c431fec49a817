"""Two processes with half of the batches each obtain what one process obtains from all."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

import fxprune
from tests.statistics import rank

ROOT = Path(__file__).parents[2]


def test_two_processes_agree_bit_by_bit_and_with_one(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]  # on a free port
    command = [*launcher, "--nproc-per-node=2", "-m", "tests.statistics.rank", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.LeftWholeWarning)
        alone = rank.results()
    assert len(alone) == 2 * len(rank.NAMES) + 7
    assert any(name.endswith("running_var") for name in alone["compensated"])
    assert first.keys() == second.keys() == alone.keys()
    for name, expected in alone.items():
        if isinstance(expected, str):
            assert first[name] == second[name] == expected, name
            continue
        assert isinstance(expected, dict)
        assert expected.keys() == first[name].keys()
        for group, scores in expected.items():
            assert isinstance(scores, Tensor)
            assert torch.equal(first[name][group], second[name][group]), (name, group)
            torch.testing.assert_close(first[name][group], scores, rtol=1e-10, atol=1e-12)
