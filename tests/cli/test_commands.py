"""The command line: what it prints, writes and returns, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fxprune
from fxprune.cli import main
from fxprune.cli.inputs import read_inputs
from tests.interop.models import Attention, Residual

RESIDUAL = ("tests.interop.models:Residual", "--input", "2x3x8x8")
TOKENS = ("tests.interop.models:Attention", "--input", "tokens=2x6:int64:32")
ROOT = Path(__file__).parents[2]


class Run:
    """Runs the command line; keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str | Path) -> int:
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        self.out, self.err = self._capsys.readouterr()
        return code

    def data(self, *arguments: str | Path) -> Any:
        self(*arguments, "--json")
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def saved(run: Run, tmp_path: Path) -> Path:
    assert run("prune", *RESIDUAL, "--sparsity", "0.5", "-o", tmp_path / "half") == 0, run.err
    return tmp_path / "half"


def test_prune_saves_what_the_library_makes(run: Run, saved: Path) -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    x = torch.randn(2, 3, 8, 8)
    expected = fxprune.prune(model, x, sparsity=0.5)
    assert torch.equal(fxprune.load(saved)(x), expected.module(x))
    assert run("report", saved) == 0
    assert run.out.strip() == str(expected.report).strip()
    assert run.data("report", saved) == json.loads(expected.report.to_json())
    assert run("report", saved, "--markdown") == 0
    assert run.out.strip() == expected.report.to_markdown().strip()


def test_prune_to_a_budget_and_check(run: Run) -> None:
    options = ("--budget", "macs=0.5,params=2000", "--scope", "global", "--verify")
    data = run.data("prune", *RESIDUAL, *options, "--normalise", "mean")
    assert data["proof"]["ok"]
    assert data["report"]["macs_after"] <= 0.5 * data["report"]["macs_before"]
    assert data["report"]["parameters_after"] <= 2000 < data["report"]["parameters_before"]


def test_a_budget_of_latency_is_measured(run: Run, tmp_path: Path) -> None:
    options = ("--budget", "latency=0.99", "--latency-file", tmp_path / "times.json")
    latency = run.data("prune", *RESIDUAL, *options)["report"]["latency"]
    assert set(latency) == {"dense", "predicted", "measured"}
    assert min(latency.values()) > 0
    assert (tmp_path / "times.json").stat().st_size > 100


def test_limits_reach_the_plan(run: Run) -> None:
    data = run.data("prune", *RESIDUAL, "--sparsity", "0.9", "--ignore", "stem", "--min-keep", "5")
    kept = {row["name"]: row["units_after"] for row in data["report"]["groups"]}
    assert kept == {"stem.weight:0": 16, "inner.weight:0": 5}


def test_criteria_read_data_from_a_file(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 3, 8, 8)).astype("float32")
    np.savez(tmp_path / "data.npz", x=images, target=rng.integers(0, 5, 6))
    data = ("--data", tmp_path / "data.npz", "--batch-size", "2")
    options = ("--sparsity", "0.5", "--criterion", "taylor", "-o", tmp_path / "out")
    assert run("prune", *RESIDUAL, *options, *data) == 0, run.err
    torch.manual_seed(0)
    arrays = np.load(tmp_path / "data.npz")
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["target"])
    pairs = [(x[i : i + 2], y[i : i + 2]) for i in (0, 2, 4)]
    model = Residual().eval()
    expected = fxprune.prune(model, x[:2], 0.5, "taylor", data=pairs)
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == json.loads(
        expected.plan.to_json()
    )


@pytest.mark.parametrize("methods", [["least_squares"], ["bias"], ["obs", "bias"]], ids=str)
def test_what_stays_makes_up_for_what_goes(run: Run, tmp_path: Path, methods: list[str]) -> None:
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(8, 3, 8, 8)).astype("float32"), "target": rng.integers(0, 5, 8)}
    np.savez(tmp_path / "data.npz", **arrays)
    asked = [text for method in methods for text in ("--compensate", method)]
    data = ("--data", tmp_path / "data.npz", "--batch-size", "4", "--verify")
    options = ("--sparsity", "0.5", *asked, *data, "-o", tmp_path / "out")
    assert run("prune", *RESIDUAL, *options) == 0, run.err
    x, y = (torch.from_numpy(arrays[name]) for name in ("x", "target"))
    torch.manual_seed(0)
    model, pairs = Residual().eval(), [({"x": x[i : i + 4]}, y[i : i + 4]) for i in (0, 4)]
    expected = fxprune.prune(model, x[:2], 0.5, data=pairs, compensate=methods).module
    found = fxprune.load(tmp_path / "out")
    assert torch.equal(found(x), expected(x))
    assert not torch.equal(found(x), fxprune.prune(model, x[:2], 0.5).module(x))
    assert run("verify", tmp_path / "out", "--original", RESIDUAL[0], "--dtype", "float64") == 0
    assert run("report", tmp_path / "out") == 0
    assert run("diff", tmp_path / "out", tmp_path / "out") == 0


