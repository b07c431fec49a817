"""Save and load a pruned model without pickle: tensors as safetensors, plan and graph as JSON."""

from fxprune.checkpoint.files import GRAPH, PLAN, TENSORS
from fxprune.checkpoint.loading import load
from fxprune.checkpoint.saving import ClassNeededWarning, save

__all__ = ["GRAPH", "PLAN", "TENSORS", "ClassNeededWarning", "load", "save"]
