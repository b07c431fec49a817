"""The examples run, and show what they are there to show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples import optimizer, save_and_load


def test_save_and_load(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_and_load.main(str(tmp_path / "network"))
    printed = capfd.readouterr().out
    here, elsewhere = (re.search(rf"{w}: *(\S+)", printed) for w in ("here", "elsewhere"))
    assert here is not None
    assert elsewhere is not None
    assert here[1] == elsewhere[1]
    assert "refused: plan.json is not the file that was saved" in printed


def test_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer.main()
    losses = re.findall(r"(?:pruned|went on): +loss (\S+)", capsys.readouterr().out)
    pruned, went_on = map(float, losses)
    assert went_on < 0.5 * pruned
