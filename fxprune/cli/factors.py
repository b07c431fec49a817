"""The command that puts layers into factors."""

from __future__ import annotations

from argparse import Namespace

from fxprune.cli import models
from fxprune.cli.commands import batches_of, budget_of, concluded
from fxprune.cli.outcome import Outcome, UsageError
from fxprune.cli.progress import Progress
from fxprune.factoring import factorize_analysed


def factorize(args: Namespace) -> Outcome:
    """Put layers into factors, and save, and check, as asked."""
    progress = Progress(not args.quiet)
    budget = budget_of(args.budget)
    if (args.energy is None) == (budget is None):
        raise UsageError("say how far: --budget macs=0.5, or --energy 0.9")
    analysis, inputs = models.analysis_of(args, progress)
    data = None
    if args.data is not None:
        data = list(progress.each("reading", batches_of(args.data, args.batch_size)))
    names = ("energy", "spread", "steps", "damping", "ignore")
    same = {name: getattr(args, name) for name in names}
    result = progress.stage(
        "factorising",
        lambda: factorize_analysed(analysis, args.method, data, budget=budget, **same),
    )
    return concluded(args, progress, inputs, result, result.report.as_data())
