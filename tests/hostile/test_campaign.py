"""Damaged files at random: a few hundred here, ten thousand with ``make hostile``."""

from __future__ import annotations

import os
import pickle
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fxprune.errors import PlanError
from tests.hostile import campaign, targets
from tests.hostile.corruptions import GRAPH_FILE, JSON_FILE, TENSOR_FILE
from tests.hostile.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", ["fixed", secrets.token_hex(4)], ids=["fixed", "fresh"])
def test_a_campaign(seed: str) -> None:
    """In a process of its own, whose memory is bounded; the fresh seed is in the message."""
    command = [sys.executable, "-m", "tests.hostile", "--count", "240", "--seed", seed]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, f"seed {seed}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    assert " 0 faults" in ran.stdout


@pytest.mark.parametrize("name", TARGETS)
def test_every_corruption_damages_something(name: str) -> None:
    """No corruption is idle: among a few uses of each, one changes a file."""
    target = TARGETS[name]
    for file, corruptions in target.corruptions.items():
        whole = target.files()[file]
        for corruption in corruptions.values():
            assert any(corruption(Random(seed), whole) != whole for seed in range(3))


def test_the_tables_are_used() -> None:
    used = {c for t in TARGETS.values() for table in t.corruptions.values() for c in table}
    assert used == JSON_FILE.keys() | TENSOR_FILE.keys() | GRAPH_FILE.keys()


def _leaks(folder: Path) -> None:
    raise KeyError("not ours")


def _runs_code(folder: Path) -> None:
    pickle.loads(b"cos\ngetcwd\n.")
    raise PlanError("too late")


def _writes(folder: Path) -> None:
    (folder / "escaped").write_text("")
    raise PlanError("too late")


def _is_partial(folder: Path) -> str:
    return "half"


def _hoards(folder: Path) -> None:
    "x" * (campaign.PYTHON_BYTES + 1)
    raise PlanError("too late")


def _waits(folder: Path) -> None:
    start = os.times().user
    while os.times().user - start <= campaign.SECONDS:
        pass
    raise PlanError("too late")


def _shouts(folder: Path) -> None:
    raise PlanError("a" * 100_000)


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (_leaks, "KeyError"),
        (_runs_code, "pickle.find_class"),
        (_writes, "open"),
        (_is_partial, "not whole"),
        (_hoards, "MiB"),
        (_waits, " s, "),
        (_shouts, "characters"),
    ],
)
def test_a_wrong_reader_is_found_out(
    read: Callable[[Path], Any], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controls: each fault that the campaign looks for, made on purpose."""
    monkeypatch.setattr(campaign, "SECONDS", 0.2)

    def check(result: object) -> None:
        assert result == "whole"

    wrong = Target(TARGETS["plan"].files, TARGETS["plan"].corruptions, read, check)
    monkeypatch.setattr(targets, "TARGETS", {"wrong": wrong})
    monkeypatch.setattr(campaign, "TARGETS", {"wrong": wrong})
    tally = campaign.Tally()
    campaign.tracemalloc.start()
    try:
        campaign.attack("wrong", "0", tmp_path, tally)
    finally:
        campaign.tracemalloc.stop()
    assert len(tally.faults) == 1
    assert fault in tally.faults[0]
