"""Pruned modules in other formats, and other libraries' criteria here."""

from fxprune.interop import torch_pruning
from fxprune.interop.exporting import ExportReport, export
from fxprune.interop.plain import plain_output, without_guards

__all__ = ["ExportReport", "export", "plain_output", "torch_pruning", "without_guards"]