def test_groups_and_explain(run: Run, saved: Path, tmp_path: Path) -> None:
    data = run.data("groups", *TOKENS, "--dot", tmp_path / "groups.dot")
    analysis = fxprune.analyze(fxprune.trace(Attention().eval(), torch.zeros(2, 6).long()))
    assert [group["name"] for group in data["groups"]] == [g.name for g in analysis.groups]
    assert len(data["frozen"]) == len(analysis.frozen)
    assert (tmp_path / "groups.dot").read_text() == fxprune.dot(analysis)
    assert run("explain", *TOKENS, "qkv") == 0
    assert run.out.strip() == analysis.explain("qkv")
    assert run("groups", saved) == 0  # of the pruned network
    assert "stem.weight:0         8" in run.out
    assert run.data("explain", saved, "stem")["explanation"][0].startswith("stem: weight dim 0")


def test_verify_finds_the_original_and_a_wrong_weight(run: Run, saved: Path) -> None:
    check = ("verify", saved, "--original", RESIDUAL[0])
    assert run(*check) == 0, run.err
    assert "masked equivalence holds" in run.out
    assert run.data(*check, "--input", "5x3x8x8", "--dtype", "float64")["max_error"] < 1e-12
    assert run(*check, "--seed", "1") == 1  # other weights
    assert "FAILS" in run.out


