"""What must hold between scores and parameters, and which changes of a network change no score."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fxprune
from fxprune import Statistics
from fxprune.criteria import SynapticFlow
from tests.statistics.networks import ACTIVATIONS, CLASSES, Problem, problem, randomized

few = settings(max_examples=8, deadline=None)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def stack(widths: list[int], activation: str) -> nn.Module:
    """Convolutions, each with a batch normalisation and an activation, then a classifier."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise([2, *widths]):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
        layers += [ACTIVATIONS[activation]()]
    head = nn.Linear(widths[-1] * 9, CLASSES)
    return randomized(nn.Sequential(*layers, nn.Flatten(), head))


@st.composite
def stacks(draw: st.DrawFn, activation: str) -> Problem:
    widths = draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    inputs = torch.randn(draw(st.integers(1, 3)), 2, 3, 3, dtype=torch.float64)
    return problem(stack(widths, activation), inputs, torch.randint(CLASSES, (len(inputs),)))


def norm_sides(case: Problem) -> dict[str, tuple[Tensor, Tensor]]:
    """Per group, γ∂γ + β∂β and <z, ∂z> of its batch normalisation: [samples, units] each."""
    kept: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, z, name=name: kept.update({name: z}))
        for name, module in case.model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for n in range(len(case.inputs)):
        out = case.model(case.inputs[n : n + 1])
        loss = nn.functional.cross_entropy(out, case.targets[n : n + 1])
        for name, z in list(kept.items()):
            norm = case.model.get_submodule(name)
            slopes = torch.autograd.grad(loss, (norm.weight, norm.bias, z), retain_graph=True)
            parameters = norm.weight * slopes[0] + norm.bias * slopes[1]
            rows.setdefault(name, []).append(
                (parameters.detach(), (z * slopes[2]).sum((0, 2, 3)).detach())
            )
    for hook in hooks:
        hook.remove()
    found = {}
    for name, pairs in rows.items():
        group = f"{int(name) - 1}.weight:0"  # of the convolution before
        found[group] = torch.stack([p for p, _ in pairs]), torch.stack([z for _, z in pairs])
    return found


@few
@given(st.sampled_from(["relu", "tanh", "gelu"]).flatmap(stacks))
def test_a_norms_parameters_say_what_its_output_does(case: Problem) -> None:
    for parameters, output in norm_sides(case).values():
        torch.testing.assert_close(parameters, output, **EXACT)


@few
@given(stacks("relu"))
def test_that_is_the_mask_gradient_where_what_follows_is_homogeneous(case: Problem) -> None:
    statistics, sides = Statistics(case.analysis, case.data), norm_sides(case)
    assert len(sides) == len(case.analysis.groups)
    for group in case.analysis.groups:
        torch.testing.assert_close(statistics.mask_grads(group), sides[group.name][0], **EXACT)


def test_it_is_another_number_where_it_is_not() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    case = problem(stack([5, 4], "tanh"), inputs, torch.randint(CLASSES, (4,)))
    statistics, sides = Statistics(case.analysis, case.data), norm_sides(case)
    for group in case.analysis.groups:
        masks = statistics.mask_grads(group)
        assert float((masks - sides[group.name][0]).norm() / masks.norm()) > 0.1


UNCHANGED = ("taylor", "skeletonization", "molchanov2017", "fisher", "mutual_information", "grasp")


def scores_of(case: Problem, model: nn.Module) -> dict[str, list[Tensor]]:
    """What must not change, in the order of the groups."""
    other = problem(model, case.inputs, case.targets)
    data = Statistics(other.analysis, other.data)
    found = {
        name: list(fxprune.score(other.analysis, name, data).values()) for name in UNCHANGED[:-1]
    }
    flow = SynapticFlow(other.analysis)
    total = flow.total()
    found["flows"] = [s / total for s in flow.scores(other.analysis.groups).values()]
    found["masks"] = [data.mask_grads(group) for group in other.analysis.groups]
    return found


def assert_unchanged(case: Problem, changed: nn.Module) -> None:
    before, after = scores_of(case, case.model), scores_of(case, changed)
    for name, rows in before.items():
        assert rows
        for row, new in zip(rows, after[name], strict=True):
            torch.testing.assert_close(new, row, **EXACT)


@few
@given(stacks("relu"), st.floats(0.2, 5))
def test_moving_scale_from_a_unit_to_its_readers_changes_no_score(case: Problem, by: float) -> None:
    magnitude = fxprune.score(case.analysis, "l2")
    layers = [m for m in case.model if isinstance(m, nn.BatchNorm2d | nn.Conv2d | nn.Linear)]
    moved = torch.nn.Sequential(*case.model)
    state = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    before = scores_of(case, case.model)
    norms = [(i, m) for i, m in enumerate(layers) if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for place, norm in norms:
            norm.weight[0] *= by
            norm.bias[0] *= by
            reader = layers[place + 1]
            columns = 9 if isinstance(reader, nn.Linear) else 1
            reader.weight[:, :columns] /= by
    after = scores_of(case, moved)
    other = fxprune.score(case.analysis, "l2")
    moved.load_state_dict(state)
    for name, rows in before.items():
        for row, new in zip(rows, after[name], strict=True):
            torch.testing.assert_close(new, row, **EXACT)
    if abs(by - 1) > 0.1:
        assert any(not s.allclose(other[name], rtol=1e-3) for name, s in magnitude.items())


@few
@given(stacks("relu"))
def test_folding_norms_into_their_convolutions_changes_no_score(case: Problem) -> None:
    layers: list[nn.Module] = []
    for layer in case.model:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    assert_unchanged(case, nn.Sequential(*layers).eval())


@pytest.mark.parametrize("name", ["taylor", "fisher", "mutual_information", "snip_weight"])
def test_a_dead_unit_scores_zero(name: str) -> None:
    torch.manual_seed(0)
    model = stack([5, 4], "relu")
    with torch.no_grad():
        model[1].weight[2], model[1].bias[2] = 0, -1
    case = problem(
        model, torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.randint(CLASSES, (4,))
    )
    scores = fxprune.score(case.analysis, name, case.data)["0.weight:0"]
    assert float(scores[2]) == 0
    assert float(scores.sum()) > 0
