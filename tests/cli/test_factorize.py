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


@pytest.fixture
def folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The same network in factors, of half and of three quarters of its MACs."""
    made = str(tmp_path / "half"), str(tmp_path / "more")
    for folder, share in zip(made, ("0.5", "0.75"), strict=True):
        options = ("--method", "tucker", "--budget", f"macs={share}", "-o", folder)
        assert main(["factorize", *RESIDUAL, *options]) == 0
    capsys.readouterr()
    return made


def test_reports_are_read_again(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    budget = fxprune.Budget(macs=0.5)
    report = fxprune.factorize(model, torch.randn(2, 3, 8, 8), "tucker", budget=budget).report
    assert main(["report", folders[0]]) == 0
    assert capsys.readouterr().out.strip() == str(report).strip()
    assert main(["report", folders[0], "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == report.to_markdown().strip()
    assert "| layer " in report.to_markdown()
    assert main(["report", folders[0], "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(report.to_json())
    assert fxprune.FactorizeReport.from_data(data) == report
    assert main(["report", folders[0], "--plot", "widths.png"]) == 2
    assert "factorising changes none" in capsys.readouterr().err


def test_differences_are_in_directions(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", folders[0], folders[0]]) == 0
    assert "0 layers keep different numbers of directions" in capsys.readouterr().out
    assert main(["diff", *folders]) == 1
    assert "first: inputs" in capsys.readouterr().out
    assert main(["diff", *folders, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["equal"]
    assert not found["same_weights"]
    assert found["macs"][0] < found["macs"][1]
    kept = []
    for folder in folders:
        plan = json.loads((Path(folder) / "plan.json").read_text())
        kept.append({name: tuple(ranks) for name, ranks in plan["ranks"].items()})
    assert found["layers"]
    for row in found["layers"]:
        for which, ranks in zip(("first", "second"), kept, strict=True):
            pair = row[f"{which}_inputs"], row[f"{which}_outputs"]
            assert pair == ranks.get(row["name"], (None, None))
        assert kept[0].get(row["name"]) != kept[1].get(row["name"])
    pruned = str(tmp_path / "pruned")
    assert main(["prune", *RESIDUAL, "--sparsity", "0.5", "-o", pruned]) == 0
    capsys.readouterr()
    assert main(["diff", folders[0], pruned]) == 3
    assert "one is pruned and the other factorised" in capsys.readouterr().err


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
