"""Slicing of large tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune import PruningPlan
from fxprune.groups import Group
from fxprune.slicing import Slicer, members_by_parameter, slice_parameter
from tests.plans.fakes import FakeAnalysis, analysis_of, chain, producer


class _Made(TorchDispatchMode):
    """Notes how many entries each new tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs)
        if not any(r.alias_info for r in func._schema.returns):
            self.sizes += [result.numel()] if isinstance(result, torch.Tensor) else []
        return result


def test_a_large_tensor_is_sliced_without_a_second_copy_of_the_result() -> None:
    weight = torch.randn(128, 64, 9, 9).to(memory_format=torch.channels_last)
    group = Group("weight:0", 128, members=(producer("weight", 0, torch.arange(128)),))
    fake = FakeAnalysis((group,), {"weight": weight})
    plan = PruningPlan.build(fake, {group.name: list(range(0, 128, 2))})
    members = members_by_parameter(plan)["weight"]
    with _Made() as made:
        result = slice_parameter(weight, members, plan)
    assert torch.equal(result, weight[::2])
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert sum(size >= result.numel() for size in made.sizes) == 1


def test_a_large_tensor_is_sliced_in_few_blocks() -> None:
    """In one per row it would take many times as long."""
    weight = torch.randn(2048, 128)
    group = Group("weight:1", 128, members=(producer("weight", 1, torch.arange(128)),))
    plan = PruningPlan.build(FakeAnalysis((group,), {"weight": weight}), {group.name: [1, 2, 5]})
    with _Made() as made:
        result = slice_parameter(weight, members_by_parameter(plan)["weight"], plan)
    assert torch.equal(result, weight[:, [1, 2, 5]])
    assert len(made.sizes) < 20


def test_where_the_entries_that_stay_are() -> None:
    analysis = analysis_of(chain("a", 4))
    slicer = Slicer(PruningPlan.build(analysis, {"a:0": [1, 3]}))
    assert slicer.kept_entries("a.in").tolist() == [[3, 4, 5], [9, 10, 11]]
    assert slicer.kept_entries("a.out").tolist() == [[1, 3], [5, 7]]
