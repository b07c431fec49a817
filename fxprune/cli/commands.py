"""Commands on one model: prune, groups, explain, report, export."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxprune.allocation import Budget, Limits
from fxprune.checkpoint import save
from fxprune.cli import models
from fxprune.cli.inputs import read_tensors
from fxprune.cli.outcome import FAILED, OK, Outcome, SourceError, UsageError
from fxprune.cli.progress import Progress
from fxprune.costs import cost
from fxprune.drivers import PruneResult, prune_analysed
from fxprune.equivalence import verify
from fxprune.factoring import FactorizeResult
from fxprune.interop import export as export_module
from fxprune.pictures import dot, plot, svg
from fxprune.reports import PruneReport


def prune(args: Namespace) -> Outcome:
    """Prune, and save, and check, as asked."""
    progress = Progress(not args.quiet)
    budget = budget_of(args.budget)
    if (args.sparsity is None) == (budget is None):
        raise UsageError("say how far: --sparsity 0.5, or --budget macs=0.5")
    if args.compensate and args.data is None:
        raise UsageError("--compensate reads what layers compute: give it --data")
    analysis, inputs = models.analysis_of(args, progress)
    planning = _planning(args, budget, progress)
    if budget is not None and budget.needs_latencies:
        inputs = models.real_inputs(analysis.traced, inputs)
    result = progress.stage(
        "pruning",
        lambda: prune_analysed(
            analysis, inputs, args.latency_file, args.compensate or None, **planning
        ),
    )
    return concluded(args, progress, inputs, result, result.report.as_data())


def concluded(
    args: Namespace,
    progress: Progress,
    inputs: Any,
    result: PruneResult | FactorizeResult,
    report: Any,
) -> Outcome:
    """A result with its report as data, checked and saved as asked."""
    text, data, code = [str(result.report)], {"report": report}, OK
    if args.verify:
        traced = result.analysis.traced
        values = models.real_inputs(traced, inputs)
        proof = progress.stage(
            "verifying", lambda: verify(traced, result.plan, result.module, values)
        )
        text.append(str(proof))
        data["proof"] = asdict(proof)
        code = OK if proof.ok else FAILED
    if args.output is not None:
        reasons = progress.stage("saving", lambda: save(result, args.output))
        text.append(f"Saved in {args.output}.")
        data["saved"] = {"directory": args.output, "needs_class": list(reasons)}
    return Outcome("\n".join(text), data, code)


def _planning(args: Namespace, budget: Budget | None, progress: Progress) -> dict[str, Any]:
    """The keywords of `fxprune.plan`."""
    limits = None
    if args.min_keep is not None or args.max_sparsity is not None:
        limits = Limits(min_keep=args.min_keep, max_sparsity=args.max_sparsity)
    data = None
    if args.data is not None:
        data = list(progress.each("reading", batches_of(args.data, args.batch_size)))
    same = ("criterion", "sparsity", "scope", "ignore", "round_to", "normalise")
    planning = {name: getattr(args, name) for name in same}
    return {**planning, "budget": budget, "limits": limits, "data": data}


def budget_of(texts: Sequence[str]) -> Budget | None:
    """`name=amount` texts, or several in one with commas; None if there are none."""
    amounts: dict[str, Any] = {}
    for text in (part for whole in texts for part in whole.split(",")):
        name, _, amount = text.partition("=")
        try:
            amounts[name.strip()] = int(amount) if amount.strip().isdigit() else float(amount)
        except ValueError as error:
            raise UsageError(f"--budget takes name=number, as macs=0.5; got {text!r}") from error
    if not amounts:
        return None
    known = Budget.__dataclass_fields__
    unknown = [name for name in amounts if name not in known]
    if unknown:
        raise UsageError(f"there is no budget {unknown[0]!r}; there are {', '.join(known)}")
    return Budget(**amounts)


def batches_of(path: str, size: int | None) -> Iterable[Any]:
    """The arrays of a file in batches: inputs by name, with the target if there is one."""
    tensors = read_tensors(path)
    lengths = {len(tensor) for tensor in tensors.values() if tensor.dim()}
    if len(lengths) != 1:
        raise SourceError(f"the arrays in {path} are of {sorted(lengths)} samples; need one number")
    (length,) = lengths
    step = length if size is None else size
    for start in range(0, length, max(step, 1)):
        part = {name: tensor[start : start + step] for name, tensor in tensors.items()}
        target = part.pop("target", None)
        yield part if target is None else (part, target)


def groups(args: Namespace) -> Outcome:
    """List the groups; write their picture if asked."""
    analysis, _ = models.analysis_of(args, Progress(not args.quiet))
    for path, draw in ((args.dot, dot), (args.svg, svg)):
        if path is not None:
            Path(path).write_text(draw(analysis), encoding="utf-8")
    data = {
        "fingerprint": analysis.fingerprint,
        "groups": [
            {
                "name": group.name,
                "units": group.size,
                "contexts": group.contexts,
                "maskable": group.maskable,
                "inside": group.outer,
                "members": [
                    {"parameter": m.parameter, "dim": m.dim, "role": m.role} for m in group.members
                ],
            }
            for group in analysis.groups
        ],
        "frozen": [{"name": group.name, "reason": group.reason} for group in analysis.frozen],
        "coverage": analysis.coverage().share,
    }
    return Outcome(str(analysis), data)


def explain(args: Namespace) -> Outcome:
    """Why a layer is coupled to what, or frozen."""
    analysis, _ = models.analysis_of(args, Progress(not args.quiet))
    text = analysis.explain(args.path)
    return Outcome(text, {"path": args.path, "explanation": text.splitlines()})


def report(args: Namespace) -> Outcome:
    """What was saved about a pruned model; of another model, what its nodes cost."""
    if models.is_saved(args.model):
        found = models.stored_report(args.model)
        if args.plot is not None:
            if not isinstance(found, PruneReport):
                raise UsageError(
                    "--plot draws widths, and factorising changes none: print the report, or --json"
                )
            plot(found, args.plot)
        return Outcome(found.to_markdown() if args.markdown else str(found), found.as_data())
    if args.markdown or args.plot is not None:
        raise UsageError("--markdown and --plot need the directory of a saved model")
    analysis, _ = models.analysis_of(args, Progress(not args.quiet))
    amounts = cost(analysis)
    return Outcome(str(amounts), asdict(amounts))


def export(args: Namespace) -> Outcome:
    """Write a model for another runtime, and compare."""
    progress = Progress(not args.quiet)
    module, inputs = models.graph_of(args, progress)
    values = models.real_inputs(module, inputs)
    done = progress.stage(
        "exporting", lambda: export_module(module, values, args.output, args.format)
    )
    return Outcome(str(done), {**asdict(done), "ok": done.ok}, OK if done.ok else FAILED)
