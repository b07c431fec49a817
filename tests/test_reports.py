"""Reports and pictures say what is there, counted in other ways."""

from __future__ import annotations

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.reports import OTHER, PruneReport, compact
from tests.zoo.models import MODELS

ENTRIES = {entry.name: entry for entry in MODELS}


class Mixed(nn.Module):
    """A tied table, a bare weight, a grouped convolution, attention's products without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Parameter(torch.randn(8, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.grouped(self.conv(x).relu()).flatten(2).transpose(1, 2)
        tokens = tokens + self.attend(tokens, tokens, tokens, need_weights=False)[0]
        return self.head((tokens @ self.mix).relu().mean(1))


@pytest.fixture(scope="module")
def result() -> fxprune.PruneResult:
    torch.manual_seed(0)
    return fxprune.prune(Mixed().eval(), torch.randn(2, 3, 4, 4), sparsity=0.5)


def entries_by_masks(result: fxprune.PruneResult) -> dict[str, tuple[int, int]]:
    """Group → parameter entries that its units own, before and after, from masks alone."""
    masks, plan = result.plan.masks(), result.plan
    names = dict(result.analysis.traced.named_parameters())
    found = {}
    for group in result.analysis.groups:
        owned: dict[str, Tensor] = {}
        every = torch.ones(group.shape, dtype=torch.bool)
        for member in (m for m in group.members if m.parameter in names):
            shape = plan.shapes[member.parameter]
            mine = member.spread(every, group, fill=False, rank=len(shape)).expand(shape)
            owned[member.parameter] = owned.get(member.parameter, torch.zeros_like(mine)) | mine
        left = [mask & masks.get(name, mask) for name, mask in owned.items()]
        found[group.name] = (
            sum(int(mask.sum()) for mask in owned.values()),
            sum(int(mask.sum()) for mask in left),
        )
    return found


def zoo_result(name: str) -> fxprune.PruneResult:
    entry = ENTRIES[name]
    example = {key: v.float() if v.is_floating_point() else v for key, v in entry.example().items()}
    return fxprune.prune(entry.build().eval(), example, sparsity=0.4)


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "llama_gqa", "gpt2"])
def test_parameters_of_groups_are_those_of_their_masks(name: str) -> None:
    result = zoo_result(name)
    rows = {r.name: (r.parameters_before, r.parameters_after) for r in result.report.groups}
    assert rows == entries_by_masks(result)


def test_layers_add_up(result: fxprune.PruneResult) -> None:
    report = result.report
    assert sum(row.macs_before for row in report.layers) == report.macs_before
    assert sum(row.macs_after for row in report.layers) == report.macs_after
    rows = {row.name: row for row in report.layers}
    assert list(rows) == [
        "conv",
        "grouped",
        "attend.in_proj_weight",
        "attend.out_proj",
        "mix",
        "head",
        OTHER,
    ]
    assert (rows["conv"].width_before, rows["head"].width_after) == (8, 4)
    assert rows["grouped"].width_after == result.module.get_submodule("grouped").out_channels
    assert rows["mix"].macs_before == 16 * 8 * 6  # of 16 pixels
    assert rows[OTHER].macs_before == 2 * 16 * 16 * 8  # queries by keys, and by values


def test_totals_are_those_of_cost(result: fxprune.PruneResult) -> None:
    dense, left = fxprune.cost(result.analysis), fxprune.cost(result.analysis, result.plan)
    report = result.report
    assert (report.macs_before, report.macs_after) == (dense.macs, left.macs)
    assert report.activation_memory_after == left.activation_memory
    assert report.parameters_after == left.parameters


def test_json_reads_back(result: fxprune.PruneResult) -> None:
    data = json.loads(result.report.to_json())
    assert PruneReport.from_data(data) == result.report
    assert data["macs_after"] == result.report.macs_after
    assert data["latency"] is None


def test_latency_is_in_every_form(result: fxprune.PruneResult) -> None:
    timed = PruneReport(**{**vars(result.report), "latency": fxprune.LatencyReport(**LATENCY)})
    for text in (str(timed), timed.to_markdown()):
        assert re.search(r"latency, predicted +\|? +10 ms +\|? +6.2 ms +\|? +62.0%", text), text
        assert re.search(r"latency, measured +\|? +10 ms +\|? +6.5 ms +\|? +65.0%", text), text
    assert PruneReport.from_data(timed.as_data()).as_data()["latency"] == LATENCY


LATENCY = {"dense": 0.010, "predicted": 0.0062, "measured": 0.0065}


def test_markdown_has_a_row_per_group_that_lost_units(result: fxprune.PruneResult) -> None:
    text = result.report.to_markdown()
    names = [row.name for row in result.report.groups if row.units_after < row.units_before]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [name for name in names if any(f"| {name} " in row for row in rows)] == names
    assert len({row.count("|") for row in rows if ":" in row}) == 1


def test_notes_are_shown() -> None:
    model = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 2))
    report = fxprune.prune(model, torch.randn(2, 3), 0.5, round_to=8).report
    assert report.notes
    assert str(report).splitlines()[-len(report.notes) :] == list(report.notes)
    assert f"- {report.notes[0]}" in report.to_markdown()


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (812, "812"), (1000, "1.00k"), (73856, "73.9k"), (1814073344, "1.81G")],
)
def test_compact_numbers(number: int, text: str) -> None:
    assert compact(number) == text


def test_the_chart_has_a_bar_per_layer(result: fxprune.PruneResult, tmp_path: Path) -> None:
    figure = fxprune.plot(result, str(tmp_path / "chart.png"))
    left, right = figure.axes
    rows = result.report.layers
    widths = [bar.get_width() for bar in left.patches]
    assert widths == [r.width_before for r in rows] + [r.width_after for r in rows]
    assert sum(bar.get_width() for bar in right.patches[: len(rows)]) == pytest.approx(100)
    assert [label.get_text() for label in left.get_yticklabels()] == [r.name for r in rows]
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_the_chart_says_what_is_missing(
    result: fxprune.PruneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(fxprune.FxpruneError, match=r"pip install 'fxprune\[plot\]'"):
        fxprune.plot(result)


NODE = re.compile(r'  ("(?:[^"\\]|\\.)*") \[(.*)\];')
EDGE = re.compile(r'  ("(?:[^"\\]|\\.)*") -> ("(?:[^"\\]|\\.)*")( \[.*\])?;')


def test_dot_leads_from_makers_through_groups_to_readers(result: fxprune.PruneResult) -> None:
    lines = fxprune.dot(result).splitlines()
    assert (lines[0], lines[-1]) == ("digraph groups {", "}")
    body = [line for line in lines[1:-1] if not re.match(r"  (graph|node|edge) \[.*\];", line)]
    nodes = {m[1]: m[2] for m in map(NODE.fullmatch, body) if m}
    edges = {(m[1], m[2]) for m in map(EDGE.fullmatch, body) if m}
    assert len(nodes) + len(edges) == len(body), "a line is neither a node nor an edge"
    assert {end for edge in edges for end in edge} <= nodes.keys()
    (conv,) = (name for name, text in nodes.items() if 'tooltip="conv.weight:0"' in text)
    assert ('"conv"', conv) in edges
    assert (conv, '"grouped"') in edges
    assert "2 × 4 → 2 units" in nodes[conv]
    assert "→" not in fxprune.dot(result.analysis)


def test_svg_is_drawn_by_graphviz_or_says_that_it_is_missing(result: fxprune.PruneResult) -> None:
    if shutil.which("dot") is None:
        with pytest.raises(fxprune.FxpruneError, match="needs Graphviz"):
            fxprune.svg(result)
    else:
        root = ElementTree.fromstring(fxprune.svg(result))
        assert root.tag.endswith("svg")
