"""Random programs: immutable, printed as Python, built as modules.

A program is a list of lines of `__init__` and of `forward`. `Builder` writes it line by line and
runs each line at once, so that the next one knows the shapes of all values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 2
VOCABULARY = 7
MAX_NUMEL = 6000

IMPORTS = """\
import math

import torch
import torch.nn.functional as F
from torch import nn
"""

Sizes = Mapping[tuple[str, int], int]
"""Input and dimension → size."""

Choose = Callable[[int], int]
"""Draws an integer below a bound; shrinks to 0."""


@dataclass(frozen=True)
class Value:
    """A tensor of a program. `kind` has one letter per dimension.

    B batch, C channels, H W space, T tokens or time, N heads, D head dimension.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return self.name

    def __getitem__(self, letter: str) -> int:
        return self.shape[self.kind.index(letter)]

    def dim(self, letter: str) -> int:
        return self.kind.index(letter)


@dataclass(frozen=True)
class Program:
    """A program. `ops` names the rows of the op table that wrote it, `returns` what it returns."""

    inputs: tuple[Value, ...]
    layers: tuple[str, ...]
    lines: tuple[str, ...]
    returns: str
    ops: tuple[str, ...]

    @cached_property
    def source(self) -> str:
        """The program as Python that can be pasted into a test."""
        arguments = ", ".join(value.name for value in self.inputs)
        layers = "".join(f"        {line}\n" for line in self.layers)
        lines = "".join(f"        {line}\n" for line in self.lines)
        return (
            f"class Program(nn.Module):\n"
            f"    def __init__(self):\n        super().__init__()\n{layers}\n"
            f"    def forward(self, {arguments}):\n{lines}        return {self.returns}\n"
        )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{value.name}: {value.kind}{value.shape}" for value in self.inputs)
        return f"\n{IMPORTS}\n\n{self.source}\n# inputs: {shapes}\n"

    def build(self, seed: int = 0) -> nn.Module:
        """The module in eval mode and float64, with random values."""
        namespace: dict[str, Any] = {"__name__": "program"}
        exec(compile(IMPORTS + self.source, "<program>", "exec"), namespace)
        with double_precision():
            module = namespace["Program"]()
        return enliven(module.eval(), seed)

    def example(
        self, batch: int = BATCH, seed: int = 0, sizes: Sizes = MappingProxyType({})
    ) -> tuple[Tensor, ...]:
        """Random inputs of a batch size; `sizes` says which of their dimensions have others."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(_input(value, batch, generator, sizes) for value in self.inputs)


def _input(value: Value, batch: int, generator: torch.Generator, sizes: Sizes) -> Tensor:
    rest = (sizes.get((value.name, dim), size) for dim, size in enumerate(value.shape))
    shape = (batch, *[*rest][1:])
    if value.kind == "BT":
        return torch.randint(0, VOCABULARY, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@contextmanager
def double_precision() -> Iterator[None]:
    """New tensors are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def enliven(module: nn.Module, seed: int) -> nn.Module:
    """Random values at a scale that keeps activations around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                if "running_var" in name:
                    tensor.copy_(0.5 + noise.abs())
                elif tensor.numel() == max(tensor.shape, default=1):
                    tensor.copy_(0.3 * noise + ("bias" not in name and "mean" not in name))
                else:
                    tensor.copy_(noise * (1.5 / tensor[0].numel()) ** 0.5)
    return module


def _alike(value: Value, other: Value, free: str) -> bool:
    return value.kind == other.kind and all(
        letter in free or value[letter] == other[letter] for letter in value.kind
    )


class Builder:
    """Writes a program. Ops draw their arguments through it and emit lines."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.inputs: list[Value] = []
        self.layers: list[str] = []
        self.lines: list[str] = []
        self.ops: list[str] = []
        self.values: list[Value] = []
        self.used: set[str] = set()
        self._count = 0
        self._space: dict[str, Any] = {}
        exec(IMPORTS, self._space)
        self._space["self"] = nn.Module()

    # -- drawing -----------------------------------------------------------------------------------

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.choose(len(options))]

    def flag(self) -> bool:
        return bool(self.choose(2))

    def between(self, low: int, high: int) -> int:
        return low + self.choose(high - low + 1)

    def width(self, multiple: int = 1, high: int = 10) -> int:
        """A number of channels."""
        return multiple * self.between(1 if multiple > 1 else 2, max(high // multiple, 1))

    def divisor(self, size: int, least: int = 1) -> int:
        return self.pick([d for d in range(least, size + 1) if size % d == 0])

    def size(self, value: Value, letter: str, divide: int = 1, times: int = 1) -> str:
        """A size in the source: a literal, or arithmetic on a shape."""
        literal = value[letter] * times // divide
        if letter == "B" or self.flag():
            text = f"{value}.shape[{value.dim(letter)}]"
            text += f" * {times}" if times > 1 else ""
            return f"{text} // {divide}" if divide > 1 else text
        return str(literal)

    # -- writing -----------------------------------------------------------------------------------

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def run_layer(self, line: str) -> None:
        """A line of `__init__`."""
        with double_precision():
            exec(line, self._space)
        self.layers.append(line)

    def layer(self, source: str, stem: str = "layer") -> str:
        """A module made in `__init__`; returns what `forward` calls it."""
        name = f"self.{self._name(stem)}"
        self.run_layer(f"{name} = {source}")
        return name

    def parameter(self, *shape: int, stem: str = "weight") -> str:
        return self.layer(f"nn.Parameter(torch.randn({', '.join(map(str, shape))}))", stem)

    def buffer(self, source: str) -> str:
        """A buffer; returns what `forward` calls it."""
        name = self._name("table")
        self.run_layer(f'self.register_buffer("{name}", {source})')
        return f"self.{name}"

    def call(self, source: str, value: Value | str) -> str:
        """A new module applied to a value, as an expression."""
        return f"{self.layer(source)}({value})"

    def temp(self, kind: str, source: str) -> Value:
        """A value that other ops do not use."""
        return self.temps((kind,), source)[0]

    def temps(self, kinds: Sequence[str], source: str) -> list[Value]:
        """Several values that one expression makes."""
        names = [self._name("x") for _ in kinds]
        line = f"{', '.join(names)} = {source}"
        with torch.no_grad(), double_precision():
            exec(line, self._space)
        self.lines.append(line)
        made = []
        for name, kind in zip(names, kinds, strict=True):
            shape = tuple(self._space[name].shape)
            assert len(shape) == len(kind), f"{line}: {shape} is not {kind}"
            made.append(Value(name, kind, shape))
        return made

    def emit(self, kind: str, source: str) -> Value:
        """A value that later ops may use."""
        return self.offer(self.temp(kind, source))

    def offer(self, value: Value) -> Value:
        self.values.append(value)
        return value

    def add_input(self, kind: str, *sizes: int) -> Value:
        value = Value("abc"[len(self.inputs)], kind, (BATCH, *sizes))
        self.inputs.append(value)
        self._space[value.name] = _input(value, BATCH, torch.Generator().manual_seed(0), {})
        return value

    def use(self, value: Value) -> Value:
        self.used.add(value.name)
        return value

    def small(self, *shape: int) -> bool:
        return math.prod(shape) <= MAX_NUMEL

    def partners(self, value: Value, free: str = "") -> list[Value]:
        """Values of the same kind and, save for the `free` letters, the same shape."""
        return [other for other in self.values if _alike(value, other, free)]

    def program(self, returns: str) -> Program:
        return Program(
            tuple(self.inputs), tuple(self.layers), tuple(self.lines), returns, tuple(self.ops)
        )
