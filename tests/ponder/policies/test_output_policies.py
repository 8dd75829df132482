"""Entropy, confidence and margin: what they refuse, and where they stand at the edges."""

from __future__ import annotations

import math

import pytest
import torch

import ponder
from ponder.policies import Confidence, Entropy, Margin, ModelSpec
from tests.ponder.checks import refused

certain = pytest.mark.parametrize("policy", [Entropy(0.2), Confidence(0.9), Margin(0.8)], ids=str)


def exits_of(outputs: torch.Tensor, policy: object, task: str | None = "classification") -> list[int]:
    return ponder.Trajectory(outputs, None, torch.arange(len(outputs)), task=task).replay(policy).exit_step.tolist()


@certain
@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_other_tasks_are_refused_when_the_policy_meets_the_model(policy, task: str) -> None:
    remedy = "Patience with a tolerance" if task == "regression" else "Use Patience, or a policy on the hazard"
    with refused("policy", "class logits", task, remedy):
        policy.check(ModelSpec(6, task, has_hazard=True))


@certain
@pytest.mark.parametrize("shape", [(2, 3, 1), (2, 3), (2, 3, 4, 2)])
def test_outputs_that_are_no_class_logits_are_refused_where_no_task_is_named(policy, shape) -> None:
    with refused("policy", type(policy).__name__, str((2, *shape[2:]))):
        exits_of(torch.zeros(shape), policy, task=None)


@certain
@pytest.mark.parametrize("value", [20.0, 100.0, 1e4, math.inf])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_surest_rows_exit_first(policy, value: float, classes: int) -> None:
    """Impossible classes (logit −inf) included: they carry no entropy."""
    outputs = torch.zeros(1, 4, classes)
    outputs[..., 1:] = -value
    assert exits_of(outputs, policy) == [1]


@certain
def test_undecided_rows_run_to_the_end(policy) -> None:
    assert exits_of(torch.zeros(2, 4, 3), policy) == [4, 4]


@pytest.mark.parametrize("policy", [Entropy(0.0), Entropy(0.0, True), Confidence(1.0), Margin(1.0)], ids=str)
def test_a_threshold_that_nothing_can_pass_runs_to_the_end(policy) -> None:
    outputs = torch.zeros(1, 4, 3)
    outputs[..., 0] = 1e4
    assert exits_of(outputs, policy) == [4]


@certain
def test_nan_is_not_sure(policy) -> None:
    outputs = torch.full((1, 4, 3), torch.nan)
    outputs[:, 2:] = torch.tensor([1e4, 0.0, 0.0])
    assert exits_of(outputs, policy) == [3]


def test_normalised_entropy_counts_in_units_of_log_classes() -> None:
    outputs = torch.tensor([0.6, 0.2, 0.2]).log().expand(1, 3, 3)
    share = -sum(p * math.log(p) for p in (0.6, 0.2, 0.2)) / math.log(3)
    assert exits_of(outputs, Entropy(share + 0.01, normalize=True)) == [1]
    assert exits_of(outputs, Entropy(share - 0.01, normalize=True)) == [3]


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Entropy(-0.1), "threshold"),
        (lambda: Entropy(math.nan), "threshold"),
        (lambda: Entropy(math.inf), "threshold"),
        (lambda: Entropy(1.2, normalize=True), "threshold"),
        (lambda: Confidence(1.2), "threshold"),
        (lambda: Confidence(-0.1), "threshold"),
        (lambda: Margin(2.0), "threshold"),
        (lambda: Margin("a"), "threshold"),
    ],
)
def test_thresholds_out_of_range_are_refused(make, argument: str) -> None:
    with refused(argument):
        make()


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_default_grid_of_entropy_reaches_from_no_exit_to_the_first_step(classes: int, normalize: bool) -> None:
    trajectory = ponder.Trajectory(
        torch.randn(40, 3, classes), None, torch.arange(40), labels=torch.zeros(40, dtype=torch.long)
    )
    steps = trajectory.sweep(Entropy(0.1, normalize=normalize)).to_dict()["mean_exit_step"]
    assert (min(steps), max(steps)) == (1.0, 3.0)
