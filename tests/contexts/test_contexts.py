"""Which groups may choose different units per head or group, and that such choices are exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune import Analysis, Group, RewriteError, rewrite, verify
from tests.masking import TOLERANCE, alive, masked_error, random_plan, traced

HEADS, INNER, WIDTH = 4, 4, 12


class Attention(nn.Module):
    """Plain self-attention with separate projections; subclasses change what happens inside."""

    kv_heads = HEADS

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, HEADS * INNER)
        self.k = nn.Linear(WIDTH, self.kv_heads * INNER)
        self.v = nn.Linear(WIDTH, self.kv_heads * INNER)
        self.out = nn.Linear(HEADS * INNER, WIDTH)

    def heads(self, x: Tensor, layer: nn.Linear) -> Tensor:
        batch, tokens, _ = x.shape
        return layer(x).view(batch, tokens, -1, INNER).transpose(1, 2)

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, k, v

    def scores(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def mixed(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.prepare(*(self.heads(x, layer) for layer in (self.q, self.k, self.v)))
        y = self.mixed(self.scores(q @ k.transpose(-2, -1) * INNER**-0.5) @ v)
        return self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


class ScaledDotProduct(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(x, layer) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


class TalkingHeads(Attention):
    """Heads are mixed where they carry scores, not head dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = nn.Linear(HEADS, HEADS)

    def scores(self, scores: Tensor) -> Tensor:
        return self.talk(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)


class HeadGains(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(HEADS, 1, 1))

    def mixed(self, y: Tensor) -> Tensor:
        return y * self.gain


class MixedHeads(Attention):
    """A residual mix of heads: dimension d of one head is added to dimension d of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(HEADS, HEADS))

    def mixed(self, y: Tensor) -> Tensor:
        return y + torch.einsum("gh,bhtd->bgtd", self.mix, y)


class SoftmaxOverHeads(Attention):
    def mixed(self, y: Tensor) -> Tensor:
        return y.softmax(1)


class RolledHeads(Attention):
    def mixed(self, y: Tensor) -> Tensor:
        return y + y.roll(1, 1)


class SummedHeads(Attention):
    def mixed(self, y: Tensor) -> Tensor:
        return y.cumsum(1)


class HalfAgainstHalf(Attention):
    """Queries of heads 0, 1 meet keys of heads 2, 3, and the other way round."""

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, torch.cat([k[:, 2:], k[:, :2]], 1), v


class AllPairs(nn.Module):
    """Every query head meets every key head."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, HEADS * INNER)
        self.k = nn.Linear(WIDTH, HEADS * INNER)
        self.out = nn.Linear(HEADS * HEADS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).view(x.shape[0], x.shape[1], HEADS, INNER) for layer in (self.q, self.k))
        pairs = torch.einsum("bthd,btgd->bthg", q, k)
        return self.out(pairs.flatten(2))


class GroupedQuery(Attention):
    """Two query heads share a key and value head."""

    kv_heads = 2

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)


class QueryNorm(Attention):
    """Normalised over the head dimension by an affine map that all heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(INNER)

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.norm(q), self.norm(k), v


class BareQueryNorm(Attention):
    """Normalised over the head dimension of each head alone: not maskable, and still free."""

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return F.layer_norm(q, (INNER,)), F.layer_norm(k, (INNER,)), v


class SharedByHeads(Attention):
    """One Linear(INNER) that every head uses for its values."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(INNER, 6)
        self.out = nn.Linear(HEADS * 6, WIDTH)

    def mixed(self, y: Tensor) -> Tensor:
        return self.shared(y)


class Rotary(Attention):
    """Halves of the head dimension rotate together, by a table that all heads share."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(8.0)[:, None] * torch.rand(INNER // 2).repeat(2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        tokens = x.shape[2]
        return x * self.cos[:tokens] + torch.cat([-b, a], -1) * self.sin[:tokens]

    def prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.rotate(q), self.rotate(k), v


class FlippedDims(Attention):
    """Dimension d of every head meets dimension INNER-1-d of the same head."""

    def mixed(self, y: Tensor) -> Tensor:
        return y + y.flip(-1)


class FusedQkv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * INNER)
        self.out = nn.Linear(HEADS * INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, INNER).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = (q @ k.transpose(-2, -1) * INNER**-0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, tokens, -1))


class CrossCovariance(nn.Module):
    """XCiT: attention between the channels of a head; the gram matrix carries them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, HEADS * INNER)
        self.k = nn.Linear(WIDTH, HEADS * 3)
        self.out = nn.Linear(HEADS * INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, HEADS, INNER).permute(0, 2, 3, 1)
        k = self.k(x).view(batch, tokens, HEADS, 3).permute(0, 2, 3, 1)
        gram = torch.tanh(q @ k.transpose(-2, -1))
        return self.out((gram @ k).permute(0, 3, 1, 2).reshape(batch, tokens, -1))


