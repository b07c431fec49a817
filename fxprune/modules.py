"""The few modules of our own that a captured graph may contain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: in train mode, zero whole samples ("row") or the whole batch ("batch").

    p is the probability of dropping; what is kept is divided by 1 - p unless `rescale` is false.
    In eval mode the input passes unchanged.
    """

    def __init__(self, p: float, mode: str = "row", rescale: bool = True) -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0 or mode not in ("row", "batch"):
            raise ValueError(f"p={p} must lie in [0, 1] and mode={mode!r} be 'row' or 'batch'")
        self.p, self.mode, self.rescale = p, mode, rescale

    def forward(self, x: Tensor) -> Tensor:
        """Input and output: (batch, ...)."""
        if not self.training or self.p == 0.0:
            return x
        keep = 1.0 - self.p
        shape = [x.size(0) if self.mode == "row" else 1] + [1] * (x.dim() - 1)
        mask = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * (mask.div_(keep) if self.rescale and keep > 0.0 else mask)

    def extra_repr(self) -> str:
        """The arguments, for `repr`."""
        return f"p={self.p}, mode={self.mode!r}, rescale={self.rescale}"


class ByMode(nn.Module):
    """A literal that depends on the mode: called without arguments, returns one of two values."""

    def __init__(self, train_value: Any, eval_value: Any) -> None:
        super().__init__()
        self.train_value, self.eval_value = train_value, eval_value

    def forward(self) -> Any:
        """The value for the present mode."""
        return self.train_value if self.training else self.eval_value

    def extra_repr(self) -> str:
        """The arguments, for `repr`."""
        return f"train_value={self.train_value!r}, eval_value={self.eval_value!r}"


class CustomGradient(nn.Module):
    """Calls a `torch.autograd.Function`, which keeps the gradient that it defines."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """What the function's `apply` returns."""
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        """The function's name, for `repr`."""
        return self.function.__name__


class SizedCustomGradient(CustomGradient):
    """One whose forward computes with sizes: nothing that it touches may be pruned.

    The numbers in a graph keep their value when sizes change; those in its Python would not.
    """
