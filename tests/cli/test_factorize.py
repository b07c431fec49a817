"""`fxprune factorize`: what it prints and saves, and that `verify` reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fxprune
from fxprune.cli import main
from tests.interop.models import Residual

RESIDUAL = ("tests.interop.models:Residual", "--input", "2x3x8x8")


def test_it_saves_what_the_library_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "low")
    options = ("--method", "tucker", "--budget", "macs=0.5", "--verify", "-o", folder)
    assert main(["factorize", *RESIDUAL, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["proof"]["law"] == "dense reconstruction"
    assert found["report"]["macs_after"] <= 0.5 * found["report"]["macs_before"]
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    torch.manual_seed(0)
    model = Residual().eval()
    expected = fxprune.factorize(model, x, "tucker", budget=fxprune.Budget(macs=0.5))
    assert torch.equal(fxprune.load(folder)(x), expected.module(x))
    assert main(["verify", folder, "--original", RESIDUAL[0], "--dtype", "float64"]) == 0
    assert "dense reconstruction holds" in capsys.readouterr().out


def test_data_make_eigenbases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = Residual()(torch.zeros(1, 3, 8, 8)).shape[1]
    arrays = {
        "x": np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32),
        "target": np.arange(6) % classes,
    }
    np.savez(tmp_path / "data.npz", **arrays)
    data = ("--data", str(tmp_path / "data.npz"), "--batch-size", "4")
    assert main(["factorize", *RESIDUAL, "--energy", "0.9", *data]) == 0
    assert "layers are in factors" in capsys.readouterr().out


def test_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factorize", *RESIDUAL]) == 2
    assert "--budget macs=0.5, or --energy 0.9" in capsys.readouterr().err
    assert main(["factorize", *RESIDUAL, "--energy", "0.9"]) == 3
    assert "needs data=" in capsys.readouterr().err
