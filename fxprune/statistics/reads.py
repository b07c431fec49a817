"""Where a graph reads the units of its groups: operands of the ops that sum over them.

A *consumer read* is an operand of a contraction or a sum that runs over units: the input of a
linear layer, a convolution or a matrix product. Multiplying every read of a unit by a mask and
setting that mask to zero is removing the unit. Where both operands of a contraction hold the
units, as the queries and keys of one head dimension do, one operand is read: on {0, 1} the square
of a mask is the mask. What a normalisation, a softmax or a mean counts over units is no read: what
is left after a removal is normalised anew. What the layers of a recurrent module read of one
another and of themselves, at every step, is masked on the weights that read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxprune.axes import Atom, leaves
from fxprune.grouping import Grouped, make_members
from fxprune.groups import Group, Member
from fxprune.propagate import Propagation, Record, TensorAxes
from fxprune.roles import BIAS_ARGUMENTS
from fxprune.rules.base import Kind, Layout
from fxprune.statistics.origins import Origins
from fxprune.statistics.parts import Part
from fxprune.statistics.samples import SampleMaps, same_sample
from fxprune.unit_maps import UnitMaps


@dataclass(frozen=True)
class Weight:
    """What a read is multiplied with: the key of a tensor that depends on parameters only.

    members  per group, which of its entries belong to which unit
    """

    key: int
    members: Mapping[str, Member]


@dataclass(frozen=True)
class Read:
    """One tensor that one op sums over units of.

    record    the op
    argument  which of its operands; of a recurrent module the name of a weight
    source    the node whose value the operand is, but for its shape, if nothing else in the op's
              node reads that value; None where the operand is made inside the node
    power     entries count to this power: the order of a norm, 1 for all else
    parts     the groups whose units are read, along the source's value or else the operand
    sampled   False if the tensor is the same for all samples of a batch, or mixes them
    computed  False if the tensor depends on parameters only
    weight    what it is multiplied with, if that is the same for all inputs
    """

    record: Record
    argument: str
    source: fx.Node | None
    power: float
    parts: tuple[Part, ...]
    sampled: bool
    computed: bool
    weight: Weight | None

    @property
    def site(self) -> fx.Node:
        """The node that runs the op."""
        return self.record.site


def find_reads(
    propagation: Propagation, grouped: Grouped, samples: int, batch_dim: int
) -> tuple[Read, ...]:
    """All reads of prunable groups, at the sizes that the graph was propagated at.

    samples    how many samples the inputs hold, along dimension `batch_dim` of each
    """
    return tuple(_Finder(propagation, grouped, samples, batch_dim).reads())


def find_operands(
    propagation: Propagation, grouped: Grouped, samples: int, batch_dim: int
) -> tuple[Read, ...]:
    """The same reads, each at the operand of its op, never at the value of another node."""
    return tuple(_Finder(propagation, grouped, samples, batch_dim, at_sources=False).reads())


class _Finder:
    def __init__(
        self,
        propagation: Propagation,
        grouped: Grouped,
        samples: int,
        batch_dim: int,
        at_sources: bool = True,
    ) -> None:
        self.propagation, self.grouped, self.at_sources = propagation, grouped, at_sources
        self.maps = UnitMaps()
        self.groups = {group.name: group for group in grouped.free}
        self.samples = SampleMaps(propagation, samples, batch_dim, self.maps)
        self.computed = computed_keys(propagation)
        self.origins = Origins(propagation)

    def reads(self) -> Iterator[Read]:
        for record in self.propagation.records:
            power = _POWERS.get(record.effect.kind, _no_read)(record)
            over = {a for axis in record.effect.over for a in leaves(axis) if self._group_of(a)}
            if record.effect.kind is Kind.RECURRENT:
                yield from self._recurrent_reads(record, over)
            elif over and power is not None:
                yield from self._reads(record, power, over)

    def _group_of(self, atom: Atom) -> Group | None:
        return self.groups.get(self.grouped.units.get(atom.key, ("", 0))[0])

    def _context_of(self, atom: Atom) -> Atom | None:
        return self.grouped.contexts.get(self.grouped.units[atom.key][0])

    def _reads(self, record: Record, power: float, over: set[Atom]) -> Iterator[Read]:
        """One read per operand: each atom is read where samples can be told apart, if anywhere.

        An operand whose rows belong to contexts by data, as tokens belong to experts, does not say
        which context's units it holds. The weights that it is multiplied with do.
        """
        operands = [_Operand(self, record, *operand) for operand in _operands(record)]
        # Activations before weights, and those that tell samples apart first. The sort is stable.
        operands.sort(key=lambda operand: (not operand.computed, operand.samples is None))
        left = set(over)
        for position, operand in enumerate(operands):
            held = self._known(operand.layout, left)
            if held:
                left -= held
                yield self._read(operand, operands[position + 1 :], power, held)

    def _recurrent_reads(self, record: Record, over: set[Atom]) -> Iterator[Read]:
        """The input at its value; by its weights what the layers read of what they make."""
        layouts, (x, *tensors) = dict(record.inputs), record.call.arguments["tensors"]
        weights = [
            _Operand(self, record, self.propagation.sources[id(t)].rpartition(".")[2], id(t), known)
            for t in tensors
            if id(t) in self.propagation.sources and len(known := layouts[id(t)]) == 2
        ]
        first = [weight for weight in weights if weight.name.startswith("weight_ih_l0")]
        held = self._known(layouts[id(x)][-1:], over)
        if held and self.at_sources and self.origins.source_of(id(x), record) is not None:
            operand = _Operand(self, record, "input", id(x), layouts[id(x)])
            yield self._read(operand, first if len(first) == 1 else (), 1.0, held)
            weights = [weight for weight in weights if weight not in first]
        for weight in weights:
            held = self._known(weight.layout[1:], over)
            if held:
                parts = tuple(
                    Part(self.groups[group], member, same_sample(weight.layout))
                    for group, member in self._members(weight.layout, [1], held)
                )
                sampled = weight.samples is not None
                yield Read(record, weight.name, None, 1.0, parts, sampled, False, None)

    def _read(
        self, operand: _Operand, others: Sequence[_Operand], power: float, held: set[Atom]
    ) -> Read:
        record, name, layout = operand.record, operand.name, operand.layout
        dims = _summed_dims(record, name, layout, held)
        source = self.origins.source_of(operand.key, record) if self.at_sources else None
        samples = operand.samples
        if source is not None:
            axes: Layout = self.propagation.nodes[source].axes
            own, apart = _dims_with(axes, held), self.samples.of(axes)
            if len(own) == len(dims) and (apart is None) == (samples is None):
                layout, dims, samples = axes, own, apart
            else:
                source = None
        known = same_sample(layout) if samples is None else samples
        parts = tuple(
            Part(self.groups[group], member, known)
            for group, member in self._members(layout, dims, held)
        )
        weights = (self._weight(o, held) for o in others if operand.computed and not o.computed)
        return Read(
            record,
            name,
            source,
            power,
            parts,
            samples is not None,
            operand.computed,
            next(weights, None),
        )

    def _known(self, layout: Layout, atoms: set[Atom]) -> set[Atom]:
        """Those of the atoms that a tensor holds together with their contexts."""
        present = {atom for axis in layout for atom in leaves(axis)}
        return {atom for atom in present & atoms if self._context_of(atom) in {None, *present}}

    def _weight(self, operand: _Operand, held: set[Atom]) -> Weight:
        key, layout = self.origins.root(operand.key, operand.record, operand.layout)
        own = self._known(layout, held)
        dims = (
            _summed_dims(operand.record, operand.name, layout, own)
            if key == operand.key
            else _dims_with(layout, own)
        )
        return Weight(key, dict(self._members(layout, dims[-1:], own)))

    def _members(
        self, layout: Layout, dims: Sequence[int], held: set[Atom]
    ) -> Iterator[tuple[str, Member]]:
        """The memberships of a tensor's dimensions in the groups of these atoms."""
        for dim in dims:
            numbers: dict[str, dict[int, int]] = {}
            for atom in leaves(layout[dim]):
                if atom in held:
                    group, offset = self.grouped.units[atom.key]
                    numbers.setdefault(group, {})[atom.key] = offset
            for group, offsets in numbers.items():
                context = self.grouped.contexts.get(group)
                members = make_members(self.maps, "read", layout, dim, "consumer", offsets, context)
                for member in _disjoint(members):
                    yield group, member


