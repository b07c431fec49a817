"""The second kind of edit: a change of basis in a layer, of which some coordinates stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.plans.base import AnalysisLike, FrozenMap, refuse_other_graph, short
from fxprune.plans.text import parsed_as

FACTORIZATION_FORMAT = "fxprune-factorization"
FACTORIZATION_VERSION = 1

_FIELDS: Mapping[str, tuple[type, ...]] = {
    "format": (str,),
    "version": (int,),
    "fingerprint": (str,),
    "method": (str,),
    "budget": (str, type(None)),
    "energy": (int, float, type(None)),
    "notes": (list,),
    "ranks": (dict,),
    "digest": (str,),
}
_TOLERANCE = 1e-6  # of an orthonormal basis


@dataclass(frozen=True, eq=False)
class Bases:
    """The directions that stay of a layer's inputs and outputs; None where all do.

    inputs   [inputs, columns] float64 with orthonormal columns: x becomes inputs @ inputs.T @ x
    outputs  [outputs, rows] float64, orthonormal: Wx becomes outputs @ outputs.T @ Wx

    The tensors are not to be changed. Raises PlanError if both are None, or if they are no
    orthonormal columns.
    """

    inputs: Tensor | None
    outputs: Tensor | None

    def __post_init__(self) -> None:
        given = [basis for basis in (self.inputs, self.outputs) if basis is not None]
        if not given:
            raise PlanError("Bases without inputs and outputs change nothing: leave the layer out.")
        for basis in given:
            _check_orthonormal(basis)

    @property
    def ranks(self) -> tuple[int | None, int | None]:
        """How many directions stay of the inputs and of the outputs; None for all."""
        inputs, outputs = self.inputs, self.outputs
        return (
            None if inputs is None else inputs.shape[1],
            None if outputs is None else outputs.shape[1],
        )

    def project(self, weight: Tensor) -> Tensor:
        """What is left of a weight [outputs, inputs, ...], at full size, in float64."""
        result = weight.detach().double()
        if self.inputs is not None:
            inputs = self.inputs.to(weight.device)
            result = torch.einsum("oi...,ib,jb->oj...", result, inputs, inputs)
        if self.outputs is not None:
            outputs = self.outputs.to(weight.device)
            result = torch.einsum("oi...,oa,pa->pi...", result, outputs, outputs)
        return result


def _check_orthonormal(basis: Tensor) -> None:
    if basis.dim() != 2 or basis.dtype != torch.float64 or not 0 < basis.shape[1] <= len(basis):
        raise PlanError(
            "A basis is float64 [size, rank] with a rank from 1 to the size; got "
            f"{basis.dtype} {list(basis.shape)}."
        )
    error = float((basis.T @ basis - torch.eye(basis.shape[1], device=basis.device)).abs().max())
    if not error <= _TOLERANCE:  # NaN compares false
        raise PlanError(
            f"The columns of a basis must be orthonormal; their products are off by {error:.1e}."
        )


@dataclass(frozen=True, eq=False, repr=False)
class FactorizationPlan:
    """The directions that stay, per layer, and what decided it.

    layers       name of each linear layer or convolution that becomes factors → its bases
    shapes       the shape of every such layer's weight
    fingerprint  of the analysed graph; a plan fits no other
    method, budget, energy   what made the plan, for the record
    notes        what the reader should know of how it was made

    The factors themselves are made of the original's weights: a plan and the original give the
    factorised network. Raises PlanError if a layer is unknown or its bases do not fit its weight.
    """

    layers: Mapping[str, Bases]
    shapes: Mapping[str, tuple[int, ...]]
    fingerprint: str
    method: str = "custom"
    budget: str | None = None
    energy: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.fingerprint, str) or not self.fingerprint:
            raise PlanError(
                f"A plan needs the fingerprint of its graph, a text; got {self.fingerprint!r}."
            )
        for name, bases in self.layers.items():
            _check_fit(name, bases, self.shapes)
        shapes = {name: tuple(self.shapes[name]) for name in self.layers}
        object.__setattr__(self, "layers", FrozenMap(self.layers))
        object.__setattr__(self, "shapes", FrozenMap(shapes))

    @classmethod
    def build(
        cls,
        analysis: AnalysisLike,
        layers: Mapping[str, Bases],
        method: str = "custom",
        budget: str | None = None,
        energy: float | None = None,
        notes: tuple[str, ...] = (),
    ) -> FactorizationPlan:
        """The plan for layers of an analysed graph, by the names of their modules."""
        known = analysis.parameters
        shapes = {
            name: tuple(known[f"{name}.weight"].shape)
            for name in layers
            if f"{name}.weight" in known
        }
        return cls(layers, shapes, analysis.fingerprint, method, budget, energy, tuple(notes))

    @property
    def is_empty(self) -> bool:
        """True if no layer is factorised."""
        return not self.layers

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raise PlanError unless this plan was made for the graph with that fingerprint."""
        refuse_other_graph(self.fingerprint, fingerprint)

    def tensors(self) -> dict[str, Tensor]:
        """The bases by name, for a safetensors file: "<layer>:inputs" and "<layer>:outputs"."""
        named = {
            f"{name}:{side}": getattr(bases, side)
            for name, bases in self.layers.items()
            for side in ("inputs", "outputs")
        }
        return {name: basis.contiguous() for name, basis in named.items() if basis is not None}

    def to_json(self) -> str:
        """The plan as JSON text without its bases, which `tensors` has; `from_json` reads both."""
        return json.dumps(
            {
                "format": FACTORIZATION_FORMAT,
                "version": FACTORIZATION_VERSION,
                "fingerprint": self.fingerprint,
                "method": self.method,
                "budget": self.budget,
                "energy": self.energy,
                "notes": list(self.notes),
                "ranks": {name: list(bases.ranks) for name, bases in self.layers.items()},
                "digest": digest_of(self.tensors()),
            }
        )

    @classmethod
    def from_json(
        cls, text: str, tensors: Mapping[str, Tensor], analysis: AnalysisLike
    ) -> FactorizationPlan:
        """The plan that `to_json` and `tensors` wrote, for the graph that it was made for.

        Raises PlanError if the text is malformed, of another version, for another graph, or if the
        tensors are not those of this plan.
        """
        longest = 1_000_000 + 256 * sum(len(name) for name in analysis.parameters)
        data = parsed_factorization(text, longest)
        refuse_other_graph(data["fingerprint"], analysis.fingerprint)
        if digest_of(tensors) != data["digest"]:
            raise PlanError("The bases are not those of this plan: keep the files of one plan.")
        if {name.rpartition(":")[0] for name in tensors} != data["ranks"].keys():
            raise PlanError("The plan's ranks are not those of its bases.")
        layers = {
            name: Bases(tensors.get(f"{name}:inputs"), tensors.get(f"{name}:outputs"))
            for name in data["ranks"]
        }
        if {name: list(bases.ranks) for name, bases in layers.items()} != data["ranks"]:
            raise PlanError("The plan's ranks are not those of its bases.")
        record: Any = (data[name] for name in ("method", "budget", "energy", "notes"))
        return cls.build(analysis, layers, *record)

    def summary(self) -> str:
        """A readable table: one row per layer in factors."""
        goal = "" if self.budget is None else f", budget {self.budget}"
        goal += "" if self.energy is None else f", energy {self.energy:g}"
        head = f"Plan by {self.method}{goal}: {len(self.layers)} layers become factors."
        rows = [
            (name, "x".join(map(str, self.shapes[name])), *_shown(bases, self.shapes[name]))
            for name, bases in self.layers.items()
        ]
        columns = ("layer", "weight", "inputs kept", "outputs kept")
        table = f"\n{tabulate(rows, columns)}" if rows else "\nNothing is factorised."
        return head + table + "".join(f"\n{note}." for note in self.notes)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return (
            f"FactorizationPlan({self.method!r}, {len(self.layers)} layers, "
            f"fingerprint={self.fingerprint!r})"
        )


