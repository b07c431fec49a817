"""Pruned modules in other runtimes: what is written computes what the module computes."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.discrepancy import max_error
from fxprune.interop import without_guards
from fxprune.interop.plain import tensors_of
from tests.interop.models import CASES, Case

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
needs_onnx = pytest.mark.skipif(not ONNX, reason="the packages of fxprune[export] are absent")
FORMATS = [
    pytest.param("onnx", marks=needs_onnx),
    "pt2",
    "ts",
]
# Exporters deprecate things of torch, of copyreg and of each other.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@every_case
@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_computes_what_the_module_does(case: Case, ending: str, tmp_path: Path) -> None:
    result = case.pruned()
    module = result.module.train()
    before = copy.deepcopy(module.state_dict())
    report = fxprune.export(module, case.example(2), tmp_path / f"model.{ending}")
    assert report.ok, str(report)
    assert report.max_error <= 1e-5
    assert (tmp_path / f"model.{ending}").stat().st_size > 1000
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("ending", ["pt2", pytest.param("onnx", marks=needs_onnx)])
def test_the_batch_size_stays_free(ending: str, tmp_path: Path) -> None:
    (case, _), path = CASES, str(tmp_path / f"model.{ending}")
    module, five = case.pruned().module.eval(), case.example(5)
    fxprune.export(module, case.example(2), path)
    if ending == "pt2":
        found: Any = torch.export.load(path).module()(five)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        found = [torch.from_numpy(a) for a in session.run(None, {given.name: five.numpy()})]
    with torch.no_grad():
        assert max_error(tensors_of(found), tensors_of(module(five))) <= 1e-5


def test_a_file_that_differs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(module: Any, *args: Any, **kwargs: Any) -> Any:
        other = copy.deepcopy(module)
        with torch.no_grad():
            next(other.parameters()).mul_(1.01)
        return trace(other, *args, **kwargs)

    trace = torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", spoil)
    case = CASES[0]
    report = fxprune.export(case.pruned().module, case.example(2), tmp_path / "model.ts")
    assert not report.ok
    assert "DIFFERS" in str(report)


def test_refusals_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[0]
    module, example = case.pruned().module, case.example(2)
    with pytest.raises(fxprune.ExportError, match=r"use one of .*, or a file that ends in \.onnx"):
        fxprune.export(module, example, tmp_path / "model.bin")
    with pytest.raises(fxprune.ExportError, match="the graph takes inputs"):
        fxprune.export(module, {"y": example}, tmp_path / "model.ts")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(fxprune.ExportError, match=r"pip install 'fxprune\[export\]'"):
        fxprune.export(module, example, tmp_path / "model.onnx")


def through_numpy(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() + 1)


def test_what_torch_cannot_export_is_one_line(tmp_path: Path) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(through_numpy, (x,)))
    module = torch.fx.GraphModule(nn.Module(), graph)
    with pytest.raises(fxprune.ExportError, match=r"torch\.export failed with") as caught:
        fxprune.export(module, torch.ones(2), tmp_path / "model.pt2")
    assert "\n" not in str(caught.value)


def test_torchscript_takes_the_graph_without_its_checks() -> None:
    case = CASES[0]
    module, x = case.pruned().module.eval(), case.example(3)
    with pytest.raises(fxprune.TraceError):
        module(x[:, :2])
    plain = without_guards(module)
    assert next(plain.parameters()) is next(module.parameters())
    with pytest.warns(UserWarning, match="TorchScript type system"):
        scripted = torch.jit.script(plain)
    assert torch.equal(scripted(x), module(x))
    with pytest.raises(fxprune.TraceError):  # the module itself still checks
        module(x[:, :2])


@every_case
def test_compiled_without_a_graph_break(case: Case) -> None:
    module = case.pruned().module.eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (2, 5):
        inputs = case.example(batch)
        found, expected = tensors_of(compiled(inputs)), tensors_of(module(inputs))
        assert max_error(found, expected) <= 1e-5
    torch.compiler.reset()


def test_quantised_by_torchao() -> None:
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    case = CASES[0]
    module, x = case.pruned().module.eval(), case.example(8)
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(module, (x,)).module(), quantizer)
    prepared(x)
    quantised = move_exported_model_to_eval(convert_pt2e(prepared))
    calls = [str(node.target) for node in quantised.graph.nodes if node.op == "call_function"]
    assert sum("quantize_per_tensor" in call for call in calls) >= 3
    with torch.no_grad():
        error = max_error(quantised(x), module(x))
    assert 0 < error < 0.1  # eight bits, and not all of 32
