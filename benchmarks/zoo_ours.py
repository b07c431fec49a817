"""What the sweep finds out about a model with fxprune."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

import fxprune
from benchmarks.zoo_entry import Entry
from fxprune.capture.records import TraceInfo
from tests.zoo import checks

Found = dict[str, Any]


def measure(entry: Entry) -> Iterator[Found]:
    """The findings, step by step; an exception ends them."""
    torch.manual_seed(0)
    model = entry.build()
    example, inputs = entry.inputs(model, 2), entry.inputs(model, 3)
    model = checks.enliven(model, example)
    expected = checks.run(model, inputs)
    yield {"runs": True, "alive": _spread(expected)}
    start = time.process_time()
    traced = fxprune.trace(model, example)
    seconds = time.process_time() - start
    error = checks.relative_error(checks.run(traced, inputs), expected)
    yield {"captured": error, "trace_seconds": seconds, "dropped": _info(traced).dropped}
    start = time.process_time()
    analysis = fxprune.analyze(traced)
    seconds = time.process_time() - start
    yield {"analysed": True, "analyze_seconds": seconds, **_coverage(analysis)}
    yield from _masked(copy.deepcopy(model), traced, analysis, inputs)
    yield from _interpreted(traced, analysis, inputs, checks.structure(expected))


def _info(traced: fx.GraphModule) -> TraceInfo:
    info: TraceInfo = traced.meta["fxprune"]
    return info


def _spread(output: Any) -> float:
    """How much the outputs differ between the samples of a batch, relative to their size."""
    tensors = [t for t in checks.tensors(output) if t.dim()]
    return min((float((t - t[:1]).abs().max() / t.abs().max()) for t in tensors), default=0.0)


def _coverage(analysis: fxprune.Analysis) -> Found:
    coverage, layers = analysis.coverage(), _layers(analysis.traced)
    return {
        "groups": len(analysis.groups),
        "maskable": sum(group.maskable for group in analysis.groups),
        "contexts": sum(group.contexts > 1 for group in analysis.groups),
        "prunable": _share(coverage, layers),
        "prunable_parameters": coverage.share,
        "unreached": {
            name: _reasons(analysis, name)
            for name in sorted(layers.intersection(coverage.unreached))
        },
        "frozen": {row.reason: len(row.dimensions) for row in coverage.frozen},
        "lost": {row.reason: row.lost for row in coverage.frozen if row.lost},
        "barriers": sorted({op for _, op in analysis.propagation.barriers}),
    }


_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)


def _layers(traced: fx.GraphModule) -> frozenset[str]:
    """The weights of linear, convolutional and recurrent layers, those called by function too."""
    owned = [n for n, m in traced.named_modules() if isinstance(m, _LAYERS)]
    names = {
        f"{path}.{n}" for path in owned for n, _ in traced.get_submodule(path).named_parameters()
    }
    functions = {"linear", "addmm", "conv1d", "conv2d", "conv3d"}
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.target.__name__ in functions:
            names |= {str(n.target) for n in node.all_input_nodes if n.op == "get_attr"}
    return frozenset(n for n, p in traced.named_parameters() if n in names and p.dim() > 1)


def _share(coverage: fxprune.Coverage, names: frozenset[str]) -> float:
    total = sum(coverage.total[name] for name in names)
    return sum(coverage.reached[name] for name in names) / total if total else 1.0


def _reasons(analysis: fxprune.Analysis, parameter: str) -> list[str]:
    """Why each dimension of a parameter is frozen."""
    found = {
        (member.parameter, member.dim): group.reason or ""
        for group in analysis.frozen
        for member in group.members
    }
    return [reason for (name, _), reason in sorted(found.items()) if name == parameter]


def _masked(
    model: nn.Module, traced: fx.GraphModule, analysis: fxprune.Analysis, inputs: Found
) -> Iterator[Found]:
    """Masked equivalence, with the masks applied to the user's model, not to the capture of it."""
    plan = checks.random_plan(analysis, lambda group: group.maskable)
    start = time.process_time()
    pruned = fxprune.rewrite(traced, plan)
    yield {"pruned": True, "rewrite_seconds": time.process_time() - start}
    checks.apply_masks(model, plan)
    error = checks.relative_error(checks.run(pruned, inputs), checks.run(model, inputs))
    yield {"masked": error, "kept_parameters": _count(pruned) / _count(traced)}
    yield _at_another_size(pruned, model, _info(traced), inputs)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _at_another_size(
    pruned: fx.GraphModule, masked: nn.Module, info: TraceInfo, inputs: Found
) -> Found:
    """The same comparison on images of another size, where the capture left that size free.

    Larger ones, or smaller ones where the model itself fails on larger ones.
    """
    fixed = {
        f"{name} dimension {dim}": f"{size}: {reason}"
        for name, dims in info.specialised.items()
        for dim, (size, reason) in dims.items()
    }
    for direction in (1, -1):
        resized = _resized(info, inputs, direction)
        if resized is None:
            return {"specialised": fixed}
        try:
            expected = checks.run(masked, resized)
        except (IndexError, RuntimeError):
            continue
        error = checks.relative_error(checks.run(pruned, resized), expected)
        return {"specialised": fixed, "resized": error}
    raise ValueError("the model runs neither on larger nor on smaller images")


def _resized(info: TraceInfo, inputs: Found, direction: int) -> Found | None:
    """Inputs with images of another size; None if no image's size is free."""
    resized, changed = dict(inputs), False
    for name, value in inputs.items():
        free = [dim for dim in info.dynamic.get(name, ()) if dim > 1]
        if isinstance(value, torch.Tensor) and value.dim() > 3 and free:
            shape = list(value.shape)
            for dim in free:
                step = info.steps.get(name, {}).get(dim, 1)
                shape[dim] += direction * step * max(1, 32 // step)
            resized[name], changed = torch.randn(shape, dtype=value.dtype), True
    return resized if changed else None


def _interpreted(
    traced: fx.GraphModule, analysis: fxprune.Analysis, inputs: Mapping[str, Any], structure: Any
) -> Iterator[Found]:
    """All groups: equality with the masked interpretation, the output's structure, training."""
    plan = checks.random_plan(analysis, lambda group: True, seed=1)
    pruned = fxprune.rewrite(traced, plan)
    report = checks.verify_all(traced, plan, pruned, inputs)
    yield {"interpreted": report.max_error, "mismatch": report.first_mismatch}
    kept = structure == checks.structure(checks.run(pruned, inputs))
    checks.train_one_step(pruned, inputs)
    yield {"trains": True, "structure": kept}


def passed(found: Found) -> bool:
    """True if everything that is asked of a model holds."""
    errors = [found.get(key, 1.0) for key in ("captured", "masked", "interpreted")]
    errors.append(found.get("resized", 0.0))
    whole = bool(found.get("trains")) and bool(found.get("structure"))
    return max(errors) <= checks.TOLERANCE and whole


def notable(frozen: Mapping[str, int]) -> Counter[str]:
    """The frozen reasons without those that every network has: its interface and its kernels."""
    usual = ("model input", "model output", "kernel taps")
    return Counter({k: n for k, n in frozen.items() if not k.startswith(usual)})
