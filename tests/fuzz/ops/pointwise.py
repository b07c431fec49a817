"""Activations, sums, products, gates and parameters per channel."""

from __future__ import annotations

from tests.fuzz.program import Builder, Value
from tests.fuzz.table import ANY, FIRST, activation, even, op, per_channel, project


def partnered(b: Builder, x: Value) -> bool:
    return len(b.partners(x)) > 1


def partner(b: Builder, x: Value) -> Value:
    return b.use(b.pick([y for y in b.partners(x) if y is not x]))


@op(ANY)
def activate(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{activation(b)}({x})")


@op(ANY)
def activation_module(b: Builder, x: Value) -> None:
    name = b.pick(("ReLU", "GELU", "SiLU", "Hardswish", "Mish", "Softplus"))
    b.emit(x.kind, b.call(f"nn.{name}()", x))


@op(ANY)
def residual(b: Builder, x: Value) -> None:
    branch = b.temp(x.kind, f"{activation(b)}({project(b, x, b.width())})")
    b.emit(x.kind, f"{x} + {project(b, branch, x['C'])}")


@op(ANY, partnered)
def add(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x} {b.pick('+-')} {partner(b, x)}")


@op(ANY, lambda b, x: len(b.partners(x, "C")) > 1)
def projected_add(b: Builder, x: Value) -> None:
    """A sum with another value that a layer brings to the same width."""
    other = b.use(b.pick([y for y in b.partners(x, "C") if y is not x]))
    b.emit(x.kind, f"{x} + {project(b, other, x['C'])}")


@op(ANY, partnered)
def multiply(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x} * {partner(b, x)}")


@op(ANY, partnered)
def divide(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x} / (1 + {partner(b, x)} ** 2)")


@op(ANY, partnered)
def choose_by_sign(b: Builder, x: Value) -> None:
    y = partner(b, x)
    b.emit(x.kind, f"torch.where({x} > {y}, {x}, 0.5 * {y})")


@op(ANY, partnered)
def maximum(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"torch.maximum({x}, {partner(b, x)})")


@op(ANY, partnered)
def lerp(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"torch.lerp({x}, {partner(b, x)}, 0.3)")


@op(ANY)
def add_constant(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x} + {b.pick(('1', '0.5'))}")


@op(ANY)
def scale_by_size(b: Builder, x: Value) -> None:
    """A number computed from a size but used as a value keeps its value."""
    b.emit(x.kind, f"{x} * {b.size(x, 'C')} ** -0.5")


@op(ANY)
def scale_and_shift(b: Builder, x: Value) -> None:
    scale = per_channel(x, b.parameter(x["C"], stem="scale"))
    shift = per_channel(x, b.parameter(x["C"], stem="bias"))
    b.emit(x.kind, f"{x} * {scale} + {shift}")


@op(ANY)
def add_whole_parameter(b: Builder, x: Value) -> None:
    """A bare parameter of the value's shape, as position tables are."""
    b.emit(x.kind, f"{x} + {b.parameter(1, *x.shape[1:], stem='table')}")


@op(f"{FIRST} BC")
def prelu(b: Builder, x: Value) -> None:
    b.emit(x.kind, b.call(f"nn.PReLU({b.pick((x['C'], 1))})", x))


@op(ANY, even("C"))
def glu(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"F.glu({x}, dim={x.dim('C')})")


@op(ANY)
def gated(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x} * torch.sigmoid({project(b, x, x['C'])})")


@op(ANY)
def gated_mlp(b: Builder, x: Value) -> None:
    width = b.width()
    gate = b.temp(x.kind, f"F.silu({project(b, x, width)})")
    hidden = b.temp(x.kind, f"{gate} * {project(b, x, width)}")
    b.emit(x.kind, project(b, hidden, b.width()))


@op(ANY, lambda b, x: len(b.partners(x, "C")) > 1)
def cat(b: Builder, x: Value) -> None:
    others = [b.use(b.pick(b.partners(x, "C"))) for _ in range(b.between(1, 2))]
    b.emit(x.kind, f"torch.cat([{', '.join(map(str, (x, *others)))}], {x.dim('C')})")


@op(ANY)
def dense(b: Builder, x: Value) -> None:
    """A concatenation with what a layer adds, as dense blocks grow."""
    new = b.temp(x.kind, f"{activation(b)}({project(b, x, b.width())})")
    b.emit(x.kind, f"torch.cat([{x}, {new}], dim={x.dim('C') - len(x.kind)})")


@op(ANY, partnered)
def stack_and_sum(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"torch.stack([{x}, {partner(b, x)}], 1).sum(1)")


@op(ANY)
def clamp(b: Builder, x: Value) -> None:
    b.emit(x.kind, f"{x}.clamp(-1.5, {b.pick(('1.5', '2.5'))})")
