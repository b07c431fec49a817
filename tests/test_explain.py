"""`print(analysis)` and `analysis.explain`: what is coupled, where, and why the rest is frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import Analysis, AnalysisError


class Net(nn.Module):
    """A grouped convolution inside a residual block, whose stream is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm1d(8)
        self.grouped = nn.Conv1d(8, 12, 1, groups=2, bias=False)
        self.back, self.skip = nn.Conv1d(12, 6, 1), nn.Conv1d(8, 6, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = self.skip(x) + self.back(torch.relu(self.grouped(x))) * self.scale
        return self.head(self.norm(x.mean(2)))


def analysed(model: nn.Module, *inputs: Tensor) -> Analysis:
    return fxprune.analyze(fxprune.trace(model.eval(), inputs))


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analysed(Net(), torch.randn(2, 3, 6))


def test_the_table(analysis: Analysis) -> None:
    lines = str(analysis).splitlines()
    assert lines[0].split() == ["group", "units", "members", "maskable", "inside"]
    rows = [line.split() for line in lines[2 : 2 + len(analysis.groups)]]
    assert [row[0] for row in rows] == [group.name for group in analysis.groups]
    assert "grouped.weight:0 2 x 6 2 yes stem.weight:0" in " ".join(" ".join(lines).split())
    total = f"{len(analysis.groups)} prunable groups, {len(analysis.frozen)} frozen:"
    assert total in lines
    reasons = lines[lines.index(total) + 1 :]
    assert sum(int(line.split(" x ")[0]) for line in reasons) == len(analysis.frozen)
    assert "  1 x model output" in reasons


def test_nothing_to_prune() -> None:
    text = str(analysed(nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3)))
    assert text.splitlines() == [
        "Nothing to prune.",
        "0 prunable groups, 2 frozen:",
        "  1 x model output",
        "  1 x model input",
    ]


def test_a_coupled_module(analysis: Analysis) -> None:
    """Who makes, scales and reads the units, and the nodes where they meet, in graph order."""
    stream = next(part for part in analysis.explain("back").split("\n\n") if "weight dim 0" in part)
    lines = stream.splitlines()
    assert lines[0] == "back: weight dim 0, bias dim 0: group 'skip.weight:0', 6 units"
    text = " ".join(stream.split())
    assert "made by skip, back" in text
    assert "scaled by norm" in text
    assert "read by head" in text
    nodes = lines[lines.index("  coupled at") + 1 :]
    order = [str(node) for node in analysis.traced.graph.nodes]
    places = [order.index(line.split(" = ")[0].strip()) for line in nodes]
    assert places == sorted(places)
    assert "    add = add(skip, mul)" in nodes
    assert "    norm = LayerNorm(mean)" in nodes


def test_why_not_maskable(analysis: Analysis) -> None:
    text = analysis.explain("head")
    assert "not maskable: aten::native_layer_norm at norm sees the removed units" in text


def test_contexts_and_nesting(analysis: Analysis) -> None:
    (part,) = [p for p in analysis.explain("grouped").split("\n\n") if "'grouped.weight:0'" in p]
    assert "2 x 6 units" in part
    assert "each of the 2 units of" in part
    assert "  inside " in part


def test_frozen_dimensions(analysis: Analysis) -> None:
    text = analysis.explain("stem.weight")
    assert "stem.weight dim 1: frozen, 3 indices\n  because: model input" in text
    assert "dim 2: frozen, 3 indices\n  because: kernel taps (aten::convolution)" in text
    text = analysis.explain("head")
    assert "head: weight dim 0, bias dim 0: frozen, 5 indices\n  because: model output" in text


def test_frozen_by_another_op() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).sort(-1).values)

    text = analysed(Sorted(), torch.randn(2, 3)).explain("a")
    (part,) = [p for p in text.split("\n\n") if "weight dim 0" in p]
    assert "sort" in part


def test_unknown_paths_name_what_is_near(analysis: Analysis) -> None:
    with pytest.raises(AnalysisError, match=r"no parameter of the graph lies at 'steam'.*'stem'"):
        analysis.explain("steam")
    with pytest.raises(AnalysisError, match=r"lies at 'st'"):
        analysis.explain("st")
    with pytest.raises(AnalysisError, match="all dimensions at 'scale' have size 1"):
        analysis.explain("scale")


def test_long_streams_are_cut_around_the_module() -> None:
    """40 residual layers: what stands around the module is shown, the rest is counted."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(40))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.layers:
                x = x + torch.relu(layer(x))
            return self.last(x)

    text = analysed(Deep(), torch.randn(2, 3)).explain("layers.20")
    assert len(text.splitlines()) < 25
    assert "layers.19" in text
    assert "layers.21" in text
    assert "layers.1," not in text
    (made,) = [line for line in text.splitlines() if line.startswith("  made by")]
    before, after = (int(part.split()[0]) for part in (made.split("(")[1], made.split("(")[2]))
    assert before + after + made.count("layers.") == 41
    assert " nodes before)" in text
    assert " nodes after)" in text
