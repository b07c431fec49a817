"""Random numbers that two graphs draw alike, wherever their tensors' elements lie in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fxprune.meta_kernels import PlainDispatchMode
from fxprune.propagate import Propagation, Record


def draws(propagation: Propagation) -> Iterator[Record]:
    """The executed ops that draw random numbers."""
    for record in propagation.records:
        if torch.Tag.nondeterministic_seeded in getattr(record.call.func, "tags", ()):
            yield record  # modules have no tags


@contextmanager
def same_draws(propagation: Propagation, devices: Iterable[torch.device]) -> Iterator[None]:
    """Draw random numbers, and put the generators back to where they stood."""
    with ExitStack() as stack:
        others = {device for device in devices if device.type != "cpu"}
        stack.enter_context(torch.random.fork_rng(list(others)))
        if any(draws(propagation)):
            stack.enter_context(_InOrder())  # type: ignore[no-untyped-call]
        yield


class _InOrder(PlainDispatchMode):
    """Draws numbers in the order of a tensor's indices; torch does in that of its memory."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        dense = tree_map_only(Tensor, Tensor.contiguous, (args, kwargs))
        result = func(*dense[0], **dense[1])
        return args[0].copy_(result) if func._schema.is_mutable else result
