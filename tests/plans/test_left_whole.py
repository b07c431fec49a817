"""Groups that a criterion does not apply to: left whole, and named in a warning or an error."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fxprune import LeftWholeWarning, NotApplicableError, PlanError, plan, score
from fxprune.groups import Group
from tests.plans.fakes import FakeAnalysis, analysis_of, chain

THREE = analysis_of(chain("a", 4), chain("b", 6), chain("c", 8))


def only(*names: str) -> object:
    """A criterion that knows the groups of these names."""

    def rule(group: Group, parameters: Mapping[str, Tensor]) -> Tensor:
        if group.name not in names:
            raise NotApplicableError("it has the wrong name")
        return torch.arange(group.size, dtype=torch.float64)

    return rule


def test_they_have_no_scores_and_a_warning_names_them() -> None:
    message = r"2 of 3 groups .*'only.<locals>.rule'.*\n  2 x it has the wrong name\n.*'a:0', 'c:0'"
    with pytest.warns(LeftWholeWarning, match=message) as caught:
        scores = score(THREE, only("b:0"))
    assert list(scores) == ["b:0"]
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("scope", "kept"), [("local", [3, 4, 5]), ("global", [3, 4, 5])])
def test_they_lose_no_units_and_do_not_count(scope: str, kept: list[int]) -> None:
    with pytest.warns(LeftWholeWarning):
        chosen = plan(THREE, only("b:0"), 0.5, scope)
    assert {name: list(row) for name, row in chosen.kept_units.items()} == {"b:0": kept}


def test_a_criterion_that_applies_nowhere_is_an_error() -> None:
    message = r"applies to none of the 3 groups:\n  3 x it has the wrong name\nUse another"
    with pytest.raises(PlanError, match=message):
        score(THREE, only())


def test_one_that_applies_everywhere_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(score(THREE, only("a:0", "b:0", "c:0"))) == ["a:0", "b:0", "c:0"]


def test_many_names_are_counted() -> None:
    many: FakeAnalysis = analysis_of(*(chain(f"g{i}", 2) for i in range(9)))
    with pytest.warns(LeftWholeWarning, match=r"They are 'g1:0', .*'g5:0' and 3 more\."):
        score(many, only("g0:0"))
