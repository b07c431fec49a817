"""Capture: any model into a torch.fx graph that holds at every size that was proven."""

from fxprune.capture.engine import trace
from fxprune.capture.records import TraceInfo

__all__ = ["TraceInfo", "trace"]
