"""PABEE's patience: its counting, step by step, and its refusals."""

from __future__ import annotations

import pytest
import torch

import ponder
from ponder.policies import ModelSpec, Patience
from tests.ponder.checks import refused


def classes(*answers: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor([answers]), 3).float()


def exit_of(outputs: torch.Tensor, policy: Patience, task: str | None = "classification") -> int:
    return int(ponder.Trajectory(outputs, None, torch.arange(1), task=task).replay(policy).exit_step)


@pytest.mark.parametrize(
    ("answers", "patience", "step"),
    [
        ((0, 0, 0, 0, 0), 1, 2),  # the first step has nothing to agree with
        ((0, 0, 0, 0, 0), 2, 3),
        ((0, 0, 0, 0, 0), 3, 4),
        ((0, 0, 0, 0, 0), 4, 5),
        ((0, 1, 1, 1, 1), 2, 4),
        ((0, 0, 1, 1, 1), 2, 5),  # a change starts the count again
        ((0, 0, 1, 1, 0), 2, 5),  # never: the end
        ((0, 1, 0, 1, 0), 1, 5),
        ((0, 1, 2, 2, 0), 1, 4),
        ((0, 0, 1, 1, 1, 1), 2, 5),
    ],
)
def test_agreements_in_a_row(answers: tuple[int, ...], patience: int, step: int) -> None:
    assert exit_of(classes(*answers), Patience(patience)) == step
    assert exit_of(classes(*answers), Patience(patience), task=None) == step


@pytest.mark.parametrize(
    ("numbers", "patience", "step"),
    [
        ((1.0, 1.05, 1.1, 1.15), 1, 2),  # each is compared with the one before, not with the first
        ((1.0, 1.05, 1.1, 1.15), 3, 4),
        ((1.0, 2.0, 2.05, 3.0), 1, 3),
        ((1.0, 2.0, 1.0, 2.0), 1, 4),
        ((1.0, 0.95, 2.0, 1.96), 1, 2),
    ],
)
def test_numbers_agree_within_the_tolerance(numbers: tuple[float, ...], patience: int, step: int) -> None:
    outputs = torch.tensor([numbers])
    for shaped in (outputs, outputs[..., None], torch.cat([outputs[..., None]] * 2, dim=-1)):
        assert exit_of(shaped, Patience(patience, tolerance=0.1), task="regression") == step


def test_every_number_of_an_example_has_to_agree() -> None:
    outputs = torch.tensor([[[1.0, 1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]])
    assert exit_of(outputs, Patience(1, tolerance=0.1), task="regression") == 3


def test_the_tolerance_itself_is_no_agreement() -> None:
    outputs = torch.tensor([[1.0, 1.5, 2.0, 2.5]])
    assert exit_of(outputs, Patience(1, tolerance=0.5), task="regression") == 4


def test_label_sets_agree_when_every_label_does() -> None:
    outputs = torch.tensor([[[1.0, -1.0], [2.0, 1.0], [3.0, 1.0], [3.0, 2.0]]])
    assert exit_of(outputs, Patience(1), task="multilabel") == 3


@pytest.mark.parametrize("patience", [0, -1, 1.5, True, "3"])
def test_patience_counts(patience: object) -> None:
    with refused("patience", "whole number ≥ 1", repr(patience)):
        Patience(patience)


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_tolerances_are_not_negative(tolerance: float) -> None:
    with refused("tolerance"):
        Patience(1, tolerance)


@pytest.mark.parametrize("patience", [6, 7])
def test_patience_of_the_depth_or_more_is_refused(patience: int) -> None:
    with refused("patience", "less than the model's 6 steps", str(patience), "LastStep"):
        Patience(patience).check(ModelSpec(6, "classification", has_hazard=False))


def test_outputs_that_patience_cannot_read_are_refused() -> None:
    for shape in ((1, 4, 1), (1, 4), (1, 4, 3, 2)):
        with refused("policy", "task='regression'"):
            exit_of(torch.zeros(shape), Patience(2), task=None)


@pytest.mark.parametrize(("num_steps", "patience"), [(12, 6), (6, 3), (24, 12), (7, 4), (2, 1), (1, 1)])
def test_patience_is_rescaled_to_half_the_depth(num_steps: int, patience: int) -> None:
    assert Patience(6, 0.1).rescaled(12, num_steps) == Patience(patience, 0.1)
