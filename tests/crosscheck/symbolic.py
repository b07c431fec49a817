"""Which parameter dimensions torch's own symbolic shapes find to be equal.

Each dimension of each parameter is a symbol of its own. Running the graph on fake tensors makes
torch's `ShapeEnv` note what it had to assume: symbols that stand for a number, for each other, or
for sums and products of others. This knows nothing of rules or axes: it is what the operators'
shape functions check.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch
from torch import Tensor, fx, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxprune import Analysis
from fxprune.axes import Axis, is_frozen, leaves
from fxprune.meta import example_values
from fxprune.selection import Selection
from tests.masking import random_plan

Dimension: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Derived:
    """What ShapeEnv assumed of the symbols that it did not fix to a number.

    classes     sets of dimensions that have one size
    equations   between a dimension and a polynomial of others. Where a literal divides a size,
                as a number of heads does, the equation is about the literal: that is left out
    symbols     the symbol of each dimension
    """

    classes: tuple[tuple[Dimension, ...], ...]
    equations: tuple[sympy.Eq, ...]
    symbols: Mapping[Dimension, sympy.Symbol]

    @property
    def compared(self) -> int:
        """How many equalities there are to check."""
        return sum(len(dimensions) - 1 for dimensions in self.classes) + len(self.equations)


def derive(traced: fx.GraphModule) -> Derived:
    """Run the graph with a symbol for every parameter dimension, and read what was unified."""
    environment = ShapeEnv(duck_shape=False)  # else equal sizes would share a symbol at once
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    symbolic = copy.deepcopy(traced)
    symbols = _declare(symbolic, traced, mode)
    values = [_static(value, mode) for value in example_values(traced, None)]
    with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]), mode:
        fx.Interpreter(symbolic).run(*values, enable_io_processing=False)
    classes: dict[sympy.Expr, list[Dimension]] = defaultdict(list)
    equations: list[sympy.Eq] = []
    for dimension, symbol in symbols.items():
        stands_for = environment.simplify(symbol)
        if stands_for.is_symbol:
            classes[stands_for].append(dimension)
        elif stands_for.free_symbols:
            equations.append(sympy.Eq(symbol, stands_for, evaluate=False))
    equations += [environment.simplify(guard.expr) for guard in environment.guards]
    equations = [equation for equation in equations if _is_polynomial(equation)]
    shared = tuple(tuple(found) for found in classes.values() if len(found) > 1)
    return Derived(shared, tuple(dict.fromkeys(equations)), symbols)


def _is_polynomial(equation: Any) -> bool:
    return isinstance(equation, sympy.Eq) and all(
        side.free_symbols and side.is_polynomial(*side.free_symbols) for side in equation.args
    )


def _declare(
    symbolic: fx.GraphModule, traced: fx.GraphModule, mode: FakeTensorMode
) -> dict[Dimension, sympy.Symbol]:
    """Put fake tensors in the place of all parameters and buffers; the symbols by dimension."""
    originals = [*traced.named_parameters(), *traced.named_buffers()]
    copies = [*symbolic.named_parameters(), *symbolic.named_buffers()]
    fakes: dict[int, Tensor] = {}
    symbols: dict[Dimension, sympy.Symbol] = {}
    taps = _kernels(symbolic)
    for (name, _), (_, tensor) in zip(originals, copies, strict=True):
        data = not tensor.is_floating_point()  # indices that a rewrite renumbers
        fixed = [
            data or size == 1 or (dim > 1 and id(tensor) in taps)
            for dim, size in enumerate(tensor.shape)
        ]
        sizes = [DimDynamic.STATIC if f else DimDynamic.DYNAMIC for f in fixed]
        fakes[id(tensor)] = fake = mode.from_tensor(
            tensor.detach(),
            source=ConstantSource(name),
            symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes),
        )
        for dim, size in enumerate(fake.shape):
            if isinstance(size, torch.SymInt):
                symbols[name, dim] = size.node.expr
    for module in symbolic.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fakes[id(parameter)], requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fakes[id(buffer)]
    return symbols


def _kernels(module: nn.Module) -> set[int]:
    """Weights of convolutions: with symbolic taps, every position would be an expression."""
    convolutions = (m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd))
    return {id(convolution.weight) for convolution in convolutions}


def _static(value: Any, mode: FakeTensorMode) -> Any:
    if not isinstance(value, Tensor):
        return value
    real = torch.zeros(value.shape, dtype=value.dtype)
    return mode.from_tensor(real, static_shapes=True)


# -- comparison with the analysis ------------------------------------------------------------------


def violations(derived: Derived, analysis: Analysis, plans: int = 5) -> list[str]:
    """The equalities that do not hold in the groups.

    Dimensions of one size must be in the same groups or all be frozen. What is calculated from
    others must be so under random plans, too.
    """
    axes = {
        (name, dim): axis
        for name, layout in analysis.propagation.layouts.items()
        for dim, axis in enumerate(layout)
    }
    found = [
        f"{first} and {other} have one size, but are {axes[first]!r} and {axes[other]!r}"
        for first, *others in derived.classes
        for other in others
        if _groups(axes[first]) != _groups(axes[other])
    ]
    # Literals in equations count the groups that others are nested in: heads, convolution groups.
    counted = {group.outer for group in analysis.groups}
    for seed in range(plans):
        # Unequal shares, so that sizes do not agree by chance.
        plan = random_plan(analysis, seed, lambda g: g.name not in counted, keep=0.3 + 0.1 * seed)
        width = Selection(analysis, plan).width
        sizes = {symbol: width(axes[d]) for d, symbol in derived.symbols.items()}
        found += [f"{e} under seed {seed}" for e in derived.equations if not _holds(e, sizes)]
    return found


def _groups(axis: Axis) -> Any:
    """What decides which indices stay: the atoms in any order, or that all do."""
    return None if is_frozen(axis) else sorted(atom.key for atom in leaves(axis))


def _holds(equation: sympy.Eq, sizes: Mapping[sympy.Symbol, int]) -> bool:
    known = {symbol: sizes[symbol] for symbol in equation.free_symbols if symbol in sizes}
    return bool(equation.subs(known) == sympy.true)
