"""What the formulas are compared with: counts made while a module runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from tests.zoo.models import MODELS

NAMES = [entry.name for entry in MODELS]


@functools.lru_cache(maxsize=2)
def analysed(name: str) -> tuple[dict[str, Any], fxprune.Analysis]:
    """Example inputs and analysis of a model of the zoo, in single precision."""
    (entry,) = (entry for entry in MODELS if entry.name == name)
    torch.manual_seed(0)
    model = entry.build().eval()
    example = {
        key: value.float() if value.is_floating_point() else value
        for key, value in entry.example().items()
    }
    return example, fxprune.analyze(fxprune.trace(model, example))


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Attention as matrix products: FlopCounterMode counts nothing in the fused kernels for CPU."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel([SDPBackend.MATH]), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def macs(module: nn.Module, example: Mapping[str, Any]) -> int:
    """What FlopCounterMode counts when the module runs on the whole example batch."""
    with _slow_attention(), FlopCounterMode(display=False) as counter:
        module.eval()(**example)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def parameters(module: nn.Module) -> int:
    """Entries of the parameters, tied ones once."""
    return sum(p.numel() for p in module.parameters())


def activation_memory(module: fx.GraphModule, nodes: set[str], example: Mapping[str, Any]) -> int:
    """Bytes of the tensors that nodes of these names return, unless an earlier node returned them.

    Rewriting may add nodes of its own.
    """
    meter = _Meter(module)
    with _slow_attention():
        inputs = module.graph.find_nodes(op="placeholder")
        meter.run(*(example.get(str(node.target)) for node in inputs))
    return sum(size for name, size in meter.bytes.items() if name in nodes)


class _Meter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        named = [*module.parameters(), *module.buffers()]
        self.seen = {tensor.untyped_storage()._cdata for tensor in named}
        self.bytes: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        tensors = {id(t): t for t in tree_leaves(value) if isinstance(t, Tensor)}.values()
        fresh = [t for t in tensors if t.untyped_storage()._cdata not in self.seen]
        self.seen |= {t.untyped_storage()._cdata for t in fresh}
        if n.op not in ("placeholder", "get_attr", "output"):
            self.bytes[n.name] = sum(t.numel() * t.element_size() for t in fresh)
        return value
