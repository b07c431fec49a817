"""`module.compile()` leaves in a module what calls the original: no copy of it may hold that."""

from __future__ import annotations

import torch
from torch import nn

import fxprune


def test_layers_that_were_compiled_in_place_are_recorded_and_pruned() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.ReLU(), nn.Linear(8, 3))
    model = nn.Sequential(nn.Linear(4, 8), head).double().eval()
    x = torch.randn(2, 4, dtype=torch.float64)
    compiled: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph.code)
        return graph

    for module in (model, model[0], model[1]):
        module.compile(backend=backend)
    result = fxprune.prune(model, x, criterion="magnitude", sparsity=0.5)
    fxprune.verify(result.analysis.traced, result.plan, result.module, x)
    assert not compiled  # neither the capture nor the pruned graph called the original's layers
    assert result.module.get_submodule("0").out_features == 4
