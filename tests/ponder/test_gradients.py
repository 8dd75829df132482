"""Gradient rescaling: what a head reads is the same, and what it teaches the steps is scaled."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import ponder
from ponder import recipes
from ponder.objectives import DeepSupervision
from ponder.parts.gradients import equilibrium, rescaled_gradient
from ponder.recipes import Recipe
from tests.ponder.checks import refused
from tests.toys import WIDTH, labels_for


def test_values_are_the_same_bit_for_bit_and_gradients_are_scaled() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    y = rescaled_gradient(x, 0.3)
    assert torch.equal(x, y)
    weights = torch.randn(5, 3)
    (y * weights).sum().backward()
    torch.testing.assert_close(x.grad, 0.3 * weights)
    assert rescaled_gradient(x, 1.0) is x


def test_equilibrium_by_a_plain_loop() -> None:
    for num_steps in (1, 2, 7):
        heads_behind = [sum(1 for n in range(1, num_steps + 1) if n >= step) for step in range(1, num_steps + 1)]
        assert equilibrium(num_steps) == tuple(1 / heard for heard in heads_behind)


def test_what_equilibrium_leaves_of_the_pull_on_early_steps() -> None:
    """With heads that pull alike, the first of 12 steps hears 12 times the last; with the scales 3.1 times."""
    heard = []
    for scales in ((1.0,) * 12, equilibrium(12)):
        bias = [torch.zeros((), requires_grad=True) for _ in range(12)]
        state, loss = torch.zeros(()), torch.zeros(())
        for own, scale in zip(bias, scales, strict=True):
            state = state + own
            loss = loss + rescaled_gradient(state, scale)
        loss.backward()
        heard.append([float(own.grad) for own in bias])
    assert heard[0] == [float(n) for n in range(12, 0, -1)]
    assert heard[1] == pytest.approx([sum(1 / k for k in range(1, n + 1)) for n in range(12, 0, -1)])


def gradients(scales: tuple[float, ...] | None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    steps = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3)]
    head = ponder.PerStep((nn.Linear(WIDTH, 3) for _ in range(3)), scales)
    model = ponder.PonderWrapper(steps, head=head, objective=DeepSupervision("uniform"), task="classification")
    model.train()(torch.randn(6, WIDTH), labels=labels_for("classification", 6)).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_heads_learn_as_always_and_the_steps_hear_less_of_them() -> None:
    full, none, some = gradients(None), gradients((0.0, 0.0, 1.0)), gradients((0.5, 0.5, 1.0))
    for name, gradient in full.items():
        if name.startswith("head."):
            torch.testing.assert_close(some[name], gradient)
        else:  # the gradient is linear in the scales
            torch.testing.assert_close(some[name], (gradient + none[name]) / 2)
    assert any(not torch.allclose(full[name], none[name]) for name in full if name.startswith("steps."))


def test_a_recipe_can_ask_for_it() -> None:
    recipe = dataclasses.replace(recipes.get("pabee"), early_gradient="equilibrium").for_steps(6)
    head, _ = recipe.make_heads(WIDTH, 3, 6)
    assert head.gradient_scales == equilibrium(6)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    plain, _ = recipes.get("pabee").make_heads(WIDTH, 3, 6)
    assert plain.gradient_scales == (1.0,) * 6
    assert plain.state_dict().keys() == head.state_dict().keys()
    old = {name: value for name, value in recipes.get("pabee").to_dict().items() if name != "early_gradient"}
    assert Recipe.from_dict(old) == recipes.get("pabee")


@pytest.mark.parametrize("scales", [(1.0,), (1.0, -1.0), (1.0, float("nan"))])
def test_bad_scales_are_refused(scales) -> None:
    with refused("gradient_scales"):
        ponder.PerStep([nn.Linear(2, 2), nn.Linear(2, 2)], scales)


def test_recipes_that_cannot_are_refused() -> None:
    with refused("early_gradient", "half"):
        dataclasses.replace(recipes.get("pabee"), early_gradient="half")
    with refused("early_gradient", "equilibrium"):
        dataclasses.replace(recipes.get("vanilla"), early_gradient="equilibrium")