class DimensionMajor(nn.Module):
    """Channels are INNER*HEADS: the context is the minor factor."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, INNER * HEADS)
        self.k = nn.Linear(WIDTH, INNER * HEADS)
        self.out = nn.Linear(HEADS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).view(x.shape[0], x.shape[1], INNER, HEADS) for layer in (self.q, self.k))
        return self.out((q * k).sum(2))


class ContractedTogether(Attention):
    """Values and their maps (heads, features, width) meet in an einsum, which merges ``d, h``."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Parameter(torch.randn(HEADS, INNER, WIDTH))
        del self.out

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(x, layer) for layer in (self.q, self.k, self.v))
        y = self.scores(q @ k.transpose(-2, -1)) @ v
        return torch.einsum("bhtd,hdc->btc", y, self.back)


class Numbered(Attention):
    """Each feature of each head has a number of its own, which `arange` makes."""

    def mixed(self, y: Tensor) -> Tensor:
        numbers = torch.arange(HEADS * INNER, dtype=y.dtype).view(HEADS, 1, INNER)
        return y + numbers


class GroupedConvolutions(nn.Module):
    """Channels between two grouped convolutions: chosen per group."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(WIDTH, 16, 1)
        self.grouped = nn.Conv1d(16, 24, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm1d(24)
        self.second = nn.Conv1d(24, 8, 1, groups=4)
        self.last = nn.Conv1d(8, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.transpose(1, 2)))
        x = torch.relu(self.norm(self.grouped(x)))
        return self.last(torch.relu(self.second(x))).transpose(1, 2)


class ResidualGroups(nn.Module):
    """A grouped convolution that is added to its input: its weight carries the channels twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(WIDTH, 16, 1)
        self.grouped = nn.Conv1d(16, 16, 1, groups=4)
        self.last = nn.Conv1d(16, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x.transpose(1, 2)))
        return self.last(y + self.grouped(y)).transpose(1, 2)


@dataclass(frozen=True)
class Case:
    """A module and, per parameter whose rows a group makes, how many contexts that group has."""

    make: Callable[[], nn.Module]
    contexts: dict[str, int]


CASES = {
    "plain": Case(Attention, {"q": HEADS, "v": HEADS}),
    "scaled dot product": Case(ScaledDotProduct, {"q": HEADS, "v": HEADS}),
    "talking heads": Case(TalkingHeads, {"q": HEADS, "v": HEADS}),
    "head gains": Case(HeadGains, {"q": HEADS, "v": HEADS}),
    "fused qkv": Case(FusedQkv, {"qkv": HEADS}),
    "head mixing with a residual": Case(MixedHeads, {"q": HEADS, "v": 1}),
    "softmax over heads": Case(SoftmaxOverHeads, {"q": HEADS, "v": 1}),
    "roll over heads": Case(RolledHeads, {"v": 1}),
    "cumsum over heads": Case(SummedHeads, {"q": HEADS, "v": 1}),
    "heads 0, 1 with heads 2, 3": Case(HalfAgainstHalf, {"q": 1}),
    "all pairs of heads": Case(AllPairs, {"q": 1}),
    "grouped queries": Case(GroupedQuery, {"q": 2, "v": 2}),
    "query norm": Case(QueryNorm, {"q": 1, "v": HEADS}),
    "query norm without weights": Case(BareQueryNorm, {"q": HEADS, "v": HEADS}),
    "a Linear shared by heads": Case(SharedByHeads, {"q": HEADS, "v": 1}),
    "rotary": Case(Rotary, {"q": 1, "v": HEADS}),
    "flip over the head dimension": Case(FlippedDims, {"q": HEADS, "v": 1}),
    "cross covariance": Case(CrossCovariance, {"q": HEADS, "k": HEADS}),
    "dimension major": Case(DimensionMajor, {"q": 1}),
    "contracted with the heads": Case(ContractedTogether, {"q": HEADS, "v": HEADS}),
    "numbered features": Case(Numbered, {"q": HEADS, "v": HEADS}),
    "grouped convolutions": Case(GroupedConvolutions, {"first": 4, "grouped": 4}),
    "grouped convolution and residual": Case(ResidualGroups, {"first": 1}),
}


def innermost(analysis: Analysis) -> list[Group]:
    outer = {group.outer for group in analysis.groups}
    return [group for group in analysis.groups if group.name not in outer]


def made_by(analysis: Analysis, layer: str) -> list[Group]:
    """The innermost groups whose units rows of this layer's weight make."""
    return [
        group
        for group in innermost(analysis)
        if any(m.parameter == f"{layer}.weight" and m.dim == 0 for m in group.members)
    ]


