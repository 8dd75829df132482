"""`priors.Empirical.fit` against a loop over rows and steps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ponder
from ponder import priors
from tests.ponder.checks import refused
from tests.toys import labels_for, make_toy, wrap


def make(task: str | None, rows: int, num_steps: int, seed: int, classes: int = 2) -> ponder.Trajectory:
    """A trajectory whose answers often change, and often are right."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows, num_steps, classes, generator=generator)
    if task == "multilabel":
        labels = torch.randint(2, (rows, classes), generator=generator).float()
    else:
        labels = torch.randint(classes, (rows,), generator=generator)
    return ponder.Trajectory(outputs, None, torch.arange(rows), labels=labels, task=task)


def settled(answers: list[object], target: object) -> int:
    """Walk back from the end while the answer holds."""
    step = len(answers) + 1
    while step > 1 and answers[step - 2] == target:
        step -= 1
    return min(step, len(answers))


def oracle(trajectory: ponder.Trajectory, rule: str, smoothing: float) -> list[float]:
    num_steps = trajectory.num_steps
    counts = [smoothing] * num_steps
    for row, label in zip(trajectory.outputs.tolist(), trajectory.labels.tolist(), strict=True):
        if trajectory.task == "multilabel":
            answers, truth = [[o > 0 for o in step] for step in row], [y == 1 for y in label]
        else:
            answers, truth = [step.index(max(step)) for step in row], label
        counts[settled(answers, truth if rule == "stays_right" else answers[-1]) - 1] += 1
    return [count / sum(counts) for count in counts]


@given(
    st.sampled_from(["classification", "multilabel", None]),
    st.sampled_from(["stays_right", "stays_same"]),
    st.integers(1, 20),
    st.integers(1, 6),
    st.sampled_from([0.25, 1.0, 3.0]),
    st.integers(0, 10**6),
)
def test_equals_the_loop(task: str | None, rule: str, rows: int, num_steps: int, smoothing: float, seed: int) -> None:
    trajectory = make(task, rows, num_steps, seed)
    prior = priors.Empirical.fit(trajectory, rule=rule, smoothing=smoothing)
    assert prior.probabilities == pytest.approx(oracle(trajectory, rule, smoothing), abs=1e-12)
    assert min(prior.probabilities) > 0
    assert priors.from_dict(prior.to_dict()) == prior


def test_a_row_that_is_wrong_at_the_end_counts_for_the_last_step() -> None:
    say = {0: [1.0, 0.0], 1: [0.0, 1.0]}
    rows = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]  # the label is 1: right and then wrong, settled at 2, settled at 3
    outputs = torch.tensor([[say[answer] for answer in row] for row in rows])
    trajectory = ponder.Trajectory(outputs, None, torch.arange(3), labels=torch.ones(3, dtype=torch.long))
    assert priors.Empirical.fit(trajectory, smoothing=1.0).probabilities == pytest.approx((1 / 6, 2 / 6, 3 / 6))


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_fits_what_a_model_unrolled_and_serves_it(task: str) -> None:
    toy = make_toy("transformer")
    model = wrap(toy, task=task).eval()
    inputs, context = toy.batch(16)
    trajectory = model.unroll(inputs, labels=labels_for(task, 16), **context)
    prior = priors.Empirical.fit(trajectory)
    assert prior.probabilities == pytest.approx(oracle(trajectory, "stays_right", 1.0))
    model.prior = prior
    model.train()(inputs, labels=labels_for(task, 16), **context).loss.backward()


def test_labels_are_needed_by_one_rule_only() -> None:
    trajectory = dataclasses.replace(make("classification", 3, 4, 0), labels=None)
    assert len(priors.Empirical.fit(trajectory, rule="stays_same").probabilities) == 4
    with refused("trajectory", "labels (3,)", "none", "stays_same"):
        priors.Empirical.fit(trajectory)
    with refused("trajectory", "labels (3,)", "shape (2,)"):
        priors.Empirical.fit(dataclasses.replace(trajectory, labels=torch.tensor([0, 1])))


@pytest.mark.parametrize("task", ["regression", "token_classification", "custom"])
def test_other_tasks_are_refused(task: str) -> None:
    with refused("trajectory", "'classification' or 'multilabel'", task):
        priors.Empirical.fit(make(task, 3, 4, 0), rule="stays_same")


def test_a_task_that_cannot_be_told_is_refused() -> None:
    numbers = dataclasses.replace(make(None, 3, 4, 0), labels=torch.randn(3, 2))
    single = make(None, 3, 4, 0, classes=1)
    for trajectory in (numbers, single):
        with refused("trajectory", "None"):
            priors.Empirical.fit(trajectory)


def test_bad_arguments_are_refused() -> None:
    trajectory = make("classification", 3, 4, 0)
    with refused("rule", "stays_right, stays_same", "'stays'"):
        priors.Empirical.fit(trajectory, rule="stays")
    for smoothing in (0.0, -1.0, float("nan"), float("inf")):
        with refused("smoothing"):
            priors.Empirical.fit(trajectory, smoothing=smoothing)
    with refused("trajectory", "at least one row"):
        priors.Empirical.fit(trajectory.map(lambda tensor: tensor[:0]))
    with refused("prior", "6 steps", "4 probabilities"):
        priors.Empirical.fit(trajectory)(6)


def test_soft_labels_are_read_as_the_class_they_favour() -> None:
    trajectory = make("classification", 30, 4, 0)
    soft = dataclasses.replace(trajectory, labels=0.2 + 0.6 * torch.nn.functional.one_hot(trajectory.labels, 2))
    assert priors.Empirical.fit(soft) == priors.Empirical.fit(trajectory)
