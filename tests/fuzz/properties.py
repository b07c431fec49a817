"""What must hold for every program and every plan. Each property is one function of a `Case`."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import fxprune
from fxprune import Analysis, Group, PruningPlan
from fxprune.errors import TraceError
from fxprune.grouping import build_groups
from fxprune.interpretation import Interpretation
from fxprune.meta import shapes_on_meta
from fxprune.propagate import Propagation, TensorAxes, propagate
from fxprune.selection import Selection
from tests.fuzz import reference
from tests.fuzz.case import Case, bits, run, same_bits, tensors, trace
from tests.fuzz.gradients import gradients_of, is_derivative
from tests.fuzz.matches import (
    composed_plans,
    group_of_contexts,
    has_other_contexts,
    of_single_units,
    signature_of,
)

TOLERANCE = 1e-9
BATCHES = (3, 1)
LARGEST = 2**24
"""Programs are not run at other sizes that make a tensor of more elements: 128 MiB."""


class Silent(Exception):
    """A property says nothing about a case, with the reason."""


def masked_equivalence(case: Case) -> None:
    """The pruned module is the original with removed entries at zero, at other batch sizes too."""
    for batch in BATCHES:
        inputs = case.program.example(batch, seed=batch)
        expected = run(case.masked_model, inputs)
        error = reference.relative_error(run(case.masked_pruned, inputs), expected)
        assert error <= TOLERANCE, f"batch {batch}: relative error {error:.1e}"


def other_sizes(case: Case) -> None:
    """The pruned module is the masked original at other sizes of what is free beside the batch."""
    info = case.traced.meta["fxprune"]
    free = [(name, dim) for name, dims in info.dynamic.items() for dim in dims if dim > 0]
    if not free:
        raise Silent("only the batch size is free")
    shapes = {value.name: value.shape for value in case.program.inputs}
    said = False
    for steps in (1, 3):
        sizes = {
            (name, dim): shapes[name][dim] + steps * dim * info.steps.get(name, {}).get(dim, 1)
            for name, dim in free
        }
        inputs = case.program.example(3, seed=steps, sizes=sizes)
        try:
            largest = _largest(case.traced, inputs)
        except TraceError:
            continue  # guarded
        except (RuntimeError, IndexError):
            largest = 0  # as below
        if largest > LARGEST:
            continue  # outer products of outer products
        try:
            expected = run(case.masked_model, inputs)
        except (RuntimeError, IndexError):
            continue  # the program itself does not take these sizes: its tables are too short
        run(case.traced, inputs)
        said = True
        error = reference.relative_error(run(case.masked_pruned, inputs), expected)
        assert error <= TOLERANCE, f"{sizes}: relative error {error:.1e}"
    if not said:
        raise Silent("neither the program nor its guards take these sizes")


def _largest(traced: fx.GraphModule, inputs: tuple[Tensor, ...]) -> int:
    """The number of elements of the largest tensor that a graph makes of such inputs."""
    shapes = shapes_on_meta(traced, tuple(value.to("meta") for value in inputs))
    return max(math.prod(shape) for found in shapes.values() for shape in found)


def masked_interpretation(case: Case) -> None:
    """With every kind of group pruned, `verify` agrees at another batch size."""
    inputs = case.program.example(3, seed=3)
    report = fxprune.verify(case.traced, case.plan, case.pruned, inputs)
    assert report.ok, str(report)


def node_local(case: Case) -> None:
    """compact(op(masked x)) = op'(compact x) at every node: the pruned graph runs on what the
    masked interpretation of the original has, at the kept entries.
    """
    inputs = case.program.example(3, seed=3)
    masked = reference.masked(case.traced, case.keep(case.kept))
    propagation = propagate(masked, inputs)
    selection = Selection(_sized(case, propagation), case.plan)
    wanted: dict[str, list[Tensor]] = {}
    for node, value in Interpretation(masked, selection, inputs).run():
        stated = [v for v in tree_leaves(propagation.nodes[node]) if type(v) is TensorAxes]
        if stated:
            found = zip(tensors(value), stated, strict=True)
            wanted[node.name] = [_compact(t, selection.positions(v.axes)) for t, v in found]
    with torch.no_grad():
        _Lockstep(case.pruned, wanted).run(*inputs)


def _compact(tensor: Tensor, positions: Tensor | None) -> Tensor:
    return tensor.clone() if positions is None else tensor.reshape(-1)[positions]


class _Lockstep(fx.Interpreter):
    """Compares every node, and goes on from the wanted values."""

    def __init__(self, module: fx.GraphModule, wanted: Mapping[str, list[Tensor]]) -> None:
        super().__init__(module)
        self.wanted = wanted

    def run_node(self, n: fx.Node) -> Any:
        around = [v for source in n.all_input_nodes for v in tensors(self.env[source])]
        scale = max(map(reference.largest, around), default=0.0)
        value = super().run_node(n)
        if n.op == "output" or n.name not in self.wanted:
            return value
        own, wanted = tensors(value), self.wanted[n.name]
        scale = max([scale, *map(reference.largest, wanted)])
        error = max(map(reference.distance, own, wanted), default=0.0)
        assert error <= TOLERANCE * scale, f"{n}: {error:.1e} off, with {scale:.1e} around it"
        if n.op != "get_attr":
            for mine, exact in zip(own, wanted, strict=True):
                if all(s > 0 or k == 1 for s, k in zip(mine.stride(), mine.shape, strict=True)):
                    mine.copy_(exact)  # in place: views stay views
        return value


def _sized(case: Case, propagation: Propagation) -> Analysis:
    """The analysis at the sizes of other inputs."""
    groups = build_groups(propagation)
    return Analysis(case.traced, case.analysis.fingerprint, propagation, groups)


def declared_shapes(case: Case) -> None:
    """Every node runs at the shape that its axes have after the plan, and modules tell theirs."""
    inputs = case.program.example(3, seed=2)
    propagation = propagate(case.traced, inputs)
    selection = Selection(_sized(case, propagation), case.plan)
    declared = {
        node.name: [selection.shape(v.axes) for v in tree_leaves(value) if type(v) is TensorAxes]
        for node, value in propagation.nodes.items()
    }
    for node, value in executed(case.pruned, inputs):
        shapes = [tuple(tensor.shape) for tensor in tensors(value)]
        if node.name in declared and node.op != "output":
            assert shapes == declared[node.name], (
                f"{node}: {shapes}, declared {declared[node.name]}"
            )
    for name, module in case.pruned.named_modules():
        if type(module).__module__.startswith("torch.nn.modules") and not module._modules:
            _tells_its_shapes(name, module)


def executed(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> list[tuple[fx.Node, Any]]:
    """Every node with its value."""
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*inputs)
    return list(interpreter.env.items())


def _tells_its_shapes(name: str, module: nn.Module) -> None:
    """What a module prints must make a module with parameters of the same shapes."""
    text = repr(module).replace("NonDynamicallyQuantizableLinear", "Linear")
    made = eval(f"nn.{text}", {"nn": nn, "torch": torch})
    own, told = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (module, made))
    assert own == told, f"{name} is {text}, but has {own}"


def original_untouched(case: Case) -> None:
    """Neither the model nor its graph has changed by a bit."""
    fresh = bits(case.program.build())
    assert same_bits(bits(case.model), fresh), "the model's state changed"
    named = dict([*case.traced.named_parameters(), *case.traced.named_buffers()])
    assert all(torch.equal(named[name], fresh[name]) for name in named if name in fresh)
    assert case.traced.code == case.other[1].code, "the graph changed"


def gradients(case: Case) -> None:
    """The pruned module's gradients are the masked original's, at the entries that stay."""
    inputs, keep = case.program.example(3, seed=4), case.keep(case.maskable)
    crossed = reference.crossed_dims(case.analysis.groups, case.maskable)
    expected = gradients_of(case.masked_model, inputs)
    actual = gradients_of(case.masked_pruned, inputs)
    assert set(actual) <= set(expected), sorted(set(actual) - set(expected))
    scale = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=1.0)
    for name, gradient in actual.items():
        wanted = expected[name]
        if name in keep:
            wanted = reference.squeezed(wanted, keep[name], crossed.get(name, set()))
        error = float((gradient - wanted).abs().max()) / scale
        if error > TOLERANCE and not is_derivative(case.masked_model, inputs, name, expected):
            # F.batch_norm's weight has a wrong gradient where neighbours have size-1 dimensions.
            raise Silent("torch's own gradient of the original is wrong")
        assert error <= TOLERANCE, f"{name}: {error:.1e} of the largest gradient"


def empty_plan(case: Case) -> None:
    """A plan that keeps everything changes nothing, to the bit."""
    every = {g.name: [list(range(g.size))] * g.contexts for g in case.analysis.groups}
    every = {name: rows if len(rows) > 1 else rows[0] for name, rows in every.items()}
    plan = PruningPlan.build(case.analysis, every)
    assert plan.is_empty
    same = fxprune.rewrite(case.traced, plan)
    assert same.code == case.traced.code, f"{case.traced.code} became {same.code}"
    assert same_bits(bits(case.traced), bits(same))
    inputs = case.program.example(3, seed=5)
    outputs = zip(run(same, inputs), run(case.traced, inputs), strict=True)
    assert all(torch.equal(a, b) for a, b in outputs)


def deterministic(case: Case) -> None:
    """A second trace, analysis, plan and rewrite give the same, also from other weights."""
    _, traced, analysis = case.other
    assert analysis.fingerprint == case.analysis.fingerprint
    assert analysis.groups == case.analysis.groups
    plan = PruningPlan.from_json(case.plan.to_json(), analysis)
    assert plan == case.plan
    pruned = fxprune.rewrite(traced, plan)
    assert pruned.code == case.pruned.code
    pruned.load_state_dict(case.pruned.state_dict())
    assert same_bits(bits(pruned), bits(case.pruned)), "the state has other names or orders"
    inputs = case.program.example(3, seed=6)
    outputs = zip(run(pruned, inputs), run(case.pruned, inputs), strict=True)
    assert all(torch.equal(a, b) for a, b in outputs), "after a round trip of the state"


def same_groups_again(case: Case) -> None:
    """The pruned module, traced anew, has the groups of the original at their new sizes.

    Where a gather stands for a slice or a shuffle of the original it may have more: a gather's
    positions can be chosen one by one. Units that stand alone there make no group.
    """
    if any(len(row) < 2 for group in case.analysis.groups for row in case.rows(group)):
        raise Silent("a dimension of size 1 is a constant")
    again = trace(case.pruned, case.program)
    if again.meta["fxprune"].dynamic != case.traced.meta["fxprune"].dynamic:
        # A view that folds what does not fit into the batch bears some sizes: which are tried says
        # whether they are free, and with them what stays.
        raise Silent("other sizes are free")
    found, wanted = Counter[Any](), Counter[Any]()
    gathers = any("_index" in name for name, _ in case.pruned.named_buffers())
    loose = {
        signature_of(g, 0) for g in case.analysis.groups if gathers or has_other_contexts(case, g)
    }
    for group in fxprune.analyze(again).groups:
        contexts = 0 if signature_of(group, 0) in loose else group.contexts
        found[signature_of(group, contexts)] += group.size
    alone = set()
    for group in case.analysis.groups:
        around = group_of_contexts(case.analysis, group)
        contexts = len(case.kept[around]) if around in case.kept else group.contexts
        signature = signature_of(group, 0 if signature_of(group, 0) in loose else contexts)
        wanted[signature] += len(case.rows(group)[0])
        if of_single_units(case.analysis, group):
            alone.add(signature)
    for signature in wanted if gathers else found | wanted:
        # Runs of single units that have become neighbours make a group; one unit alone makes none.
        missing = wanted[signature] - found[signature]
        lone = signature in alone and (gathers or missing == 1)
        assert missing == 0 or lone or (gathers and missing < 0), (
            f"{signature}: {found[signature]} units, not {wanted[signature]}"
        )


def two_rounds(case: Case) -> None:
    """Pruning what was pruned is one composed plan."""
    analysis = fxprune.analyze(case.pruned)
    rng = random.Random(len(analysis.groups))
    kept = {group.name: random_rows(group, rng) for group in analysis.groups}
    pair = composed_plans(case, analysis, kept)
    if pair is None:
        raise Silent("no plan of the original does what the second does")
    second, composed = pair
    twice = fxprune.rewrite(case.pruned, second)
    once = fxprune.rewrite(case.traced, composed)
    state = reference.tensors_of(twice)
    for name, tensor in once.named_parameters():
        assert torch.equal(tensor, state[name]), f"{name} differs"
    inputs = case.program.example(3, seed=7)
    assert reference.relative_error(run(once, inputs), run(twice, inputs)) <= TOLERANCE


def random_rows(group: Group, rng: random.Random) -> Any:
    count = rng.randint(1, group.size)
    rows = [sorted(rng.sample(range(group.size), count)) for _ in range(group.contexts)]
    return rows if group.contexts > 1 else rows[0]


def permuted_units(case: Case) -> None:
    """Renumbering the units of groups, in each context anew, changes neither the function nor what
    pruning does.
    """
    rng = random.Random(len(case.program.source))
    groups = sorted(case.analysis.groups, key=lambda g: -g.contexts)  # contexts move last
    orders = {g.name: [_order(case.analysis, g, rng) for _ in range(g.contexts)] for g in groups}
    renumbered = reference.renumbered(case.model, groups, orders)
    inputs = case.program.example(3, seed=8)
    error = reference.relative_error(run(renumbered, inputs), run(case.model, inputs))
    assert error <= TOLERANCE, f"the renumbered original differs by {error:.1e}"
    kept: dict[str, Any] = {}
    for group in groups:
        rows = reference.renumber(case.rows(group), orders[group.name])
        around = group_of_contexts(case.analysis, group)
        rows = rows if around not in orders else [rows[c] for c in orders[around][0]]
        kept[group.name] = rows if group.contexts > 1 else rows[0]
    model, traced, analysis = case.other
    model.load_state_dict(renumbered.state_dict())
    pruned = fxprune.rewrite(traced, PruningPlan.build(analysis, kept))
    error = reference.relative_error(run(pruned, inputs), run(case.pruned, inputs))
    assert error <= TOLERANCE, f"the pruned one differs by {error:.1e}"


def _order(analysis: Analysis, group: Group, rng: random.Random) -> list[int]:
    """A random order of a group's units. Those that stand alone keep theirs.

    They belong to the same dimensions, but an operator may treat each in its own way: it negates
    one half of the channels and not the other.
    """
    if of_single_units(analysis, group):
        return list(range(group.size))
    return rng.sample(range(group.size), group.size)


PROPERTIES: Mapping[str, Callable[[Case], None]] = {
    holds.__name__: holds
    for holds in (
        masked_equivalence,
        other_sizes,
        masked_interpretation,
        node_local,
        declared_shapes,
        original_untouched,
        gradients,
        empty_plan,
        deterministic,
        same_groups_again,
        two_rounds,
        permuted_units,
    )
}


class PropertyError(AssertionError):
    """A property does not hold; shows the program and the plan."""


def check(case: Case) -> list[str]:
    """Check all properties; returns the names of those that say something about the case.

    The error names the one that fails and shows how to see it again.
    """
    held = []
    for name, holds in PROPERTIES.items():
        try:
            holds(case)
        except Silent:
            continue
        except Exception as error:
            raise PropertyError(
                f"{name}: {type(error).__name__}: {error}\n{case.program!r}"
                f"# kept units: {dict(case.kept)}"
            ) from error
        held.append(name)
    return held