@pytest.mark.parametrize("name", CASES)
def test_contexts(name: str) -> None:
    case = CASES[name]
    _, analysis = traced(alive(case.make()), torch.randn(2, 5, WIDTH).double())
    for layer, contexts in case.contexts.items():
        found = made_by(analysis, layer)
        assert found, f"{layer}: nothing to prune. {[*analysis.frozen]}"
        assert {group.contexts for group in found} == {contexts}, f"{layer}: {found}"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_choices_per_context_are_exact(name: str, seed: int) -> None:
    """Random units, other ones in each context: masked equivalence, or masked interpretation."""
    model = alive(CASES[name].make(), seed)
    graph, analysis = traced(model, torch.randn(2, 5, WIDTH).double())
    inputs = torch.randn(3, 5, WIDTH).double()
    inner = {group.name for group in innermost(analysis)}
    plan = random_plan(analysis, seed, lambda g: g.maskable and g.name in inner)
    assert masked_error(model, plan, rewrite(graph, plan), inputs) <= TOLERANCE
    plan = random_plan(analysis, seed)
    report = verify(graph, plan, rewrite(graph, plan), inputs)
    assert report.ok, report
    assert report.max_error <= TOLERANCE


def test_whole_heads_and_head_dimensions_nest() -> None:
    """Head dimensions lie inside heads; both can go at once, with unequal widths for q and v."""
    model = alive(Attention())
    graph, analysis = traced(model, torch.randn(2, 5, WIDTH).double())
    (heads,) = [g for g in analysis.groups if g.size == HEADS and g.contexts == 1]
    assert [g.outer for g in innermost(analysis)] == [heads.name] * 2
    (q,) = made_by(analysis, "q")
    plan = random_plan(analysis, 1, lambda g: g.name in (heads.name, q.name), 0.25)
    pruned = rewrite(graph, plan)
    assert pruned.q.out_features == 1
    assert pruned.v.out_features == INNER
    inputs = torch.randn(3, 5, WIDTH).double()
    assert masked_error(model, plan, pruned, inputs) <= TOLERANCE


class Grid(nn.Module):
    """Rows and columns of features; with a gain per column, which every row shares."""

    def __init__(self, rows: int, columns: int, shared: bool) -> None:
        super().__init__()
        self.shape = rows, columns, INNER
        self.features = nn.Linear(5, rows * columns * INNER)
        self.gain = nn.Parameter(torch.zeros(columns if shared else 1, 1))
        self.head = nn.Linear(rows * columns * INNER, 3)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.features(x).unflatten(-1, self.shape) * self.gain
        return self.head(grid.flatten(-3))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 2), (2, 5), (5, 2)])
def test_of_several_contexts_the_largest_that_has_none(
    rows: int, columns: int, shared: bool
) -> None:
    model = alive(Grid(rows, columns, shared))
    graph, analysis = traced(model, torch.randn(2, 5).double())
    assert {group.size: group.contexts for group in analysis.groups} == {
        rows: 1,
        columns: 1 if shared else rows,  # each row has columns of its own
        INNER: max(rows, columns) if shared else rows,
    }
    plan = random_plan(analysis)
    error = masked_error(model, plan, rewrite(graph, plan), torch.randn(3, 5).double())
    assert error <= TOLERANCE


@pytest.fixture(scope="module")
def library() -> torch.library.Library:
    """The library object owns its operators, which torch takes once: not where this is imported."""
    library = torch.library.Library("fxprune_contexts", "FRAGMENT")
    library.define("share(Tensor x) -> Tensor")
    library.impl("share", lambda x: x.flatten(1).softmax(1).view_as(x), "CompositeImplicitAutograd")
    library.define("share_turned(Tensor x) -> Tensor")
    library.impl("share_turned", _share_turned, "CompositeImplicitAutograd")
    library.define("both_orders(Tensor x) -> Tensor")
    library.impl("both_orders", _both_orders, "CompositeImplicitAutograd")
    library.define("standardise_turned(Tensor x) -> Tensor")
    library.impl("standardise_turned", _standardise_turned, "CompositeImplicitAutograd")
    library.define("standardise_features(Tensor x) -> Tensor")
    library.impl("standardise_features", _standardise_features, "CompositeImplicitAutograd")
    return library


def _share_turned(x: Tensor) -> Tensor:
    turned = x.transpose(1, 2)
    return turned.flatten(1).softmax(1).view(turned.shape).transpose(1, 2)


def _standardise_turned(x: Tensor) -> Tensor:
    turned = x.transpose(1, 2)
    channels = F.batch_norm(turned.flatten(1), None, None, training=True)
    return channels.view(turned.shape).transpose(1, 2)


def _standardise_features(x: Tensor) -> Tensor:
    features_first = x.permute(2, 1, 0)  # for a batch norm a batch of them, a channel per head
    return F.batch_norm(features_first, None, None, training=True).permute(2, 1, 0)


