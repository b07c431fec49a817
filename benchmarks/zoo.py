"""Prune every model of the zoo, each in a process of its own, and tabulate what came of it.

    python -m benchmarks.zoo                        # everything
    python -m benchmarks.zoo timm torchvision/res   # what starts with these
    python -m benchmarks.zoo --only fxprune         # without Torch-Pruning
    python -m benchmarks.zoo --list

Needs the extras `zoo` (timm, torchvision, transformers) and `bench` (Torch-Pruning); no weights are
downloaded. Writes a JSON file, which is kept up while the sweep runs, and a Markdown table.
What the JSON file has from an earlier run and is not asked for is kept in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import zoo_ours, zoo_peer
from benchmarks.zoo_entry import Entry
from benchmarks.zoo_models import entries
from benchmarks.zoo_table import markdown

LIMITS = {"fxprune": 240, "torch_pruning": 60}  # seconds of CPU time per model
PATIENCE = 10  # times the limit, of wall time: for a process that hangs
RESULTS = Path(__file__).parent / "results" / "zoo.json"

Found = dict[str, Any]
Measure = Callable[[Entry], Iterator[Found]]
MEASURES: Mapping[str, Measure] = {
    "fxprune": zoo_ours.measure,
    "torch_pruning": zoo_peer.measure,
}


def _work(measure: Measure, entry: Entry, limit: int, pipe: Connection) -> None:
    """Runs in the child: sends every finding as soon as it is known."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        for found in measure(entry):
            pipe.send(found)
    except Exception as error:  # what a model fails with is the finding
        where = traceback.extract_tb(error.__traceback__)
        lines = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in where[-3:]]
        pipe.send({"error": f"{type(error).__name__}: {error}"[:600], "where": lines})
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send({"seconds": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss // 1024})


def sweep_one(measure: Measure, entry: Entry, limit: int) -> Found:
    """One model in a process of its own, ended when the limit is over: seconds of CPU time."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(measure, entry, limit, sender))
    process.start()
    sender.close()
    found: Found = {}
    deadline = time.monotonic() + PATIENCE * limit
    try:
        while receiver.poll(max(deadline - time.monotonic(), 0)):
            found |= receiver.recv()
        found["error"] = f"hung for {PATIENCE * limit} s"
        process.kill()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            found["error"] = f"took longer than {limit} s of CPU time"
        elif "seconds" not in found:
            found["error"] = f"the process died with exit code {process.exitcode}"
    process.join()
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="beginnings of model names; all without any")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--only", choices=MEASURES, help="one library instead of both")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON file")
    return parser.parse_args()


def main() -> int:
    options = _options()
    wanted = tuple(options.names) or ("",)
    known = entries()
    chosen = [entry for entry in known if entry.name.startswith(wanted)]
    if options.list:
        print("\n".join(entry.name for entry in chosen))
        return 0
    rows = {row["model"]: row for row in _earlier(options.output)}
    for entry in tqdm(chosen, file=sys.stderr):
        row = rows.setdefault(entry.name, {"model": entry.name, "fxprune": {}})
        for library in [options.only] if options.only else MEASURES:
            row[library] = sweep_one(MEASURES[library], entry, LIMITS[library])
        _write([rows[e.name] for e in known if e.name in rows], options.output)
        tqdm.write(_line(row))
    failed = [e.name for e in chosen if not zoo_ours.passed(rows[e.name]["fxprune"])]
    print(f"{len(chosen) - len(failed)} of {len(chosen)} models pass", *failed)
    return 1 if failed else 0


def _earlier(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    found = row["fxprune"]
    keys = ("captured", "masked", "resized", "interpreted", "groups", "prunable", "seconds")
    cells = [f"{k} {found[k]:.2g}" for k in keys if k in found]
    note = str(found.get("error", found.get("mismatch")) or "")
    peer = row.get("torch_pruning")
    theirs = "" if peer is None else f" | Torch-Pruning: {peer}"
    verdict = "ok  " if zoo_ours.passed(found) else "FAIL"
    return f"{verdict} {row['model']} {', '.join(cells)} {note}{theirs}"


if __name__ == "__main__":
    sys.exit(main())