class _Operand:
    """One operand of an op: its axes, and what it depends on."""

    def __init__(
        self, finder: _Finder, record: Record, name: str, key: int, layout: Layout
    ) -> None:
        self.record, self.name, self.key, self.layout = record, name, key, layout
        self.computed = self.key in finder.computed
        self.samples = finder.samples.of(layout)


def computed_keys(propagation: Propagation) -> frozenset[int]:
    """The keys of the tensors that depend on the model's inputs."""
    found = {
        leaf.key
        for node, stated in propagation.nodes.items()
        if node.op == "placeholder"
        for leaf in tree_leaves(stated)
        if isinstance(leaf, TensorAxes)
    }
    for record in propagation.records:
        if any(key in found for key, _ in record.inputs):
            found.update(record.outputs)
    return frozenset(found)


def _disjoint(members: Sequence[Member]) -> Iterator[Member]:
    """Memberships of an outer product D*D, without the entries that a unit has already."""
    seen: list[Tensor] = []
    for member in members:
        unit = member.unit
        for earlier in seen:
            unit = torch.where(unit == earlier, -1, unit)
        seen.append(member.unit)
        yield Member("read", member.dim, "consumer", unit, member.context, member.context_dim)


def _operands(record: Record) -> Iterator[tuple[str, int, Layout]]:
    """The tensors that an op multiplies or sums, without an added bias: name, key and axes."""
    bias, layouts = BIAS_ARGUMENTS.get(record.call.name, "bias"), dict(record.inputs)
    for name, value in record.call.arguments.items():
        if isinstance(value, Tensor) and name != bias:
            yield name, id(value), layouts[id(value)]


