"""Random chains of views, gathers, broadcasts and contractions: slicing commutes with them."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from tests.rules.harness import Case, Sample, analyze_open

Step = Callable[["Chain"], None]
MAX_NUMEL = 400


class Chain:
    """Builds a graph step by step; knows each value's shape by running it."""

    def __init__(self, shape: tuple[int, ...], generator: random.Random) -> None:
        self.random = generator
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.count = 0
        self.node, self.value = self.parameter(shape)

    def parameter(self, shape: tuple[int, ...]) -> tuple[fx.Node, torch.Tensor]:
        """A new parameter."""
        name = f"p{self.count}"
        self.count += 1
        value = torch.randn(shape, dtype=torch.float64)
        self.root.register_parameter(name, nn.Parameter(value, requires_grad=False))
        return self.graph.get_attr(name), value

    def method(self, name: str, *args: object) -> None:
        """Apply a method to the current value."""
        self.node = self.graph.call_method(name, (self.node, *args))
        self.value = getattr(self.value, name)(*args)

    def function(self, function: Callable[..., torch.Tensor], *operands: object) -> None:
        """Apply a function; pairs of node and value stand for tensors."""
        nodes = tuple(o[0] if isinstance(o, tuple) else o for o in operands)
        values = tuple(o[1] if isinstance(o, tuple) else o for o in operands)
        self.node = self.graph.call_function(function, nodes)
        self.value = function(*values)

    @property
    def current(self) -> tuple[fx.Node, torch.Tensor]:
        return self.node, self.value

    def dim(self) -> int:
        return self.random.randrange(self.value.dim())


def _activate(chain: Chain) -> None:
    chain.function(torch.tanh, chain.current)


def _permute(chain: Chain) -> None:
    order = list(range(chain.value.dim()))
    chain.random.shuffle(order)
    chain.method("permute", *order)


def _merge(chain: Chain) -> None:
    if chain.value.dim() > 1:
        d = chain.random.randrange(chain.value.dim() - 1)
        shape = list(chain.value.shape)
        shape[d : d + 2] = [shape[d] * shape[d + 1]]
        chain.method("reshape", *shape)


def _factor(chain: Chain) -> None:
    d = chain.dim()
    size = chain.value.shape[d]
    divisors = [n for n in range(2, size) if size % n == 0]
    if divisors and chain.value.dim() < 4:
        n = chain.random.choice(divisors)
        shape = list(chain.value.shape)
        shape[d : d + 1] = [n, size // n]
        chain.method("reshape", *shape)


def _broadcast(chain: Chain) -> None:
    shape = list(chain.value.shape)
    for d in range(len(shape)):
        if chain.random.random() < 0.4:
            shape[d] = 1
    chain.function(operator.mul, chain.current, chain.parameter(tuple(shape)))


def _residual(chain: Chain) -> None:
    chain.function(operator.add, chain.current, chain.parameter(tuple(chain.value.shape)))


def _cat(chain: Chain) -> None:
    d = chain.dim()
    shape = list(chain.value.shape)
    shape[d] = chain.random.randint(2, 4)
    other = chain.parameter(tuple(shape))
    chain.node = chain.graph.call_function(torch.cat, ([chain.node, other[0]], d))
    chain.value = torch.cat([chain.value, other[1]], d)


def _half(chain: Chain) -> None:
    d = chain.dim()
    if chain.value.shape[d] > 3:
        parts = chain.value.chunk(2, d)
        node = chain.graph.call_method("chunk", (chain.node, 2, d))
        pick = chain.random.randrange(2)
        chain.node = chain.graph.call_function(operator.getitem, (node, pick))
        chain.value = parts[pick]


def _flip(chain: Chain) -> None:
    chain.method("flip", chain.dim())


def _mix(chain: Chain) -> None:
    size = chain.value.shape[-1]
    weight = chain.parameter((chain.random.randint(2, 5), size))
    chain.function(torch.nn.functional.linear, chain.current, weight)


STEPS: tuple[Step, ...] = (
    _activate,
    _permute,
    _merge,
    _factor,
    _broadcast,
    _residual,
    _cat,
    _half,
    _flip,
    _mix,
)


def build(seed: int, steps: list[int]) -> Case:
    """The case of a random chain."""
    generator = random.Random(seed)
    torch.manual_seed(seed)
    chain = Chain((generator.choice([2, 4]), generator.choice([3, 6])), generator)
    for step in steps:
        if chain.value.numel() <= MAX_NUMEL:
            STEPS[step](chain)
    chain.graph.output(chain.node)
    traced = fx.GraphModule(chain.root, chain.graph)
    return Case(Sample("", lambda: None, ()), traced, analyze_open(traced), ())


@settings(max_examples=120)
@given(st.integers(0, 10**6), st.lists(st.integers(0, len(STEPS) - 1), min_size=2, max_size=7))
def test_slicing_commutes(seed: int, steps: list[int]) -> None:
    """Several groups at once: those that are contracted are masked, which they must allow."""
    case = build(seed, steps)
    generator = random.Random(seed)
    mixed = case.mixed()
    groups = [g for g in case.analysis.groups if g.maskable or g.name not in mixed]
    masked = [g.name for g in groups if g.name in mixed]
    for _ in range(2):
        chosen = [g for g in groups if generator.random() < 0.7]
        if chosen:
            assert case.disagreement(case.plan(chosen, generator), masked) is None
