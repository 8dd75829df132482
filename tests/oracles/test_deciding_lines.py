"""Policies against the lines that decide in official codes: ties, equalities, and the last step.

Repository, commit and lines of each stand in `docs/appendix.md`. Where a policy differs on purpose,
the difference is a case, too.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ponder import Trajectory, objectives, policies, tasks
from ponder.policies.certainty import negative_entropy
from tests.matrices import oracles

DOUBLE = torch.float64


def record(outputs: Any, hazards: Any = None, task: str | None = None) -> Trajectory:
    """One row, from outputs `(steps, …)` and hazard logits `(steps,)`."""
    logits = None
    if hazards is not None:
        logits = torch.tensor([hazards], dtype=DOUBLE)
    return Trajectory(torch.tensor([outputs], dtype=DOUBLE), logits, torch.arange(1), task=task)


def of_hazards(logits: list[float], policy: policies.ExitPolicy) -> int:
    outputs = [[0.0, 0.0]] * len(logits)
    return int(record(outputs, logits).replay(policy).exit_step)


def of_classes(answers: list[int], policy: policies.ExitPolicy) -> int:
    return int(
        record([[float(c == a) for c in range(3)] for a in answers]).replay(policy).exit_step
    )


def of_numbers(values: list[float], policy: policies.ExitPolicy) -> int:
    return int(record([[v] for v in values], task="regression").replay(policy).exit_step)


# -- PABEE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [1, 2, 3, 6])
@pytest.mark.parametrize(
    "answers",
    [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 2, 1, 0, 1],
        [2, 2, 1, 2, 2, 2],
        [1, 0, 0, 0, 1, 1],
    ],
)
def test_patience_is_pabees_counter(answers: list[int], patience: int) -> None:
    expected = oracles.pabee(answers, patience)
    assert of_classes(answers, policies.Patience(patience)) == expected


def test_numbers_that_differ_by_the_threshold_do_not_agree_in_pabee() -> None:
    values = [0.0, 0.5, 0.75, 0.75, 0.75]
    for patience in (1, 2):
        for threshold in (0.25, 0.5, 0.6):
            expected = oracles.pabee(values, patience, threshold)
            policy = policies.Patience(patience, tolerance=threshold)
            assert of_numbers(values, policy) == expected
    assert oracles.pabee(values, 1, 0.25) == 4  # 0.25 is not below 0.25


def test_pabee_weighs_the_losses_of_steps_by_their_numbers() -> None:
    losses = torch.tensor([[3.0, 1.0, 0.5]], dtype=DOUBLE)
    seen = objectives.Unrolled(torch.zeros(1, 3, 2), losses, tasks.task_named(None))
    expected = (1 * 3.0 + 2 * 1.0 + 3 * 0.5) / 6
    assert objectives.DeepSupervision("linear").per_example(seen).item() == pytest.approx(expected)


# -- DeeBERT, FastBERT, COSEE --------------------------------------------------------------------------------------

LOGITS = [[0.0, 0.3, 0.1], [1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [2.0, 0.0, -2.0], [6.0, 0.0, 0.0]]


def values_of(logits: list[list[float]], unit: float) -> list[float]:
    """The library's entropies, so that a threshold can equal one to the last bit."""
    return (-negative_entropy(torch.tensor(logits, dtype=DOUBLE)) / unit).tolist()


@pytest.mark.parametrize("tie", range(5))
def test_an_entropy_that_equals_deeberts_threshold_is_not_below_it(tie: int) -> None:
    entropies = values_of(LOGITS, 1.0)
    plain = [oracles.entropy([math.exp(z) for z in oracles.log_softmax(row)]) for row in LOGITS]
    assert entropies == pytest.approx(plain, abs=1e-12)
    for threshold in (entropies[tie], entropies[tie] * 1.001):
        found = int(record(LOGITS).replay(policies.Entropy(threshold)).exit_step)
        assert found == oracles.first_below(entropies, threshold)


@pytest.mark.parametrize("tie", range(5))
def test_fastberts_package_asks_for_less_and_its_script_lets_equality_go(tie: int) -> None:
    uncertainties = values_of(LOGITS, math.log(3))
    speed = uncertainties[tie]
    found = int(record(LOGITS).replay(policies.Entropy(speed, normalize=True)).exit_step)
    assert found == oracles.first_below(uncertainties, speed)
    script = oracles.first_below(uncertainties, speed, or_equal=True)
    assert script == uncertainties.index(speed) + 1
    assert found > script or tie == 4  # the last step answers in either


def test_deeberts_second_stage_sums_the_losses_of_the_early_steps() -> None:
    """Ours is a mean over all steps, whose last head is frozen: the same gradient, divided by N."""
    losses = torch.tensor([[3.0, 1.0, 0.5, 0.4]], dtype=DOUBLE, requires_grad=True)
    seen = objectives.Unrolled(torch.zeros(1, 4, 2), losses, tasks.task_named(None))
    ours = objectives.DeepSupervision("uniform").per_example(seen).sum()
    (found,) = torch.autograd.grad(ours, losses)
    (official,) = torch.autograd.grad(losses[:, :-1].sum(), losses)
    torch.testing.assert_close(4 * found[:, :-1], official[:, :-1])


