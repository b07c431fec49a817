"""Every property holds for random programs and plans: the same ones always, and fresh ones."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.search import Tally, search

FIXED, ANEW = 100, 25
FRESH = random.SystemRandom().randrange(2**32)


def test_properties_of_the_same_programs() -> None:
    assert search(0, FIXED, Tally()) is None


def test_properties_of_fresh_programs() -> None:
    command = f"python -m tests.fuzz --examples {ANEW} --seed {FRESH} --jobs 1"
    assert search(FRESH, ANEW, Tally()) is None, f"again: {command}"


def test_the_seed_of_the_fresh_programs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nseed of the fresh random programs: {FRESH}")
