"""Every rule against brute force, on the samples of the op table."""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest
import torch

from fxprune import propagate as propagate_module
from fxprune.errors import RewriteError
from fxprune.plans import PruningPlan
from fxprune.propagate import find_rule
from fxprune.rules import MODULE_RULES, RULES
from fxprune.rules.base import Effect, Kind
from fxprune.rules.indexing import frozen
from tests.rules.freezing import over_frozen
from tests.rules.harness import (
    Case,
    Sample,
    executed,
    is_exact,
    plain_case,
    same,
)
from tests.rules.op_table import IDS, TABLE
from tests.rules.samples.inputs import real

every_sample = pytest.mark.parametrize("sample", TABLE, ids=IDS)


def test_every_rule_has_a_sample() -> None:
    claimed = {name for sample in TABLE for name in sample.names}
    missing = [name for name in RULES if name not in claimed]
    missing += [kind.__name__ for kind in MODULE_RULES if kind.__name__ not in claimed]
    assert not missing


def test_no_sample_claims_what_has_no_rule() -> None:
    known = {*RULES, *(kind.__name__ for kind in MODULE_RULES)}
    assert not {name for sample in TABLE for name in sample.names} - known


def test_the_table_is_read_only() -> None:
    with pytest.raises(TypeError, match="item assignment"):
        RULES["mylib::gate"] = RULES["cat"]


def test_only_ops_in_place_go_by_the_name_of_another_op() -> None:
    """The last letter of a name is no underscore elsewhere: `to` is not `t`."""
    aten = torch.ops.aten
    assert find_rule(aten.squeeze_.dim) is find_rule(aten.squeeze.dim) is RULES["squeeze"]
    assert find_rule(aten.to.dtype) is None


@every_sample
def test_rule(sample: Sample) -> None:
    """Runs the ops it claims, meets no barrier, and slicing commutes with the op."""
    case = plain_case(sample)
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
def test_flags(sample: Sample) -> None:
    """A group is flagged only where zeroing it changes something."""
    case = plain_case(sample)
    mixed = case.mixed()
    for group in case.analysis.groups:
        if group.name in mixed and not group.maskable and not sample.random:
            assert sample.over_flagged or not is_exact(case, group, random.Random(0)), group


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # smaller kernels are even
@every_sample
def test_frozen_dimensions(sample: Sample) -> None:
    """A dimension is frozen only if slicing it does not commute with the op."""
    if not sample.module and not sample.random:
        assert bool(over_frozen(sample)) == bool(sample.over_frozen), over_frozen(sample)


def test_the_law_notices_a_wrong_unit() -> None:
    """The control: what is pruned by one plan differs from what another one leaves."""
    case = Case.build(Sample("", lambda x, w: x @ w, (real(4, 3), real(3, 5))))
    group = case.analysis.groups[0]
    plans = [PruningPlan.build(case.analysis, {group.name: kept}) for kept in ([0, 2], [0, 3])]
    assert same(case.reference(plans[0], [])[0], case.pruned(plans[0])[0])
    assert not same(case.reference(plans[0], [])[0], case.pruned(plans[1])[0])


def test_the_law_notices_a_missing_coupling() -> None:
    """The control: a rule that forgets to unify produces a graph that fails or differs."""
    broken = {**RULES, "mul": lambda call: Effect((call.axes("self"),), Kind.POINTWISE)}
    with patch.object(propagate_module, "RULES", broken):
        case = Case.build(Sample("", lambda x, y: x * y, (real(4, 3), real(4, 3))))
    (group,) = [g for g in case.analysis.groups if g.name == "in_x:1"]
    with pytest.raises((AssertionError, RuntimeError, RewriteError)):
        assert case.disagreement(case.plan([group], random.Random(0)), []) is None


def test_over_freezing_is_noticed() -> None:
    """The control: freezing the rows of a matrix product is more than is needed."""
    broken = {**RULES, "matmul": frozen("everything")}
    sample = Sample("", lambda x, y: x @ y, (real(4, 3), real(3, 5)))
    with patch.object(propagate_module, "RULES", broken):
        assert over_frozen(sample) == [(0, 0), (0, 1), (1, 0), (1, 1)]
