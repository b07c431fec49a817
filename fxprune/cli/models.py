"""Models from the command line: `package.module:factory`, or a directory that `save` wrote."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis import Analysis, analyze
from fxprune.capture import trace
from fxprune.checkpoint import GRAPH, PLAN, load
from fxprune.checkpoint.files import read_graph, read_text
from fxprune.checkpoint.plan_files import format_of
from fxprune.cli.inputs import read_inputs, read_tensors, recorded_inputs
from fxprune.cli.outcome import SourceError, UsageError
from fxprune.cli.progress import Progress
from fxprune.factoring import FactorizeReport
from fxprune.plans.factorization import FACTORIZATION_FORMAT
from fxprune.plans.text import FORMAT
from fxprune.reports import PruneReport


def is_saved(spec: str) -> bool:
    """True for a directory, False for `package.module:factory`; anything else is a UsageError."""
    if Path(spec).is_dir():
        return True
    if ":" in spec and all(part.strip() for part in spec.split(":", 1)):
        return False
    raise UsageError(
        f"{spec!r} is neither a directory that fxprune saved nor package.module:factory"
    )


def build(args: Namespace, spec: str) -> nn.Module:
    """The model that a factory makes, in eval mode, its weights drawn with the seed of `args`."""
    path, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        factory: Any = functools.reduce(getattr, name.split("."), importlib.import_module(path))
    except (ImportError, AttributeError) as error:
        raise SourceError(f"cannot import {spec}: {error}") from error
    keywords = _keywords(args.kwargs)
    torch.manual_seed(args.seed)
    try:
        model = factory(**keywords)
    except Exception as error:
        raise SourceError(f"{spec} fails with {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise SourceError(f"{spec} makes a {type(model).__name__}, not a torch.nn.Module")
    if args.weights is not None:
        try:
            model.load_state_dict(read_tensors(args.weights))
        except RuntimeError as error:
            raise SourceError(f"{args.weights} does not fit {spec}: {error}") from error
    return model.eval()


def _keywords(text: str) -> dict[str, Any]:
    try:
        keywords = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--kwargs is no JSON: {error}") from error
    if not isinstance(keywords, dict):
        raise UsageError("--kwargs must be a JSON object, as in '{\"num_classes\": 10}'")
    return keywords


def graph_of(args: Namespace, progress: Progress) -> tuple[fx.GraphModule, Any]:
    """The graph of the model that `args` name, and its inputs."""
    if is_saved(args.model):
        module = progress.stage("loading", lambda: load(args.model)).eval()
        return module, read_inputs(args.input) if args.input else None
    if not args.input:
        raise UsageError("say what the model takes: --input 1x3x224x224, or a file")
    model = progress.stage("building", lambda: build(args, args.model))
    torch.manual_seed(args.seed)  # the inputs do not depend on how many weights there are
    inputs = read_inputs(args.input)
    return progress.stage("capturing", lambda: trace(model, inputs)), inputs


def analysis_of(args: Namespace, progress: Progress) -> tuple[Analysis, Any]:
    """The analysed graph of the model that `args` name, and its inputs."""
    module, inputs = graph_of(args, progress)
    strict = getattr(args, "strict", False)
    return progress.stage("analysing", lambda: analyze(module, strict=strict)), inputs


def real_inputs(module: fx.GraphModule, inputs: Any) -> Any:
    """The inputs given, or for a loaded graph random ones of the recorded sizes."""
    return recorded_inputs(module) if inputs is None else inputs


REPORTS: Mapping[str, type[PruneReport] | type[FactorizeReport]] = MappingProxyType(
    {FORMAT: PruneReport, FACTORIZATION_FORMAT: FactorizeReport}
)
"""The "format" of a plan's text → the report that is saved beside it."""


def stored_report(directory: str) -> PruneReport | FactorizeReport:
    """The report that was saved with a pruned or factorised model."""
    data = read_graph(Path(directory) / GRAPH)["report"]
    if data is None:
        raise SourceError(
            f"{directory} holds no report: save what fxprune.prune or fxprune.factorize returned, "
            "with its report"
        )
    kind = REPORTS[format_of(read_text(Path(directory) / PLAN, "plan"))]
    try:
        return kind.from_data(data)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"the report in {directory} is malformed: {error}") from error
