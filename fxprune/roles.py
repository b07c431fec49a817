"""What a parameter dimension does for its group: produce, bias, normalise or consume units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fxprune.axes import Atom, leaves
from fxprune.groups import Role
from fxprune.propagate import Propagation, Record
from fxprune.rules.base import Kind

_ADDED = frozenset("aten::add aten::sub aten::add_ aten::sub_".split())
BIAS_ARGUMENTS = dict.fromkeys(
    "aten::addmm aten::baddbmm aten::addbmm aten::addmv aten::addr".split(), "self"
)
_LOOKUPS = frozenset({"aten::embedding"})


@dataclass(frozen=True)
class Roles:
    """Roles by (parameter, atom), and which parameters multiply activations in a contraction."""

    consumers: frozenset[tuple[str, Atom]]
    producers: frozenset[tuple[str, Atom]]
    biases: frozenset[str]
    norms: frozenset[str]

    def of(self, parameter: str, dim: int, atom: Atom) -> Role:
        """The role of one dimension. A weight that reads and makes the same units makes rows."""
        consumes = (parameter, atom) in self.consumers
        produces = (parameter, atom) in self.producers
        if consumes and produces:
            return "producer" if dim == 0 else "consumer"
        if consumes:
            return "consumer"
        if produces:
            return "producer"
        return (
            "bias"
            if parameter in self.biases
            else "norm"
            if parameter in self.norms
            else "producer"
        )


def roles_of(propagation: Propagation) -> Roles:
    """Read the roles off the executed ops, following parameters through ops among themselves."""
    origins: dict[int, frozenset[str]] = {k: frozenset({n}) for k, n in propagation.sources.items()}
    consumers: set[tuple[str, Atom]] = set()
    producers: set[tuple[str, Atom]] = set()
    biases: set[str] = set()
    norms: set[str] = set()
    for record in propagation.records:
        sources = [origins.get(key) for key, _ in record.inputs]
        known = [source for source in sources if source is not None]
        kind = record.effect.kind
        if len(known) == len(sources):  # nothing of the model's inputs
            made = frozenset().union(*known) if kind is not Kind.FRESH else frozenset()
            origins.update(dict.fromkeys(record.outputs, made))
            if record.call.name not in _LOOKUPS:
                continue
        if kind in (Kind.CONTRACT, Kind.RECURRENT) or record.call.name in _LOOKUPS:
            _read_contraction(record, origins, consumers, producers, biases)
        elif record.call.name in _ADDED:
            biases.update(*known)
        else:
            norms.update(*known)
    return Roles(
        frozenset(consumers), frozenset(producers), frozenset(biases - norms), frozenset(norms)
    )


def batch_norm_scales(propagation: Propagation) -> frozenset[str]:
    """The parameters that batch normalisations multiply their channels with."""
    scales = {
        propagation.sources.get(id(record.call.arguments.get("weight")))
        for record in propagation.records
        if record.effect.kind is Kind.BATCH_NORM
    }
    return frozenset(name for name in scales if name is not None)


def _read_contraction(
    record: Record,
    origins: Mapping[int, frozenset[str]],
    consumers: set[tuple[str, Atom]],
    producers: set[tuple[str, Atom]],
    biases: set[str],
) -> None:
    over = {atom for axis in record.effect.over for atom in leaves(axis)}
    made = {atom for layout in record.effect.outputs for axis in layout for atom in leaves(axis)}
    bias = record.call.arguments.get(BIAS_ARGUMENTS.get(record.call.name, "bias"))
    # Of x * x^T, a matrix of units by units, a weight that is summed over units makes none of those
    # that are left: they are the other operand's. A recurrent layer sums over what it makes itself.
    summed = over if record.effect.kind is Kind.CONTRACT else frozenset()
    for key, layout in record.inputs:
        names = origins.get(key)
        if names is None:
            continue
        one_dimensional = record.effect.kind is Kind.RECURRENT and len(layout) == 1
        if (isinstance(bias, Tensor) and key == id(bias)) or one_dimensional:
            biases |= names
            continue
        held = Counter(atom for axis in layout for atom in leaves(axis))
        kept = {atom for atom, times in held.items() if times > 1 or atom not in summed}
        consumers |= {(name, atom) for name in names for atom in held.keys() & over}
        producers |= {(name, atom) for name in names for atom in kept & made}
