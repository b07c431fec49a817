"""`export`: write a module for another runtime, read the file back, and compare."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.jit._trace import TracerWarning

from fxprune.discrepancy import max_error
from fxprune.errors import ExportError
from fxprune.inputs import bind_inputs
from fxprune.interop.plain import plain_output, tensors_of, without_guards

Runner = Callable[..., Any]
"""What a file computes: positional inputs to outputs."""

TOLERANCE = 1e-5


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far its outputs are from the module's.

    format     "onnx", "torch.export" or "torchscript"
    path       of the file
    max_error  max|a-b| / max|b| per output on the example inputs, the largest over the outputs
    tolerance  the largest error that counts as equal
    """

    format: str
    path: str
    max_error: float
    tolerance: float = TOLERANCE

    @property
    def ok(self) -> bool:
        """True if the file computes what the module does, within the tolerance."""
        return self.max_error <= self.tolerance

    def __str__(self) -> str:
        verdict = "agrees" if self.ok else "DIFFERS"
        return (
            f"{self.path} ({self.format}) {verdict}: max relative error {self.max_error:.1e} "
            f"(tolerance {self.tolerance:.0e})"
        )


def export(
    module: fx.GraphModule,
    example_inputs: Any,
    path: str | os.PathLike[str],
    format: str | None = None,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Write a captured or pruned module to a file, read it back, run it and compare.

    example_inputs  as for `trace`; sizes that the graph leaves free stay free in the file, except
                    those that are 0 or 1 here
    path            the file; its ending says which format: .onnx, .pt2 or .ts
    format          "onnx" (checked in onnxruntime), "torch.export" or "torchscript", for other
                    endings

    The module is exported in eval mode and is not modified. Outputs that are no tensors, tuples,
    lists or dicts become a tuple of their tensors. Raises ExportError if the format is unknown, a
    package is missing, or torch cannot export the graph.
    """
    chosen = _format_of(Path(path), format)
    clone = without_guards(module) if chosen == "torchscript" else module
    modes = {child: child.training for child in clone.modules()}
    values = bind_inputs(module, example_inputs, ExportError)
    try:
        clone.eval()
        with torch.no_grad():
            expected = clone(*values)
            runner = _FORMATS[chosen](plain_output(clone, expected), clone, values, str(path))
            error = max_error(tensors_of(runner(*values)), tensors_of(expected))
    finally:
        for child, training in modes.items():
            child.training = training
    return ExportReport(chosen, str(path), error, tolerance)


def _format_of(path: Path, format: str | None) -> str:
    chosen = _ENDINGS.get(path.suffix, "") if format is None else format
    if chosen not in _FORMATS:
        raise ExportError(
            f"{path.name!r} says no format and {format!r} is none: use one of {list(_FORMATS)}, or "
            f"a file that ends in {', '.join(_ENDINGS)}."
        )
    return chosen


@contextlib.contextmanager
def _exporting(what: str) -> Iterator[None]:
    """Turn what stops an exporter into an error of one line; its advice for programmers is kept."""
    try:
        with warnings.catch_warnings():
            # Exporters deprecate things of their own, and tracing warns of every Python number.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", TracerWarning)
            yield
    except ImportError as error:
        raise ExportError(f"{what} needs {error.name}: pip install 'fxprune[export]'.") from error
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ExportError(f"{what} failed with {type(error).__name__}: {first}") from error


def _dynamic(module: fx.GraphModule, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Per input, its free dimensions; torch.export takes the ones that it can keep free."""
    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    free = getattr(module.meta.get("fxprune"), "dynamic", {})
    return tuple(
        dict.fromkeys(free.get(name, ()), torch.export.Dim.AUTO)
        if isinstance(value, Tensor)
        else None
        for name, value in zip(names, values, strict=True)
    )


def _program(module: nn.Module, graph: fx.GraphModule, values: tuple[Any, ...]) -> Any:
    shapes: Any = _dynamic(graph, values)
    if module is not graph:  # the wrapper has one parameter, *args
        shapes = {"args": shapes}
    return torch.export.export(module, values, dynamic_shapes=shapes)


def _torch_export(
    module: nn.Module, graph: fx.GraphModule, values: tuple[Any, ...], path: str
) -> Runner:
    with _exporting("torch.export"):
        torch.export.save(_program(module, graph, values), path)
        return torch.export.load(path).module()


def _torchscript(
    module: nn.Module, graph: fx.GraphModule, values: tuple[Any, ...], path: str
) -> Runner:
    with _exporting("torch.jit.trace"):
        torch.jit.save(torch.jit.trace(module, values, strict=False), path)
        return torch.jit.load(path)  # type: ignore[no-any-return]


def _onnx(module: nn.Module, graph: fx.GraphModule, values: tuple[Any, ...], path: str) -> Runner:
    with _exporting("the ONNX export"):
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it, and says so in many lines)

        program = _program(module, graph, values)
        written: Any = torch.onnx.export(program, dynamo=True, verbose=False)
        written.save(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in written.model.graph.inputs]

    def run(*given: Any) -> list[Tensor]:
        tensors = [value for value in given if isinstance(value, Tensor)]
        feeds = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
        used = {node.name for node in session.get_inputs()}
        feeds = {name: array for name, array in feeds.items() if name in used}
        return [torch.from_numpy(array) for array in session.run(None, feeds)]

    return run


_ENDINGS: Mapping[str, str] = MappingProxyType(
    {".onnx": "onnx", ".pt2": "torch.export", ".ts": "torchscript"}
)
_FORMATS: Mapping[str, Callable[..., Runner]] = MappingProxyType(
    {"onnx": _onnx, "torch.export": _torch_export, "torchscript": _torchscript}
)