def _factors(
    op: str, one: tuple[str, int], two: tuple[str, int]
) -> dict[tuple[str, str], tuple[str, int, int]]:
    (left, dim), (right, other) = one, two
    return {(op, left): (right, dim, other), (op, right): (left, other, dim)}


CONTRACTED: Mapping[tuple[str, str], tuple[str, int, int]] = MappingProxyType(
    {
        **_factors("aten::mm", ("self", -1), ("mat2", -2)),
        **_factors("aten::bmm", ("self", -1), ("mat2", -2)),
        **_factors("aten::matmul", ("self", -1), ("other", -2)),
        **_factors("aten::addmm", ("mat1", -1), ("mat2", -2)),
        **_factors("aten::baddbmm", ("batch1", -1), ("batch2", -2)),
        **_factors("aten::addbmm", ("batch1", -1), ("batch2", -2)),
        **_factors("aten::mv", ("self", -1), ("vec", 0)),
        **_factors("aten::addmv", ("mat", -1), ("vec", 0)),
        **_factors("aten::linear", ("input", -1), ("weight", -1)),
    }
)
"""Per op and operand: what it is multiplied with, and the dimensions of both that are summed."""


def _summed_dims(record: Record, name: str, layout: Layout, held: set[Atom]) -> list[int]:
    """The operand's dimensions that hold the summed units.

    A matrix between units and themselves holds them twice, and is summed over one dimension.
    """
    dims, inner = _dims_with(layout, held), _inner(record, name, len(layout))
    return [dim for dim in dims if dim in inner] or dims


def _inner(record: Record, name: str, rank: int) -> set[int]:
    """The dimensions of an operand that an op is said to sum over."""
    if record.effect.kind is Kind.SUM:
        given = record.call.arguments.get("dim")
        dims = [] if given is None else given if isinstance(given, (list, tuple)) else [given]
        return {int(dim) % rank for dim in dims}
    factor = CONTRACTED.get((record.call.name, name))
    return set() if factor is None else {factor[1] % rank}


def _dims_with(layout: Layout, held: set[Atom]) -> list[int]:
    return [d for d, axis in enumerate(layout) if held & set(leaves(axis))]


def _no_read(record: Record) -> float | None:
    return None


def _sum(record: Record) -> float | None:
    """The power that a sum runs over; None for sums that no derivative reaches."""
    name = record.call.name
    if name in ("aten::sum", "aten::nansum"):
        return 1.0
    if name in ("aten::linalg_vector_norm", "aten::norm"):
        order = record.call.arguments.get("ord", record.call.arguments.get("p"))
        power = 2.0 if order is None else float(order)
        return power if 0 < power < math.inf else None
    return None


_POWERS: Mapping[Kind, Callable[[Record], float | None]] = MappingProxyType(
    {Kind.CONTRACT: lambda _: 1.0, Kind.SUM: _sum}
)
