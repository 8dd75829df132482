"""Objectives of one step train an encoder that is cut short: the steps behind it do not run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import objectives
from ponder.objectives import Depth, Distillation, FinalStep, Objective, OneStep
from tests.ponder.checks import refused

WIDTH, CLASSES, STEPS = 6, 3, 4
INPUTS, LABELS = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])


def stack(objective: Objective) -> tuple[ponder.PonderWrapper, list[int]]:
    """A stack of steps with a head a step, and the numbers of the steps that have run."""
    torch.manual_seed(0)
    steps = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(STEPS)]
    heads = ponder.PerStep(nn.Linear(WIDTH, CLASSES) for _ in range(STEPS))
    ran: list[int] = []
    for number, step in enumerate(steps, start=1):
        step.register_forward_hook(lambda *_, number=number: ran.append(number))
    model = ponder.PonderWrapper(steps, head=heads, task="classification", objective=objective)
    model.attach_teacher(lambda inputs, **context: inputs[:, :CLASSES])
    return model.train(), ran


@pytest.mark.parametrize("objective", [OneStep(2), Distillation(teacher="frozen", step=2)])
def test_steps_behind_the_one_that_is_trained_neither_run_nor_learn(objective: Objective) -> None:
    model, ran = stack(objective)
    out = model(INPUTS, labels=LABELS)
    assert ran == [1, 2]
    assert out.exit_step.tolist() == [2] * 5
    out.loss.backward()
    learns = {name for name, weight in model.named_parameters() if weight.grad is not None and bool(weight.grad.any())}
    assert {name for name in learns if name.startswith("steps")} == {
        name for name, _ in model.named_parameters() if name.startswith(("steps.fns.0", "steps.fns.1"))
    }
    model.eval()
    ran.clear()
    assert model.unroll(INPUTS).num_steps == STEPS  # a cut is what is trained, not what can be recorded
    assert ran == [1, 2, 3, 4]


@pytest.mark.parametrize("objective", [OneStep(2), Distillation(teacher="frozen", step=2)])
def test_the_loss_is_that_of_a_run_to_the_last_step(objective: Objective) -> None:
    model, ran = stack(objective)
    short = model(INPUTS, labels=LABELS)
    model.objective = objective + 0.0 * FinalStep()
    ran.clear()
    whole = model(INPUTS, labels=LABELS)
    assert ran == [1, 2, 3, 4]
    torch.testing.assert_close(short.loss, whole.loss)
    assert whole.exit_step.tolist() == [STEPS] * 5


@pytest.mark.parametrize(
    ("objective", "depth"),
    [
        (OneStep(3), 3),
        (OneStep(1) + Distillation(teacher="frozen", step=3), 3),
        (OneStep(1) + 0.5 * Distillation(teacher="frozen"), STEPS),
        (OneStep(1) + FinalStep(), STEPS),
        (objectives.Alternating(OneStep(1), OneStep(2)), STEPS),
    ],
)
def test_a_sum_runs_as_deep_as_its_deepest_term(objective: Objective, depth: int) -> None:
    assert objective.depth(STEPS) == Depth(0, depth)


@pytest.mark.parametrize("make", [OneStep, lambda step: Distillation(teacher="frozen", step=step)])
def test_a_step_that_the_encoder_does_not_have_is_refused(make: Any) -> None:
    model, ran = stack(make(STEPS + 1))
    with refused("step", "Choose one that the encoder has"):
        model(INPUTS, labels=LABELS)
    assert not ran
