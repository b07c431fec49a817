"""On a GPU: the same groups, scores and networks as on the CPU. Skipped where there is none."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.criteria import CRITERIA
from tests.criteria.networks import (
    IMAGES,
    Attentive,
    Concatenated,
    Gated,
    Recurrent,
    Residual,
    randomized,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TOKENS = torch.randint(11, (2, 4))
NETWORKS: dict[str, tuple[nn.Module, Tensor]] = {
    "residual": (Residual(6, 5, nn.ReLU), IMAGES),
    "concatenated": (Concatenated(5, 4, nn.GELU), IMAGES),
    "gated": (Gated(), IMAGES),
    "attentive": (Attentive(), TOKENS),
    "recurrent": (Recurrent(), TOKENS),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network of this name in float64, and its input."""
    model, x = NETWORKS[name]
    model = randomized(copy.deepcopy(model).double(), 0)
    return model, x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("name", NETWORKS)
def test_a_prune_stays_on_the_device_and_is_exact(name: str) -> None:
    model, x = network(name)
    expected = fxprune.prune(model, x, 0.5)
    result = fxprune.prune(copy.deepcopy(model).cuda(), x.cuda(), 0.5)
    assert result.plan == expected.plan
    assert {t.device.type for t in result.module.state_dict().values()} == {"cuda"}
    larger = torch.cat([x, x, x])
    report = fxprune.verify(result.analysis.traced, result.plan, result.module, larger.cuda())
    assert report.ok, report
    torch.testing.assert_close(
        result.module(larger.cuda()).cpu(), expected.module(larger), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", ["residual", "attentive"])
def test_scores_agree_with_the_cpu(name: str, criterion: str) -> None:
    scores = []
    for device in ("cpu", "cuda"):
        model, x = network(name)
        model, x = model.to(device), x.to(device)
        batches = [(torch.cat([x] * 4), torch.arange(4 * len(x), device=device) % 3)]
        analysis = fxprune.analyze(fxprune.trace(model, x))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", fxprune.LeftWholeWarning)
                scores.append(fxprune.score(analysis, criterion, data=batches, labels="empirical"))
        except fxprune.PlanError as error:
            scores.append(str(error))
    cpu, cuda = scores
    if isinstance(cpu, str):
        assert cuda == cpu
        return
    assert cpu.keys() == cuda.keys()
    for group, expected in cpu.items():
        torch.testing.assert_close(cuda[group].cpu(), expected, rtol=1e-6, atol=1e-9)
