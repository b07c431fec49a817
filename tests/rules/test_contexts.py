"""Choices that differ from context to context obey the same law.

Where every dimension is free, almost every other one may be a context: harder than models are.
"""

from __future__ import annotations

import random

import pytest

from tests.rules.harness import Case, Sample
from tests.rules.op_table import IDS, TABLE


@pytest.mark.parametrize("sample", TABLE, ids=IDS)
def test_choices_per_context(sample: Sample) -> None:
    case = Case.build(sample, contexts=True)
    generator = random.Random(0)
    mixed = case.mixed()
    exact = [g for g in case.analysis.groups if g.name not in mixed or g.maskable]
    masked = [g.name for g in exact if g.name in mixed]
    for groups in [*([g] for g in exact if g.contexts > 1), exact]:
        if any(group.contexts > 1 for group in groups):
            plan = case.plan(groups, generator)
            assert case.disagreement(plan, masked) is None
