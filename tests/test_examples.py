"""The examples run, and show what they are there to show."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

import fxprune
from tests import torchvision_shim  # noqa: F401  (before torchvision is imported)

# isort: split
from examples import (
    custom_criterion,
    custom_rule,
    language_model,
    macs_budget,
    optimizer,
    rounds,
    save_and_load,
    vision_transformer,
)


def test_save_and_load(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_and_load.main(str(tmp_path / "network"))
    printed = capfd.readouterr().out
    here, elsewhere = (re.search(rf"{w}: *(\S+)", printed) for w in ("here", "elsewhere"))
    assert here is not None
    assert elsewhere is not None
    assert here[1] == elsewhere[1]
    assert "refused: plan.json is not the file that was saved" in printed


def test_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer.main()
    losses = re.findall(r"(?:pruned|went on): +loss (\S+)", capsys.readouterr().out)
    pruned, went_on = map(float, losses)
    assert went_on < 0.5 * pruned


def test_macs_budget(capsys: pytest.CaptureFixture[str]) -> None:
    macs_budget.main()
    printed = capsys.readouterr().out
    share = re.search(r"MACs per image: .* \((\S+)%\)", printed)
    assert share is not None
    assert 40 < float(share[1]) <= 50
    assert "equivalence holds" in printed


def test_vision_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    vision_transformer.main()
    printed = capsys.readouterr().out
    assert "heads: 6 -> 4" in printed
    assert re.search(r"out_features=576.* -> .*out_features=384", printed)  # 3 x 4 heads x 32


def test_language_model(capsys: pytest.CaptureFixture[str]) -> None:
    language_model.main()
    printed = capsys.readouterr().out
    assert "q_proj: 64 -> 32" in printed  # 2 of 4 key and value heads, each with two of queries
    assert "k_proj: 32 -> 16" in printed
    assert "longer: (3, 20, 256)" in printed


def test_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds.main(str(tmp_path))
    first = capsys.readouterr().out
    accuracy = {key: float(value) for key, value in re.findall(r"(\w+): accuracy (\S+)", first)}
    assert accuracy["result"] > accuracy["dense"] - 0.03
    assert first.count("fine-tuned") == rounds.STEPS
    rounds.main(str(tmp_path))  # all rounds are done
    again = capsys.readouterr().out
    assert "fine-tuned" not in again
    assert again[again.index("result") :] == first[first.index("result") :]


def test_custom_criterion(capsys: pytest.CaptureFixture[str]) -> None:
    custom_criterion.main()
    printed = capsys.readouterr().out
    assert "magnitude keeps units [4, 5, 6, 7]" in printed
    assert "distinct keeps units [0, 1, 2, 3]" in printed


def test_custom_rule(capsys: pytest.CaptureFixture[str]) -> None:
    custom_rule.main()
    printed = capsys.readouterr().out
    assert re.search(r"without a rule: \[\]", printed)
    assert "masked equivalence holds" in printed
    assert "'out.weight': (4, 16)" in printed


def test_rules_of_ones_own(tmp_path: Path) -> None:
    model, x = custom_rule.Network(), torch.randn(16, 8)
    rules = {"examples::swiglu": custom_rule.swiglu_rule}
    result = fxprune.prune(model, x, 0.5, rules=rules)
    assert result.module.out.in_features == 16
    again = fxprune.analyze(copy.deepcopy(result.module))  # they stay with the graph
    assert [group.size for group in again.groups] == [16]
    with pytest.warns(match="needs the model's class"):
        fxprune.save(result, tmp_path)
    loaded = fxprune.load(tmp_path, custom_rule.Network, rules=rules)
    torch.testing.assert_close(loaded(x), result.module(x), rtol=0, atol=0)
    traced = fxprune.trace(model, x)
    assert not fxprune.analyze(traced).groups
    for name in ("aten::relu", "relu", "torchvision::roi_align"):
        with pytest.raises(fxprune.AnalysisError, match=f"rules= names '{name}'"):
            fxprune.analyze(traced, rules={name: custom_rule.swiglu_rule})
