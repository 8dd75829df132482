"""Shared, stacked and scheduled steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ponder
from ponder import Steps
from tests.ponder.checks import refused


def add(n: int):
    return lambda hidden: [*hidden, n]


@pytest.mark.parametrize(
    ("steps", "num_steps", "order"),
    [
        (add(1), 3, [1, 1, 1]),
        ([add(1), add(2), add(3)], None, [1, 2, 3]),
        ((add(1), add(2)), 2, [1, 2]),
        (Steps([add(1), add(2)], schedule=[0, 0, 1, 0]), None, [1, 1, 2, 1]),
        (Steps([add(1)]), 1, [1]),
    ],
)
def test_which_callable_runs_at_which_step(steps, num_steps, order) -> None:
    made = Steps.of(steps, num_steps)
    hidden: list[int] = []
    for step in range(1, made.num_steps + 1):
        hidden = made(step, hidden)
    assert hidden == order


def test_one_object_given_twice_is_one_callable_with_shared_weights() -> None:
    layer = nn.Linear(2, 2)
    steps = Steps([layer] * 4)
    assert steps.num_steps == 4
    assert steps.schedule == (0, 0, 0, 0)
    assert len(list(steps.parameters())) == 2
    assert len(steps.state_dict()) == 2
    mixed = Steps([layer, nn.Linear(2, 2), layer], schedule=[2, 1, 0])
    assert mixed.schedule == (0, 1, 0)


def test_modules_and_module_lists_are_registered() -> None:
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    assert len(list(Steps.of(layers, None).parameters())) == 6
    one = Steps.of(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), 3)
    assert one.schedule == (0, 0, 0)
    assert Steps.of(one, None) is one


def test_context_reaches_the_callable() -> None:
    steps = Steps([lambda hidden, *, scale, **rest: hidden * scale])
    assert steps(1, torch.tensor([2.0]), scale=3.0, other=None).item() == 6.0


@pytest.mark.parametrize("schedule", [[0, 0], [0, 2], [0, 1, 2], [], [-1, 0]])
def test_schedules_name_each_callable(schedule: list[int]) -> None:
    with refused("schedule", "each of the 2 callables", str(schedule)):
        Steps([torch.sin, torch.cos], schedule=schedule)


def test_what_is_no_step_is_refused() -> None:
    with refused("schedule"):
        Steps([])
    with refused("fns", "callables", "int", type_error=True):
        Steps([torch.sin, 3])
    with refused("fns", "str", type_error=True):
        Steps.of("transformer", None)
    with refused("num_steps", "one shared step", "num_steps=12"):
        Steps.of(torch.sin, None)
    with refused("num_steps", "2, the number of steps given", "3"):
        Steps.of([torch.sin, torch.cos], 3)


@pytest.mark.parametrize("num_steps", [0, -3, 1.5, True, "12"])
def test_numbers_of_steps_count(num_steps: object) -> None:
    with refused("num_steps", "whole number ≥ 1", repr(num_steps)):
        Steps.of(torch.sin, num_steps)


def test_names_of_the_context_are_the_steps_own() -> None:
    class Named(nn.Module):
        def forward(self, hidden_state, at, step, hidden):
            return hidden_state + at + step + hidden

    ones = {name: torch.ones(2, 1) for name in ("at", "step", "hidden")}
    model = ponder.PonderWrapper(Named(), 2, head=nn.Identity()).eval()
    assert torch.equal(model(torch.zeros(2, 3), **ones).outputs, torch.full((2, 3), 6.0))


def test_a_context_called_index_is_refused_where_steps_are_told_theirs() -> None:
    # Trap: the caller's was exchanged for the number of the step, without a word.
    def step(hidden, index):
        return hidden + index.unsqueeze(-1)

    model = ponder.PonderWrapper(Steps([step], [0, 0, 0], index=True), head=nn.Identity()).eval()
    with refused("index", "Tensor"):
        model(torch.zeros(2, 3), index=torch.ones(2))