def _both_orders(x: Tensor) -> Tensor:
    return torch.cat([x.flatten(1), x.mT.flatten(1)], 1)


def assert_verified(graph: fx.GraphModule, analysis: Analysis, inputs: Tensor) -> None:
    """Random plans are right, by masked interpretation where masks are not enough."""
    for seed in range(5):
        plan = random_plan(analysis, seed)
        assert verify(graph, plan, rewrite(graph, plan), inputs).ok


class Shared(nn.Module):
    """A softmax over heads and their features at once, inside one operator."""

    def __init__(self, name: str, heads_last: bool) -> None:
        super().__init__()
        self.name, self.other = name, 2 if heads_last else 1
        self.features, self.head = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.features(x).unflatten(1, (3, 4)).transpose(1, self.other)
        shares = getattr(torch.ops.fxprune_contexts, self.name)(grid)
        return self.head(shares.transpose(1, self.other).flatten(1))


@pytest.mark.parametrize(
    ("name", "heads_last", "contexts"),
    [("share", False, 3), ("share", True, 1), ("share_turned", False, 1)],
)
def test_a_statistic_over_features_before_their_heads_lets_heads_choose_alike(
    library: torch.library.Library, name: str, heads_last: bool, contexts: int
) -> None:
    # Features that each head chooses are in another order there than those of the masked original.
    graph, analysis = traced(alive(Shared(name, heads_last)), torch.randn(2, 5).double())
    assert {g.size: g.contexts for g in analysis.groups} == {3: 1, 4: contexts}
    assert_verified(graph, analysis, torch.randn(3, 5).double())


@pytest.mark.parametrize("name", ["standardise_turned", "standardise_features"])
def test_heads_choose_features_that_a_batch_norm_has_in_another_order(
    library: torch.library.Library, name: str
) -> None:
    # Whether each channel is for itself, or features are the positions of their head's channel.
    graph, analysis = traced(alive(Shared(name, False)), torch.randn(2, 5).double())
    assert {g.size: g.contexts for g in analysis.groups} == {3: 1, 4: 3}
    assert_verified(graph, analysis, torch.randn(3, 5).double())


class BothOrders(nn.Module):
    """The features of each head, and after them the heads of each feature, by one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(5, 12), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.ops.fxprune_contexts.both_orders(self.features(x).view(-1, 3, 4)))


def test_features_before_their_heads_in_a_part_of_a_dimension_let_heads_choose_alike(
    library: torch.library.Library,
) -> None:
    # Of the second half, the head's weight would keep columns in another order than they come.
    graph, analysis = traced(alive(BothOrders()), torch.randn(2, 5).double())
    assert {g.size: g.contexts for g in analysis.groups} == {3: 1, 4: 1}
    assert_verified(graph, analysis, torch.randn(3, 5).double())


class Prompted(nn.Module):
    """Two rows of the model's own above an outer product, whose rows have the columns' atoms."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(1, 2, 12))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        outer = flat[:, :, None] * flat[:, None, :]
        return self.head(torch.cat([self.prompt.expand(len(x), -1, -1), outer], 1).mean(1))


def test_a_context_is_looked_for_where_its_units_are() -> None:
    # The rows' atoms were taken for the context of the prompt's rows, which have none of them.
    graph, analysis = traced(alive(Prompted()), torch.randn(2, 3, 4).double())
    (group,) = (group for group in analysis.groups if group.contexts > 1)
    assert group.size == 2
    assert_verified(graph, analysis, torch.randn(3, 3, 4).double())


class Neighbours(nn.Module):
    """Adds to each feature of a head its neighbour, which makes a unit of each pair."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(5, 18), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x).view(-1, 3, 6)
        return self.head((h + torch.stack([h[..., 1::2], h[..., 0::2]], -1).flatten(2)).flatten(1))


def test_units_that_stand_alone_are_the_same_in_each_head() -> None:
    # Every other feature is read by number, whatever the head.
    graph, analysis = traced(alive(Neighbours()), torch.randn(2, 5).double())
    assert [(g.size, g.contexts) for g in analysis.groups] == [(3, 1), (3, 1)]
    assert_verified(graph, analysis, torch.randn(3, 5).double())


class Turned(nn.Module):
    """The features of each head in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).view(-1, 3, 4)[..., [1, 2, 3, 0]].flatten(1))


def test_a_numbering_that_depends_on_the_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: heads that choose for themselves, where all features are numbered alike."""
    monkeypatch.setattr("fxprune.contexts._RENUMBERED", frozenset())
    graph, analysis = traced(alive(Turned()), torch.randn(2, 5).double())
    assert max(group.contexts for group in analysis.groups) == 3
    with pytest.raises(RewriteError, match="depend on a context that lies in another dimension"):
        rewrite(graph, random_plan(analysis, groups=lambda group: group.contexts == 3))
