"""The plan: which units of which groups stay, as immutable data that can be stored and replayed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.groups import Group
from fxprune.plans.base import (
    AnalysisLike,
    FrozenMap,
    Kept,
    check_kept,
    refuse_other_graph,
    short,
    width,
)
from fxprune.plans.text import FORMAT, VERSION, longest, parsed
from fxprune.plans.values import Values, values_of, weight_beside


@dataclass(frozen=True, repr=False)
class PruningPlan:
    """The units that stay, per group, and what decided it.

    groups       the prunable groups of the analysed graph
    kept_units   per group that loses units, its kept indices in ascending order; with several
                 contexts one row per context, all equally long. Groups that lose none are left out.
    shapes       the original shape of every parameter and buffer
    aliases      further names of tied parameters and buffers, each with the name in `shapes`
    values       new values that parameters and buffers get before they lose entries: value edits;
                 also biases that layers of the original lack
    fingerprint  of the analysed graph; a plan fits no other
    criterion, sparsity, scope, budget    what made the plan, for the record
    notes        what the reader should know of how it was made, such as limits that bind

    Where a group is nested in another one and both lose units, the rows of the inner group that
    belong to removed units of the outer one mean nothing and are ignored.

    Raises PlanError if a group is unknown or frozen, or if kept indices are out of range, repeated,
    unsorted, empty, or not equally many in every context.
    """

    groups: tuple[Group, ...] = field(compare=False)
    kept_units: Mapping[str, Kept]
    shapes: Mapping[str, tuple[int, ...]] = field(compare=False)
    fingerprint: str
    criterion: str = "custom"
    sparsity: float | None = None
    scope: str = "custom"
    budget: str | None = None
    notes: tuple[str, ...] = ()
    version: int = VERSION
    aliases: Mapping[str, str] = field(default=FrozenMap({}), compare=False)
    values: Values = field(default_factory=Values)

    def __post_init__(self) -> None:
        if len(self._by_name) < len(self.groups):
            names = [group.name for group in self.groups]
            twice = next(name for name in names if names.count(name) > 1)
            raise PlanError(f"Two groups are called {twice!r}: a plan needs distinct names.")
        if not isinstance(self.fingerprint, str) or not self.fingerprint:
            raise PlanError(
                f"A plan needs the fingerprint of its graph, a text; got {self.fingerprint!r}."
            )
        if self.version != VERSION:
            raise PlanError(
                f"The plan has version {self.version!r}, and this fxprune reads version {VERSION}: "
                "make the plan again, or use the fxprune that wrote it."
            )
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise PlanError(
                f"The plan's sparsity must lie in [0, 1) or be None; it is {short(self.sparsity)}."
            )
        rows = {name: check_kept(self._at(name), row) for name, row in self.kept_units.items()}
        losing = {name: row for name, row in rows.items() if width(row) < self._at(name).size}
        for name, value in self.values.items():
            self._check_value(name, value)
        # The fields are canonical from here on, so that equal plans compare equal.
        object.__setattr__(self, "kept_units", FrozenMap(losing))
        object.__setattr__(self, "shapes", FrozenMap({k: tuple(v) for k, v in self.shapes.items()}))

    @classmethod
    def build(
        cls,
        analysis: AnalysisLike,
        kept_units: Mapping[str, Any],
        criterion: str = "custom",
        sparsity: float | None = None,
        scope: str = "custom",
        budget: str | None = None,
        notes: Sequence[str] = (),
    ) -> PruningPlan:
        """The plan that keeps `kept_units` of an analysed graph's groups, and all other units.

        Rows may be any sequences of integers. Raises PlanError as the class does.
        """
        frozen = tuple(group for group in analysis.frozen if group.name in kept_units)
        return cls(
            groups=(*analysis.groups, *frozen),
            kept_units=kept_units,
            shapes={name: tuple(value.shape) for name, value in analysis.parameters.items()},
            fingerprint=analysis.fingerprint,
            criterion=criterion,
            sparsity=sparsity,
            scope=scope,
            budget=budget,
            notes=tuple(notes),
            aliases=FrozenMap(analysis.aliases),
        )

    def with_values(self, values: Mapping[str, Tensor], note: str) -> PruningPlan:
        """The same plan with new values for parameters, beside those that it has, and a note.

        Raises PlanError if a shape is not the original's.
        """
        return replace(self, values=Values({**self.values, **values}), notes=(*self.notes, note))

    @property
    def is_empty(self) -> bool:
        """True if no group loses a unit."""
        return not self.kept_units

    def group(self, name: str) -> Group:
        """The group of this name; raises PlanError if the plan's graph has none."""
        return self._at(name)

    @property
    def added(self) -> tuple[str, ...]:
        """The biases among the new values that the original does not have."""
        return tuple(name for name in self.values if name not in self.shapes)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The original's shape of a parameter or buffer, or of a bias that its layer lacks.

        Raises PlanError if the graph has no such parameter, nor a layer for such a bias.
        """
        own = self.aliases.get(name, name)
        if own in self.shapes:
            return self.shapes[own]
        weight = weight_beside(name) or ""
        weight = self.aliases.get(weight, weight)
        if weight not in self.shapes:
            raise PlanError(f"The graph has no parameter {short(name)}.")
        return self.shapes[weight][:1]

    def kept(self, group: Group | str) -> Tensor:
        """The kept indices of a group, all of them if it loses none.

        int64, ascending: [kept], or [contexts, kept] with several contexts. Raises PlanError for a
        name or a prunable group that the plan's graph does not have.
        """
        found = self._find(group)
        if found.name in self.kept_units:
            return torch.tensor(self.kept_units[found.name], dtype=torch.int64)
        return torch.arange(found.size).expand(found.shape).clone()

    def kept_mask(self, group: Group | str) -> Tensor:
        """Bool tensor of the group's shape, True for the units that stay."""
        mask = torch.zeros(self._find(group).shape, dtype=torch.bool)
        return mask.scatter_(-1, self.kept(group), True)

    def masks(self) -> dict[str, Tensor]:
        """Per parameter and buffer that loses entries, a bool tensor of its shape, True = kept.

        An entry stays if its unit does, for every member of every group that covers it.
        """
        masks: dict[str, Tensor] = {}
        for name in self.kept_units:
            group, kept = self.group(name), self.kept_mask(name)
            for member in group.members:
                shape = self._shape(member.parameter, group)
                mask = masks.setdefault(member.parameter, torch.ones(shape, dtype=torch.bool))
                member.check_shape(shape, group)
                mask &= member.spread(kept, group, fill=True, rank=len(shape))
        return masks

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raise PlanError unless this plan was made for the graph with that fingerprint."""
        refuse_other_graph(self.fingerprint, fingerprint)

    def summary(self) -> str:
        """A readable table: one row per group that loses units."""
        before = sum(group.size for group in self.groups)
        lost = sum(self._at(name).size - width(row) for name, row in self.kept_units.items())
        goal = "" if self.sparsity is None else f", sparsity {self.sparsity:g}"
        goal += "" if self.budget is None else f", budget {self.budget}"
        head = (
            f"Plan by {self.criterion} ({self.scope}{goal}): {len(self.kept_units)} of "
            f"{len(self.groups)} prunable groups lose {lost} of {before} units."
        )
        notes = "".join(f"\n{note}." for note in self.notes)
        if self.is_empty:
            return f"{head}\nNothing is pruned.{notes}"
        rows = [
            (name, group.contexts, group.size, width(row), "yes" if group.maskable else "no")
            for name, row in self.kept_units.items()
            for group in (self._at(name),)
        ]
        columns = ("group", "contexts", "units", "kept", "maskable")
        return f"{head}\n{tabulate(rows, columns)}{notes}"

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return (
            f"PruningPlan({self.criterion!r}, sparsity={self.sparsity}, scope={self.scope!r}, "
            f"{len(self.kept_units)} of {len(self.groups)} groups cut, "
            f"fingerprint={self.fingerprint!r})"
        )

    def to_json(self) -> str:
        """The plan as JSON text: numbers and names, no weights; see `from_json`.

        Of new values it has names, shapes and digests: keep `values` beside it, as safetensors.
        """
        return json.dumps(
            {
                "format": FORMAT,
                "version": self.version,
                "fingerprint": self.fingerprint,
                "criterion": self.criterion,
                "sparsity": self.sparsity,
                "scope": self.scope,
                "budget": self.budget,
                "notes": list(self.notes),
                "kept": dict(self.kept_units),
                **({"values": self.values.as_data()} if self.values else {}),
            }
        )

    @classmethod
    def from_json(
        cls, text: str, analysis: AnalysisLike, values: Mapping[str, Tensor] | None = None
    ) -> PruningPlan:
        """The plan that `to_json` wrote, for an analysis of the graph that it was made for.

        values  the new values of parameters that the text names, if it does

        Raises PlanError if the text is malformed, of another version, or for another graph, and if
        the values are missing or not those that it was saved with.
        """
        data = parsed(text, longest(analysis))
        refuse_other_graph(data["fingerprint"], analysis.fingerprint)
        record = (data[name] for name in ("criterion", "sparsity", "scope", "budget", "notes"))
        made = cls.build(analysis, data["kept"], *record)
        return replace(made, values=values_of(data.get("values", {}), values))

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def _at(self, name: str) -> Group:
        found = self._by_name.get(name)
        if found is None:
            names = list(self._by_name)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise PlanError(
                f"The graph has no prunable group {short(name)}; it has "
                f"{', '.join(map(repr, names[:5])) or 'none'}{more}."
            )
        return found

    def _find(self, group: Group | str) -> Group:
        if isinstance(group, str):
            return self._at(group)
        if group.frozen:  # frozen groups are not part of a plan: they keep everything
            return group
        found = self._at(group.name)
        if found.shape != group.shape:
            raise PlanError(
                f"Group {group.name!r} has shape {group.shape}, and in the plan {found.shape}: "
                "it belongs to another graph."
            )
        return found

    def _check_value(self, name: str, value: Tensor) -> None:
        shape = self.shape_of(name)
        if shape != tuple(value.shape):
            raise PlanError(
                f"The plan gives {short(name)} values of shape {tuple(value.shape)}; the graph has "
                f"{shape}."
            )

    def _shape(self, parameter: str, group: Group) -> tuple[int, ...]:
        if parameter not in self.shapes:
            raise PlanError(
                f"Group {group.name!r} covers {parameter!r}, whose shape the plan does not know."
            )
        return self.shapes[parameter]