def test_energy_is_one_minus_cosees_score_and_asks_for_more() -> None:
    scores = [oracles.cosee_energy(row) for row in LOGITS]
    for threshold in (0.05, 0.1, 0.2, 0.25):
        expected = oracles.first_below(scores, threshold)
        assert int(record(LOGITS).replay(policies.Energy(1 - threshold)).exit_step) == expected
    tie = [[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]  # 1 / (1 + 3), and equality is no exit
    assert oracles.cosee_energy(tie[0]) == 0.25
    assert int(record(tie).replay(policies.Energy(0.75)).exit_step) == 2


# -- PALBERT, ACT, HRM and TRM -------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.75, 0.875, 0.9, 1.0])
def test_a_cdf_that_equals_q_goes_on_as_in_palbert(q: float) -> None:
    logits = [0.0, 0.0, 0.0, 0.0]  # a CDF of 1/2, 3/4, 7/8
    assert of_hazards(logits, policies.Quantile(q)) == oracles.palbert(logits, q)


UNITS = [0.5, 0.25, 0.125, 0.0625]


def logits_of(units: list[float]) -> list[float]:
    return [math.log(unit) - math.log1p(-unit) for unit in units]


def test_graves_halts_at_the_threshold_and_tensor2tensor_above_it() -> None:
    units = [0.5, 0.5, 0.5]
    weights, steps = oracles.universal_transformer(units, threshold=0.75)
    ours, last, _ = oracles.act(logits_of(units), epsilon=0.25)
    assert (steps, last) == (2, 2)
    assert weights == ours[:2] == [0.5, 0.5]
    # A sum of exactly the threshold is where they part: 0.5 + 0.25 against 1 − 0.25.
    units = [0.5, 0.25, 0.5]
    _, steps = oracles.universal_transformer(units, threshold=0.75)
    assert steps == 3
    almost = policies.ACT(0.25 + 1e-9)  # the logarithm of 0.25 rounds
    assert of_hazards(logits_of(units), almost) == 2


def test_the_mass_that_is_left_at_the_step_limit_is_the_last_steps_and_lost_in_tensor2tensor() -> (
    None
):
    weights, steps = oracles.universal_transformer(UNITS, threshold=0.99)
    outputs = torch.eye(4, dtype=DOUBLE)[None]
    halting = record(torch.zeros(4, 2).tolist(), logits_of(UNITS)).halting
    found = objectives.ACT(epsilon=0.01).answer(outputs, halting)[0].tolist()
    assert steps == 4
    assert found[:3] == pytest.approx(weights[:3], abs=1e-12)
    assert sum(weights) == 0.9375
    assert sum(found) == pytest.approx(1.0)
    assert found[3] == pytest.approx(weights[3] + 1 - 0.9375)


def test_the_mean_answer_is_graves_sum_and_not_tensor2tensors_blend() -> None:
    units = [0.5, 0.25, 0.5]
    states = [1.0, -1.0, 2.0]
    weights, _ = oracles.universal_transformer(units, threshold=0.99)
    halting = record(torch.zeros(3, 2).tolist(), logits_of(units)).halting
    outputs = torch.tensor(states, dtype=DOUBLE).view(1, 3, 1)
    found = float(objectives.ACT(epsilon=0.01).answer(outputs, halting))
    expected = oracles.mean_output(states, oracles.act(logits_of(units), 0.01)[0])
    assert found == pytest.approx(expected)
    assert abs(oracles.blended(states, weights) - found) > 0.1


@pytest.mark.parametrize(
    "logits",
    [
        [-1.0, 0.0, 0.5, 2.0],
        [0.0, 0.0, 0.0, 0.0],
        [1e-6, -1.0, -1.0, -1.0],
        [-3.0, -2.0, -1.0, -0.5],
    ],
)
def test_a_q_value_of_zero_goes_on_as_in_trm_and_hrm(logits: list[float]) -> None:
    assert of_hazards(logits, policies.RightAnswer(0.5)) == oracles.q_head(logits, 4)


# -- Huginn --------------------------------------------------------------------------------------------------------


def of_features(states: list[list[float]], tolerance: float) -> int:
    made = Trajectory(
        torch.zeros(1, len(states), 2, dtype=DOUBLE),
        None,
        torch.arange(1),
        features=torch.tensor([states], dtype=DOUBLE),
    )
    return int(made.replay(policies.Converged(tolerance, on="features")).exit_step)


def test_converged_is_huginns_latent_difference_from_the_second_step_on() -> None:
    states = [[1.0, 0.0], [1.0, 1.0], [1.0, 1.1], [1.0, 1.11]]
    for threshold in (0.01, 0.05, 0.08, 0.8):
        expected = oracles.huginn([[99.0, 0.0], *states], threshold)
        assert of_features(states, threshold) == expected


def test_converged_parts_from_huginn_at_step_one_and_at_equality() -> None:
    still = [[1.0, 0.0]] * 3
    assert oracles.huginn([[1.0, 0.0], *still], 0.1) == 1
    assert of_features(still, 0.1) == 2  # a first step is compared with nothing
    steps = [[1.0], [2.0], [4.0], [4.0]]  # differences of 1/2, 1/2 and 0
    assert oracles.huginn([[9.0], *steps], 0.5) == 4
    assert of_features(steps, 0.5) == 2