def test_weights_come_from_a_file(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = Residual().eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    weights = ("--weights", tmp_path / "weights.safetensors")
    assert run("prune", *RESIDUAL, *weights, "--sparsity", "0.5", "-o", tmp_path / "out") == 0
    x = torch.randn(2, 3, 8, 8)
    expected = fxprune.prune(model, x, sparsity=0.5).module
    assert torch.equal(fxprune.load(tmp_path / "out")(x), expected(x))
    assert run("prune", *TOKENS, *weights, "--sparsity", "0.5") == 3
    assert "does not fit tests.interop.models:Attention" in run.err


def test_report_of_a_model_is_its_cost(run: Run, saved: Path, tmp_path: Path) -> None:
    dense = fxprune.cost(fxprune.analyze(fxprune.trace(Residual().eval(), torch.ones(2, 3, 8, 8))))
    assert run("report", *RESIDUAL) == 0
    assert run.out.strip() == str(dense)
    assert run.data("report", *RESIDUAL)["macs"] == dense.macs
    assert run("report", saved, "--plot", tmp_path / "widths.png") == 0
    assert (tmp_path / "widths.png").read_bytes().startswith(b"\x89PNG")
    for name in ("widths.nope", "widths"):
        assert run("report", saved, "--plot", tmp_path / name) == 3
        assert "says no format" in run.err


def test_export_of_a_saved_model(run: Run, saved: Path, tmp_path: Path) -> None:
    data = run.data("export", saved, "-o", tmp_path / "model.ts")
    assert data["ok"]
    assert data["format"] == "torchscript"
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(torch.jit.load(tmp_path / "model.ts")(x), fxprune.load(saved)(x))


def test_diff(run: Run, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "quarter"
    assert run("prune", *RESIDUAL, "--sparsity", "0.25", "-o", other) == 0
    assert run("diff", saved, saved) == 0
    assert "0 groups keep different units; the weights are the same bits." in run.out
    assert run("diff", saved, other) == 1
    data = run.data("diff", saved, other)
    assert [(g["name"], g["first"], g["second"], g["both"]) for g in data["groups"]] == [
        ("stem.weight:0", 8, 12, 8),
        ("inner.weight:0", 12, 18, 12),
    ]
    assert run("prune", *TOKENS, "--sparsity", "0.5", "-o", tmp_path / "tokens") == 0
    assert run("diff", saved, tmp_path / "tokens") == 3
    assert "different originals" in run.err


REFUSED = [
    (("frobnicate",), 2, "invalid choice"),
    (("prune", *RESIDUAL), 2, "say how far"),
    (("prune", RESIDUAL[0], "--sparsity", "0.5"), 2, "say what the model takes"),
    (("prune", *RESIDUAL, "--sparsity", "half"), 2, "invalid float"),
    (("prune", *RESIDUAL, "--sparsity", "0.5", "--compensate", "bias"), 2, "give it --data"),
    (("prune", *RESIDUAL, "--sparsity", "0.5", "--compensate", "no"), 2, "invalid choice"),
    (("prune", *RESIDUAL, "--budget", "macs"), 2, "--budget takes name=number"),
    (("prune", *RESIDUAL, "--budget", "mac=1"), 2, "there is no budget 'mac'"),
    (("groups", "nowhere"), 2, "neither a directory"),
    (("groups", RESIDUAL[0], "--input", "2x6:int64"), 2, "integers need a bound"),
    (("groups", RESIDUAL[0], "--input", "2x6:int65"), 2, "no dtype 'int65'"),
    (("groups", RESIDUAL[0], "--input", "what"), 2, "neither a shape nor"),
    (("groups", RESIDUAL[0], "--input", "1x1", "--input", "a=1x1"), 2, "all inputs by name"),
    (("groups", *RESIDUAL, "--kwargs", "[1]"), 2, "must be a JSON object"),
    (("groups", *RESIDUAL, "--kwargs", '{"a": 1}'), 3, "unexpected keyword argument 'a'"),
    (("groups", "tests.nowhere:f", "--input", "1x1"), 3, "cannot import tests.nowhere:f"),
    (("groups", "tests.interop.models:CASES", "--input", "1x1"), 3, "'tuple' object is not"),
    (("groups", "builtins:dict", "--input", "1x1"), 3, "makes a dict, not a torch.nn.Module"),
    (("groups", RESIDUAL[0], "--input", "gone.npz"), 3, "cannot read gone.npz"),
    (("groups", RESIDUAL[0], "--input", "2x4x8x8"), 3, "input"),
    (("explain", *RESIDUAL, "middle"), 3, "no parameter of the graph lies at 'middle'"),
    (("report", "."), 3, "Cannot read the graph"),
    (("prune", *RESIDUAL, "--budget", "macs=1"), 3, "smallest reachable"),
    (("prune", *RESIDUAL, "--sparsity", "0.5", "--criterion", "no"), 3, "no criterion 'no'"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "text"), REFUSED, ids=[str(n) for n in range(len(REFUSED))]
)
def test_errors_are_one_line(run: Run, arguments: tuple[str, ...], code: int, text: str) -> None:
    assert run(*arguments) == code
    assert text in run.err
    assert run.err.count("\n") == 1, run.err
    assert run.err.startswith("fxprune")
    assert run.out == ""


def test_debug_shows_where(run: Run) -> None:
    assert run("explain", *RESIDUAL, "middle", "--debug") == 3
    assert "Traceback" in run.err


def test_what_was_not_expected_has_a_code_of_its_own(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError("of all things\nin two lines")

    monkeypatch.setattr("fxprune.cli.models.trace", broken)
    assert run("groups", *RESIDUAL) == 4
    assert run.err == (
        "fxprune groups: error: ZeroDivisionError: of all things in two lines "
        "(--debug shows where)\n"
    )


def test_warnings_are_one_line(run: Run) -> None:
    assert run("prune", *RESIDUAL, "--sparsity", "0.01") == 0
    assert run.err.startswith("fxprune: warning: NOTHING IS PRUNED")
    assert run.err.count("\n") == 1


def test_progress_is_shown_to_a_person(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("groups", *RESIDUAL) == 0
    assert run.err == ""
    monkeypatch.setattr("fxprune.cli.progress.sys.stderr.isatty", lambda: True, raising=False)
    assert run("groups", *RESIDUAL) == 0
    assert [stage in run.err for stage in ("building", "capturing", "analysing")] == [True] * 3
    assert run("groups", *RESIDUAL, "--quiet") == 0
    assert run.err == ""


def test_inputs_from_files(tmp_path: Path) -> None:
    save_file({"ids": torch.arange(4), "mask": torch.ones(4)}, tmp_path / "in.safetensors")
    found = read_inputs([str(tmp_path / "in.safetensors"), "x=2x3", "flag=2:bool"])
    assert {k: (tuple(v.shape), v.dtype) for k, v in found.items()} == {
        "ids": ((4,), torch.int64),
        "mask": ((4,), torch.float32),
        "x": ((2, 3), torch.float32),
        "flag": ((2,), torch.bool),
    }
    ids, half = read_inputs(["100:int32:5", "1x2:bfloat16"])
    assert (ids.dtype, half.dtype) == (torch.int32, torch.bfloat16)
    assert sorted(set(ids.tolist())) == [0, 1, 2, 3, 4]


def test_a_reader_may_stop_early(saved: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fxprune", "report", str(saved)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fxprune", "explain", str(tmp_path), "stem"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("fxprune explain: error: Cannot read the graph")
