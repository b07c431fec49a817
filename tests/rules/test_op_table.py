"""Every rule against brute force, on the samples of the op table."""

from __future__ import annotations

import random

import pytest

from fxprune.rules import MODULE_RULES, RULES
from tests.rules.harness import Case, Sample, executed
from tests.rules.op_table import IDS, TABLE

every_sample = pytest.mark.parametrize("sample", TABLE, ids=IDS)


def test_every_rule_has_a_sample() -> None:
    claimed = {name for sample in TABLE for name in sample.names}
    missing = [name for name in RULES if name not in claimed]
    missing += [kind.__name__ for kind in MODULE_RULES if kind.__name__ not in claimed]
    assert not missing


def test_no_sample_claims_what_has_no_rule() -> None:
    known = {*RULES, *(kind.__name__ for kind in MODULE_RULES)}
    assert not {name for sample in TABLE for name in sample.names} - known


@every_sample
def test_rule(sample: Sample) -> None:
    """Runs the ops it claims, meets no barrier, and slicing commutes with the op."""
    case = Case.build(sample)
    ran = executed(case.analysis.propagation)
    ran |= {type(module).__name__ for module in case.traced.modules()}
    assert set(sample.names) <= ran
    assert not case.analysis.propagation.barriers

    generator = random.Random(0)
    mixed = case.mixed()
    exact = [g for g in case.analysis.groups if g.name not in mixed or g.maskable]
    masked = [g.name for g in exact if g.name in mixed]
    for groups in [*([g] for g in exact), *([exact] * 3 if len(exact) > 1 else [])]:
        plan = case.plan(groups, generator)
        assert case.disagreement(plan, masked) is None


@every_sample
def test_flags_of_groups_that_are_mixed(sample: Sample) -> None:
    """A group is flagged only where zeroing it changes something."""
    case = Case.build(sample)
    generator = random.Random(0)
    mixed = case.mixed()
    for group in case.analysis.groups:
        if group.name in mixed and not group.maskable and not sample.random:
            plans = [case.plan([group], generator) for _ in range(4)]
            exact = all(case.disagreement(plan, [group.name]) is None for plan in plans)
            assert exact == (sample.over_flagged is not None), group
