"""A plan's second kind of edit: new values for parameters, in the shapes of the original.

They stand before the index edits: a parameter first gets its new values, then loses entries. A
layer without bias may get one: values for a name that the original does not have. In a plan's JSON
text stand their names, shapes, types and digests; the tensors are kept beside it, as safetensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import PlanError
from fxprune.plans.base import short


class Values(Mapping[str, Tensor]):
    """New values by parameter name, on the CPU. Equal if every bit is."""

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self._tensors = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in sorted((tensors or {}).items())
        }

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and self.as_data() == other.as_data()

    def __hash__(self) -> int:
        return hash(tuple(self.digests.items()))

    def __repr__(self) -> str:
        return f"Values of {', '.join(self._tensors) or 'nothing'}"

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """The SHA-256 of each tensor's bytes."""
        return {name: _digest(tensor) for name, tensor in self._tensors.items()}

    def as_data(self) -> dict[str, Any]:
        """What a plan's text says of them."""
        return {
            name: {
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "sha256": self.digests[name],
            }
            for name, tensor in self._tensors.items()
        }


def assign(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module's parameter or buffer a new value; a layer without this bias gets it."""
    path, _, last = name.rpartition(".")
    layer = module.get_submodule(path)
    old = getattr(layer, last, None)
    if isinstance(old, Tensor):
        with torch.no_grad():
            old.copy_(value)
        return
    weight = layer.weight
    assert isinstance(weight, Tensor)
    layer.register_parameter(last, nn.Parameter(value.to(weight, copy=True), weight.requires_grad))


def weight_beside(bias: str) -> str | None:
    """The name of the weight in the layer of that bias; None if it is no bias's name."""
    path, _, last = bias.rpartition(".")
    if last != "bias":
        return None
    return f"{path}.weight" if path else "weight"


def values_of(data: Mapping[str, Any], tensors: Mapping[str, Tensor] | None) -> Values:
    """The values that a plan's text names. Raises PlanError unless these are they, bit by bit."""
    if data and tensors is None:
        raise PlanError(
            f"The plan gives new values to {len(data)} parameters ({short(next(iter(data)))}, for "
            "one), which are stored beside it: pass values=, "
            "what safetensors.torch.load_file returns for 'plan.safetensors'."
        )
    values = Values({name: tensor for name, tensor in (tensors or {}).items() if name in data})
    for name, stated in data.items():
        if name not in values:
            raise PlanError(f"The plan gives {short(name)} new values, and values= has none.")
        if values.as_data()[name] != stated:
            raise PlanError(
                f"The values of {short(name)} are not those that the plan was saved with: "
                f"{short(values.as_data()[name])} instead of {short(stated)}."
            )
    return values


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
