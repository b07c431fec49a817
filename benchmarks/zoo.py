"""Prune every model of the zoo, each in a process of its own, and tabulate what came of it.

    python -m benchmarks.zoo                        # everything
    python -m benchmarks.zoo timm torchvision/res   # what starts with these
    python -m benchmarks.zoo --list

Needs the `zoo` extra (timm, torchvision, transformers); no weights are downloaded. Writes a JSON
file, which is kept up while the sweep runs, and a Markdown table.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

import fxprune
from benchmarks.zoo_entry import Entry
from benchmarks.zoo_models import entries
from tests.zoo import checks

LIMIT = 240  # seconds that a model may take
TABLE = {
    "captured": "captured",
    "analysed": "analysed",
    "rewritten": "rewritten",
    "masked": "masked equivalence",
    "interpreted": "masked interpretation",
    "trains": "trains",
    "groups": "groups",
    "prunable": "prunable",
    "seconds": "s",
    "peak_mib": "MiB",
}


def measure(entry: Entry) -> Iterator[dict[str, Any]]:
    """What is found out about a model, step by step; an exception ends it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = entry.build()
    example, inputs = entry.inputs(model, 2), entry.inputs(model, 3)
    model = checks.enliven(model, example)
    expected = checks.run(model, inputs)
    yield {"runs": True, "alive": _spread(expected)}
    start = time.process_time()
    traced = fxprune.trace(model, example)
    seconds = time.process_time() - start
    error = checks.relative_error(checks.run(traced, inputs), expected)
    yield {"captured": error, "trace_seconds": seconds}
    start = time.process_time()
    analysis = fxprune.analyze(traced)
    seconds = time.process_time() - start
    yield {"analysed": True, "analyze_seconds": seconds, **_coverage(analysis)}
    yield from _masked(copy.deepcopy(model), traced, analysis, inputs)
    yield from _interpreted(traced, analysis, inputs, checks.structure(expected))


def _spread(output: Any) -> float:
    tensors = [t for t in checks.tensors(output) if t.dim()]
    return min((float((t - t[:1]).abs().max() / t.abs().max()) for t in tensors), default=0.0)


def _coverage(analysis: fxprune.Analysis) -> dict[str, Any]:
    """Share of weights with a prunable dimension, and the reasons of what is frozen, by units."""
    reached = {m.parameter for group in analysis.groups for m in group.members}
    named = analysis.traced.named_parameters()
    weights = {name: p.numel() for name, p in named if p.dim() > 1}
    reasons: Counter[str] = Counter()
    for group in analysis.frozen:
        reasons[group.reason or ""] += group.size
    prunable = sum(count for name, count in weights.items() if name in reached)
    return {
        "groups": len(analysis.groups),
        "maskable": sum(group.maskable for group in analysis.groups),
        "contexts": sum(group.contexts > 1 for group in analysis.groups),
        "prunable": prunable / max(sum(weights.values()), 1),
        "unreached": sorted(set(weights) - reached)[:40],
        "frozen": dict(reasons.most_common(12)),
        "barriers": sorted({op for _, op in analysis.propagation.barriers}),
    }


def _masked(model: Any, traced: Any, analysis: Any, inputs: Any) -> Iterator[dict[str, Any]]:
    plan = checks.random_plan(analysis, lambda group: group.maskable)
    start = time.process_time()
    pruned = fxprune.rewrite(traced, plan)
    yield {"rewritten": True, "rewrite_seconds": time.process_time() - start}
    checks.apply_masks(model, plan)
    error = checks.relative_error(checks.run(pruned, inputs), checks.run(model, inputs))
    yield {"masked": error}


def _interpreted(
    traced: Any, analysis: Any, inputs: Any, structure: Any
) -> Iterator[dict[str, Any]]:
    plan = checks.random_plan(analysis, lambda group: True, seed=1)
    pruned = fxprune.rewrite(traced, plan)
    report = checks.verify_all(traced, plan, pruned, inputs)
    yield {"interpreted": report.max_error, "mismatch": report.first_mismatch}
    kept = structure == checks.structure(checks.run(pruned, inputs))
    checks.train_one_step(pruned, inputs)
    yield {"trains": True, "structure": kept}


def _work(entry: Entry, pipe: Connection) -> None:
    """Runs in the child: sends every finding as soon as it is known."""
    warnings.simplefilter("ignore")
    try:
        for found in measure(entry):
            pipe.send(found)
    except Exception as error:  # what a model fails with is the finding
        where = traceback.extract_tb(error.__traceback__)
        lines = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in where[-3:]]
        pipe.send({"error": f"{type(error).__name__}: {error}"[:600], "where": lines})
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send({"seconds": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss // 1024})


def sweep_one(entry: Entry, limit: float) -> dict[str, Any]:
    """One model in a process of its own, ended when the limit is over."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(entry, sender))
    process.start()
    sender.close()
    found: dict[str, Any] = {"model": entry.name}
    deadline = time.monotonic() + limit
    try:
        while receiver.poll(max(deadline - time.monotonic(), 0)):
            found |= receiver.recv()
        found["error"] = f"took longer than {limit:.0f} s"
        process.kill()
    except EOFError:
        if "seconds" not in found:
            process.join()
            found["error"] = f"the process died with exit code {process.exitcode}"
    process.join()
    return found


def passed(row: dict[str, Any]) -> bool:
    """True if everything that is asked of a model holds."""
    errors = [row.get(key, 1.0) for key in ("captured", "masked", "interpreted")]
    return max(errors) <= checks.TOLERANCE and bool(row.get("trains")) and row["structure"]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The sweep's matrix."""
    lines = []
    for row in rows:
        cells = [_cell(row.get(key)) for key in TABLE]
        lines.append([row["model"], *cells, row.get("error", row.get("mismatch")) or ""])
    table = tabulate(lines, ["model", *TABLE.values(), "note"], "github")
    return f"{sum(map(passed, rows))} of {len(rows)} models pass.\n\n{table}\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.2g}"
    return str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="beginnings of model names; all without any")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds per model")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/output/zoo.json"))
    options = parser.parse_args()
    wanted = tuple(options.names) or ("",)
    chosen = [entry for entry in entries() if entry.name.startswith(wanted)]
    if options.list:
        print("\n".join(entry.name for entry in chosen))
        return 0
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for entry in tqdm(chosen, file=sys.stderr):
        rows.append(sweep_one(entry, options.limit))
        options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
        tqdm.write(f"{'ok  ' if passed(rows[-1]) else 'FAIL'} {entry.name} {_short(rows[-1])}")
    print(f"{sum(map(passed, rows))} of {len(rows)} models pass")
    return 0 if all(map(passed, rows)) else 1


def _short(row: dict[str, Any]) -> str:
    keys = ("captured", "masked", "interpreted", "groups", "prunable", "seconds")
    cells = [f"{key} {_cell(row.get(key))}" for key in keys]
    return ", ".join([*cells, str(row.get("error", row.get("mismatch")) or "")])


if __name__ == "__main__":
    sys.exit(main())
