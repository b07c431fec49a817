"""Pooling, resampling, padding and windows."""

from __future__ import annotations

from tests.fuzz.program import Builder, Value
from tests.fuzz.table import CONVOLUTION, FIRST, op, project


def spacious(b: Builder, x: Value) -> bool:
    return min(x.shape[2:]) > 2


def checked(b: Builder, x: Value) -> bool:
    """Both sizes are even."""
    return x["H"] % 2 == 0 and x["W"] % 2 == 0


@op(FIRST, spacious)
def pool(b: Builder, x: Value) -> None:
    rank = CONVOLUTION[x.kind]
    modules = [b.pick((f"nn.MaxPool{rank}(2)", f"nn.AvgPool{rank}(3, stride=1, padding=1)"))]
    functions = (f"F.max_pool{rank}({x}, 3, 1, 1)", f"F.avg_pool{rank}({x}, 2)")
    b.emit(x.kind, b.pick(functions) if b.flag() else b.call(modules[0], x))


@op(FIRST, lambda b, x: b.small(*x.shape, 8))
def interpolate(b: Builder, x: Value) -> None:
    mode = b.pick(("nearest", {"BCTHW": "trilinear", "BCHW": "bilinear", "BCT": "linear"}[x.kind]))
    b.emit(x.kind, f'F.interpolate({x}, scale_factor=2, mode="{mode}")')


@op(FIRST, lambda b, x: min(x.shape[2:]) > 1)
def pad_space(b: Builder, x: Value) -> None:
    pads = (1, 0) * (len(x.kind) - 2)
    mode = b.pick(("", ', mode="reflect"', ', mode="replicate"', ", value=0.5"))
    b.emit(x.kind, f"F.pad({x}, {pads}{mode})")


@op(FIRST, spacious)
def crop_and_add(b: Builder, x: Value) -> None:
    """A convolution without padding; the shortcut is cropped to fit."""
    conv = b.call(f"nn.Conv{CONVOLUTION[x.kind]}({x['C']}, {x['C']}, 3)", x)
    crop = ", ".join(["...", *["1:-1"] * (len(x.kind) - 2)])
    b.emit(x.kind, f"{conv} + {x}[{crop}]")


@op("BCHW", lambda b, x: x["H"] > 1)
def separable(b: Builder, x: Value) -> None:
    """Convolutions of 3 x 1 and 1 x 3 side by side."""
    out = b.width()
    tall = b.call(f"nn.Conv2d({x['C']}, {out}, (3, 1), padding=(1, 0))", x)
    wide = b.call(f"nn.Conv2d({x['C']}, {out}, (1, 3), padding=(0, 1))", x)
    b.emit("BCHW", f"{tall} + {wide}")


@op("BCHW", lambda b, x: checked(b, x) and x["H"] > 2)
def down_and_up(b: Builder, x: Value) -> None:
    """A small U-Net: down, up again by a transposed convolution, joined with the shortcut."""
    inner, back = b.width(), b.width()
    down = b.temp("BCHW", b.call(f"nn.Conv2d({x['C']}, {inner}, 2, stride=2)", x))
    up = b.temp("BCHW", b.call(f"nn.ConvTranspose2d({inner}, {back}, 2, stride=2)", down))
    b.emit("BCHW", f"torch.cat([{up}, {x}], dim=1)")


@op("BCHW")
def pyramid(b: Builder, x: Value) -> None:
    """Pooled to several sizes, brought back and joined."""
    small = b.temp("BCHW", f"F.adaptive_avg_pool2d({project(b, x, b.width())}, 2)")
    size = b.pick((f"{x}.shape[2:]", f"({b.size(x, 'H')}, {b.size(x, 'W')})"))
    b.emit("BCHW", f"torch.cat([{x}, F.interpolate({small}, size={size})], 1)")


@op("BHWC", checked)
def windows(b: Builder, x: Value) -> None:
    """Swin's windows of 2 x 2, mixed by a layer and taken back."""
    h, w, c = (b.size(x, letter) for letter in "HWC")
    split = f"{x}.view({x}.shape[0], {h} // 2, 2, {w} // 2, 2, {c}).permute(0, 1, 3, 2, 4, 5)"
    tokens = b.temp("BTC", f"{split}.reshape(-1, 4, {c})")
    mixed = b.temp("BTC", project(b, tokens, x["C"]))
    back = f"{mixed}.view(-1, {h} // 2, {w} // 2, 2, 2, {c}).permute(0, 1, 3, 2, 4, 5)"
    b.emit("BHWC", f"{x} + {back}.reshape({x}.shape)")


@op("BHWC", checked)
def merge_patches(b: Builder, x: Value) -> None:
    """Swin's patch merging: four strided slices side by side."""
    parts = ", ".join(f"{x}[:, {i}::2, {j}::2]" for i in (0, 1) for j in (0, 1))
    joined = b.temp("BHWC", f"torch.cat([{parts}], -1)")
    b.emit("BHWC", project(b, joined, b.width()))


@op("BTC BCT")
def mix_tokens(b: Builder, x: Value) -> None:
    """MLP-Mixer: a layer along the tokens."""
    layer = b.layer(f"nn.Linear({x['T']}, {x['T']})")
    mixed = f"{layer}({x})" if x.kind == "BCT" else f"{layer}({x}.mT).mT"
    b.emit(x.kind, f"{x} + {mixed}")