def parsed_factorization(text: str, longest: int) -> dict[str, Any]:
    """The fields of a stored plan, each of a type that `_FIELDS` allows; raises PlanError."""
    return parsed_as(text, longest, FACTORIZATION_FORMAT, FACTORIZATION_VERSION, _FIELDS)


def _shown(bases: Bases, shape: tuple[int, ...]) -> tuple[str, str]:
    sizes = (shape[1], shape[0])
    first, second = (
        f"{size}" if rank is None else f"{rank} of {size}"
        for rank, size in zip(bases.ranks, sizes, strict=True)
    )
    return first, second


def _check_fit(name: str, bases: Bases, shapes: Mapping[str, tuple[int, ...]]) -> None:
    shape = shapes.get(name)
    if shape is None or len(shape) < 2:
        raise PlanError(f"The graph has no layer {short(name)} with a weight of two dimensions.")
    for side, basis, size in (
        ("inputs", bases.inputs, shape[1]),
        ("outputs", bases.outputs, shape[0]),
    ):
        if basis is not None and len(basis) != size:
            raise PlanError(
                f"The basis of the {side} of {name!r} has {len(basis)} rows, and the layer has "
                f"{size} {side}."
            )


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors with their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        basis = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {basis.dtype} {list(basis.shape)};".encode())
        digest.update(basis.numpy().tobytes())
    return digest.hexdigest()
