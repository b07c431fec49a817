"""Save and load a pruned model without pickle: tensors as safetensors, plan and graph as JSON."""

from fxprune.checkpoint.files import BASES, GRAPH, PLAN, TENSORS
from fxprune.checkpoint.loading import load, load_plan
from fxprune.checkpoint.saving import ClassNeededWarning, save

__all__ = [
    "BASES",
    "GRAPH",
    "PLAN",
    "TENSORS",
    "ClassNeededWarning",
    "load",
    "load_plan",
    "save",
]
