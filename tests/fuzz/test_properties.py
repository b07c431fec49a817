"""Every property holds for random programs and plans: the same ones always, and fresh ones."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.search import Tally, search

EXAMPLES = 100
FRESH = random.SystemRandom().randrange(2**32)


def test_properties_of_the_same_programs() -> None:
    assert search(0, EXAMPLES, Tally()) is None


def test_properties_of_fresh_programs() -> None:
    command = f"python -m tests.fuzz --examples {EXAMPLES} --seed {FRESH} --jobs 1"
    assert search(FRESH, EXAMPLES, Tally()) is None, f"again: {command}"


def test_the_seed_of_the_fresh_programs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nseed of the fresh random programs: {FRESH}")
