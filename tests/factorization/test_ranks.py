"""Ranks: what a layer can become, by energy and for budgets."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fxprune
from fxprune.costs.factors import LayerSizes
from fxprune.factorization.bases import Rotated, core, refined, squared_error
from fxprune.factorization.ranks import DENSE, Choice, Limit, Prospect, by_energy, options
from fxprune.factorization.spreading import SPREADS, by_price, by_threshold

KINDS = st.tuples(
    st.integers(0, 999),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 9]),
    st.booleans(),
)
Kind = tuple[int, int, int, int, bool]


def prospect(seed: int, rows: int, columns: int, taps: int, both: bool = True) -> Prospect:
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand(rows, columns, dtype=torch.float64, generator=generator).pow(4)
    rotated = Rotated(torch.eye(columns).double(), torch.eye(rows).double(), saliency, both)
    return Prospect(rotated.ordered(), LayerSizes(columns, rows, taps, 9, 7))


def every_choice(of: Prospect) -> list[Choice]:
    """All choices that are offered, dense included."""
    rows, columns = of.rotated.saliency.shape
    one_sided = [(r, 0) for r in range(1, rows + 1)] + [(0, c) for c in range(1, columns + 1)]
    grid = list(product(range(1, rows + 1), range(1, columns + 1)))
    two_sided = grid if of.rotated.both and not of.sizes.pointwise else []
    dense = of.cost("macs", DENSE)
    cheaper = [c for c in one_sided + two_sided if of.cost("macs", c) < dense]
    return [*cheaper, DENSE]


def limit(prospects: dict[str, Prospect], share: float, rest: int = 50) -> Limit:
    dense = rest + sum(p.cost("macs", DENSE) for p in prospects.values())
    return Limit("macs", share, dense, int(share * dense), rest)


@settings(max_examples=60, deadline=None)
@given(KINDS)
def test_options_are_the_frontier(kind: Kind) -> None:
    """Every choice is matched or beaten by an option, and no option by another."""
    of = prospect(*kind)
    found = options(of, ("macs",))
    chosen = [found.choice(place) for place in range(len(found))]
    points = [(of.cost("macs", choice), of.loss(choice)) for choice in chosen]
    assert [cost for cost, _ in points] == found.costs["macs"].tolist()
    assert torch.allclose(found.loss, torch.tensor([loss for _, loss in points]).double())
    assert sorted(set(points)) == points
    assert chosen[-1] == DENSE
    for choice in every_choice(of):
        cost, loss = of.cost("macs", choice), of.loss(choice)
        assert any(c <= cost and lost <= loss + 1e-12 for c, lost in points)


@settings(max_examples=40, deadline=None)
@given(st.lists(KINDS, min_size=1, max_size=3), st.floats(0.3, 1))
def test_price_meets_the_budget_and_wastes_nothing(kinds: list[Kind], share: float) -> None:
    prospects = {str(number): prospect(*kind) for number, kind in enumerate(kinds)}
    bound = limit(prospects, share)
    cheapest = {n: min(p.cost("macs", c) for c in every_choice(p)) for n, p in prospects.items()}
    if sum(cheapest.values()) > bound.most:
        with pytest.raises(fxprune.PlanError, match="smallest reachable by factorising is "):
            by_price(prospects, [bound])
        return
    chosen = by_price(prospects, [bound])
    costs = {n: prospects[n].cost("macs", c) for n, c in chosen.items()}
    assert sum(costs.values()) <= bound.most
    for name, p in prospects.items():  # no layer alone can lose less
        room = bound.most - sum(costs.values()) + costs[name]
        best = min(p.loss(c) for c in every_choice(p) if p.cost("macs", c) <= room)
        assert p.loss(chosen[name]) == pytest.approx(best, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(KINDS, min_size=1, max_size=3), st.floats(0.3, 1))
def test_threshold_removes_the_smallest_sums(kinds: list[Kind], share: float) -> None:
    prospects = {str(number): prospect(*kind) for number, kind in enumerate(kinds)}
    bound = limit(prospects, share)
    smallest = {n: p.cheapest(1, 1, {"macs": 1.0}) for n, p in prospects.items()}
    if sum(p.cost("macs", smallest[n]) for n, p in prospects.items()) > bound.most:
        with pytest.raises(fxprune.PlanError, match="smallest reachable"):
            by_threshold(prospects, [bound])
        return
    chosen = by_threshold(prospects, [bound])
    assert sum(p.cost("macs", chosen[n]) for n, p in prospects.items()) <= bound.most
    gone, kept = [0.0], [float("inf")]
    for name, p in prospects.items():
        for side, rank in enumerate(chosen[name]):
            if rank:
                sums = p.rotated.saliency.sum(1 - side)
                gone.append(float(sums[rank:].max()) if rank < len(sums) else 0.0)
                kept.append(float(sums[1:rank].min()) if rank > 1 else float("inf"))
    assert max(gone) <= min(kept)


def test_price_is_optimal_where_the_budget_is_a_corner() -> None:
    """There no other combination of that cost loses less; between corners one may."""
    prospects = {"a": prospect(1, 5, 4, 9), "b": prospect(2, 4, 5, 1), "c": prospect(3, 3, 5, 9)}
    corners = 0
    for share in torch.linspace(0.35, 0.95, 13).tolist():
        chosen = by_price(prospects, [limit(prospects, share)])
        spent = sum(prospects[n].cost("macs", c) for n, c in chosen.items())
        lost = sum(prospects[n].loss(c) for n, c in chosen.items())
        best = min(
            sum(p.loss(c) for p, c in zip(prospects.values(), combination, strict=True))
            for combination in product(*(every_choice(p) for p in prospects.values()))
            if sum(p.cost("macs", c) for p, c in zip(prospects.values(), combination, strict=True))
            <= spent
        )
        corners += lost <= best + 1e-12
    assert corners >= 6


def test_energy_takes_the_cheapest_that_keeps_it() -> None:
    for seed in range(10):
        of = prospect(seed, 6, 5, 9)
        total = float(of.rotated.saliency.sum())
        chosen = by_energy({"layer": of}, 0.8)["layer"]
        fitting = [c for c in every_choice(of) if of.loss(c) <= 0.2 * total]
        assert of.loss(chosen) <= 0.2 * total
        assert of.cost("macs", chosen) == min(of.cost("macs", c) for c in fitting)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_svd_of_a_matrix_has_the_least_error() -> None:
    """Eckart and Young: what is lost are the squares of the smaller singular values."""
    weight = drawn(6, 9, 1)
    rotated = squared_error(weight, False)
    squares = torch.linalg.svdvals(weight[:, :, 0]).square()
    of = Prospect(rotated, LayerSizes(9, 6, 1, 1, 1))
    for rank in range(1, 6):
        expected = float(squares[rank:].sum() / squares.sum())
        assert of.loss((rank, 0)) == pytest.approx(expected)
        assert of.loss((0, rank)) == pytest.approx(expected)


def test_a_convolution_as_a_matrix() -> None:
    weight = drawn(5, 4, 9)
    of = Prospect(squared_error(weight, False), LayerSizes(4, 5, 9, 9, 9))
    for matrix, choice in (
        (weight.flatten(1), (3, 0)),
        (weight.transpose(0, 1).flatten(1), (0, 3)),
    ):
        squares = torch.linalg.svdvals(matrix).square()
        assert of.loss(choice) == pytest.approx(float(squares[3:].sum() / squares.sum()))
    assert all(0 in options(of, ("macs",)).choice(i) for i in range(len(options(of, ("macs",)))))


def test_orthogonal_iteration_loses_less_than_truncation() -> None:
    weight = drawn(7, 6, 9)
    rotated = squared_error(weight, True)
    for rows, columns in ((2, 2), (3, 4), (6, 1)):
        inputs, outputs = refined(weight, rotated, rows, columns)
        kept = core(weight, inputs, outputs).square().sum()
        truncated = core(weight, rotated.inputs[:, :columns], rotated.outputs[:, :rows])
        assert kept > truncated.square().sum()
        assert inputs.shape == (6, columns)
        assert outputs.shape == (7, rows)


def test_a_weight_of_zeros_can_become_factors() -> None:
    rotated = squared_error(torch.zeros(3, 4, 9).double(), True)
    assert rotated.saliency.count_nonzero() == 0
    of = Prospect(rotated, LayerSizes(4, 3, 9, 9, 9))
    assert by_energy({"layer": of}, 1.0)["layer"] != DENSE


def test_the_closed_form_is_that_of_the_layers() -> None:
    sizes = LayerSizes(inputs=8, outputs=6, taps=9, before=100, after=25)
    ranks = torch.tensor([0, 3, 0, 3]), torch.tensor([0, 0, 2, 2])
    assert sizes.macs(*ranks).tolist() == [
        8 * 6 * 9 * 25,
        8 * 3 * 9 * 25 + 3 * 6 * 25,
        8 * 2 * 100 + 2 * 6 * 9 * 25,
        8 * 2 * 100 + 2 * 3 * 9 * 25 + 3 * 6 * 25,
    ]
    pointwise = LayerSizes(inputs=8, outputs=6, taps=1, before=100, after=25)
    assert pointwise.macs(*ranks).tolist() == [8 * 6 * 25, 3 * 14 * 25, 2 * 14 * 25, 2 * 14 * 25]
    assert pointwise.params(*ranks).tolist() == [48, 42, 28, 28]


def test_several_budgets_are_all_met() -> None:
    prospects = {"a": prospect(1, 5, 4, 9), "b": prospect(2, 4, 5, 1)}
    bounds = [limit(prospects, 0.6)]
    dense = 10 + sum(p.cost("params", DENSE) for p in prospects.values())
    bounds.append(Limit("params", 0.5, dense, dense // 2, 10))
    for name, spread in SPREADS.items():
        chosen = spread(prospects, bounds)
        for bound in bounds:
            spent = sum(prospects[n].cost(bound.quantity, c) for n, c in chosen.items())
            assert spent <= bound.most, (name, bound.quantity)


def test_no_layer_at_all() -> None:
    met = Limit("macs", 1.0, 100, 100, 100)
    missed = Limit("macs", 0.5, 100, 50, 100)
    for spread in SPREADS.values():
        assert spread({}, [met]) == {}
        with pytest.raises(fxprune.PlanError, match=r"allows 50, and the smallest .* is 100"):
            spread({}, [missed])
