"""Rows that are not finite: sweeps, calibrations and certificates see them where running the model leaves them.

The trap: NaN > t is False, so such a row stays in a run; a running maximum over NaN, and a binary search for it, let it
go at once, and a certificate said 0.0000 where the risk was 0.3.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

import ponder
from ponder import policies
from ponder.calibration import fit_gate, fit_temperatures
from ponder.policies import (
    Confidence,
    Converged,
    Energy,
    Entropy,
    Expected,
    Learned,
    LinearScorer,
    Margin,
    Patience,
    Quantile,
    Tempered,
    Voting,
)
from ponder.testing.twin import twin_exits
from tests.ponder.test_sweep import recorded


def poisoned(task: str = "classification", rows: int = 60) -> ponder.Trajectory:
    """Every third row has NaN or infinity at one step or more: first, in between, or to the end."""
    clean = recorded(rows, task=task, seed=4)
    outputs, hazards, features = clean.outputs.clone(), clean.hazard_logits.clone(), clean.features.clone()
    for place, row in enumerate(range(0, rows, 3)):
        steps = (slice(0, 1), slice(2, 4), slice(3, None), slice(0, None))[place % 4]
        outputs[row, steps] = math.inf if place % 3 == 1 else math.nan
        hazards[row, steps] = math.nan
        features[row, steps] = math.nan
    return dataclasses.replace(clean, outputs=outputs, hazard_logits=hazards, features=features)


GRID = [0.2, 0.5, 0.8]
GRIDS: dict[str, Any] = {
    "confidence": Confidence,
    "entropy": Entropy,
    "margin": Margin,
    "quantile": Quantile,
    "learned": lambda t: Learned(scorer(), t),
    "tempered": lambda t: Tempered(Confidence(t), (2.0,)),
    "or": lambda t: Quantile(t) | Confidence(0.9),
    "or a count": lambda t: Confidence(t) | Patience(2),
    "and": lambda t: Confidence(t) & Quantile(0.3),
    "after": lambda t: Confidence(t).after(3),
    "before": lambda t: Entropy(t).before(4),
    "nested": lambda t: ((Quantile(t) & Margin(0.1)) | Patience(3)).after(2).before(5),
}


def scorer() -> LinearScorer:
    torch.manual_seed(0)
    return LinearScorer(3)


@pytest.mark.parametrize("name", GRIDS)
def test_a_sweep_leaves_them_where_a_run_does(name: str) -> None:
    trajectory, like = poisoned(), GRIDS[name]
    columns = trajectory.sweep(like, GRID).to_dict()
    build = like if not isinstance(like, type) else lambda value: like(value)
    for place, value in enumerate(GRID):
        exits = trajectory.replay(build(value))
        assert columns["mean_exit_step"][place] == pytest.approx(exits.exit_step.double().mean().item(), abs=1e-12)


@pytest.mark.parametrize(
    "policy",
    [Confidence(0.0), Energy(0.0), Entropy(50.0), Margin(0.0), Quantile(0.0), Confidence(0.1).after(2)],
    ids=str,
)
def test_a_row_without_a_finite_step_runs_to_the_end(policy: policies.ExitPolicy) -> None:
    trajectory = poisoned()
    never = ~trajectory.hazard_logits[:, :-1].isfinite().any(1)
    assert bool(never.any())
    assert trajectory.replay(policy).exit_step[never].tolist() == [6] * int(never.sum())


COUNTING = [Patience(1), Patience(1, 0.1), Converged(), Converged(0.1, on="features")]


@pytest.mark.parametrize(
    ("policy", "task"),
    [
        *itertools.product(COUNTING, ["classification", "multilabel", "token_classification"]),
        (Voting(2), "classification"),
        (Voting(2), "token_classification"),
    ],
    ids=str,
)
def test_nan_is_no_answer_that_could_be_counted(policy: policies.ExitPolicy, task: str) -> None:
    """The most probable class of NaN is always the same one: it agreed with itself, and voted."""
    outputs = torch.full((2, 4, 3), torch.nan)
    outputs[0, 2:] = torch.tensor([9.0, -1.0, -1.0])  # the class that NaN seemed to be
    if task == "token_classification":
        outputs = outputs.unsqueeze(2).expand(-1, -1, 5, -1)
    trajectory = ponder.Trajectory(outputs, None, torch.arange(2), features=outputs, task=task)
    assert trajectory.replay(policy).exit_step.tolist() == [4, 4]


@pytest.mark.parametrize(
    "policy", [Confidence(0.6), Energy(0.9), Margin(0.4), Patience(1), Voting(1), Voting(2)], ids=str
)
def test_an_export_counts_as_pytorch_does(policy: policies.ExitPolicy) -> None:
    trajectory = poisoned()
    assert twin_exits(policy, trajectory) == trajectory.replay(policy).exit_step.tolist()


@pytest.mark.parametrize("kind", ["logistic", "boosted"])
def test_a_gate_lets_no_row_go_of_which_it_learnt_nothing(kind: str) -> None:
    pytest.importorskip("sklearn", reason="gates are fitted with scikit-learn, which is not installed")
    trajectory = poisoned()
    gate = fit_gate(trajectory, target="agreement", model=kind, trees=3, threshold=1.0)
    never = ~trajectory.answered()[:, :-1].any(1)
    assert bool(never.any())
    assert trajectory.replay(gate).exit_step[never].tolist() == [6] * int(never.sum())


def hidden_risk(rows: int = 400) -> ponder.Trajectory:
    """The rows of a sure classifier, of which 30% are NaN at step 1, and sure of another class at step 2."""
    logits = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0]]).repeat(rows, 1, 1)
    bad = torch.arange(rows) % 10 < 3
    logits[bad, 0] = math.nan  # which argmax reads as class 0, the answer of full depth
    logits[bad, 1] = torch.tensor([0.0, 9.0])
    return ponder.Trajectory(
        logits, None, torch.arange(rows), labels=torch.zeros(rows, dtype=torch.long), task="classification"
    )


@pytest.mark.parametrize("risk", ["disagreement", "error", "error_gap"])
@pytest.mark.parametrize("bound", ["hoeffding_bentkus", "betting", "exact_binomial", "conformal"])
def test_a_certificate_counts_what_the_run_loses(risk: Any, bound: str) -> None:
    trajectory = hidden_risk()
    done = ponder.control_risk(trajectory, Confidence, risk=risk, level=0.1, bound=bound, grid=[0.5, 0.9, 0.99999])
    exits = trajectory.replay(done.policy)
    wrong = (exits.outputs.argmax(-1) != 0).double().mean().item()
    assert wrong <= 0.1
    assert trajectory.replay(Confidence(0.9)).outputs.argmax(-1).double().mean().item() == pytest.approx(0.3)
    for value, observed, _ in done.policy.path:
        answers = trajectory.replay(Confidence(value)).outputs.argmax(-1)
        assert observed == pytest.approx((answers != 0).double().mean().item())


def test_nan_is_no_right_answer_and_agrees_with_none() -> None:
    outputs = torch.tensor([[[math.nan, 0.0], [1.0, 0.0]], [[1.0, 0.0], [math.nan, math.nan]]])
    trajectory = ponder.Trajectory(outputs, None, torch.arange(2), labels=torch.tensor([0, 0]), task="classification")
    first, last = trajectory.sweep(policies.FixedStep, [1, 2]).points
    assert (first.score, last.score) == (0.5, 0.5)  # argmax reads NaN as class 0, which would be right
    assert first.agreement == 0.0
    assert last.agreement == 1.0
    assert trajectory.correct().tolist() == [[False, True], [True, False]]
    assert trajectory.overthinking().lost == 0.5


def test_nan_of_one_row_stays_at_its_own_thresholds() -> None:
    """Means over rows come from running sums, in which one NaN would never end."""
    trajectory = recorded(task="regression", seed=2)
    outputs = trajectory.outputs.clone()
    first = trajectory.replay(Quantile(0.1)).exit_step
    outputs[0, first[0] - 1] = math.nan  # where row 0 leaves under 0.1
    trajectory = dataclasses.replace(trajectory, outputs=outputs)
    later = next(q for q in (0.3, 0.6, 0.9, 1.0) if trajectory.replay(Quantile(q)).exit_step[0] != first[0])
    scores = trajectory.sweep(Quantile, [0.1, later]).to_dict()["score"]
    assert math.isnan(scores[0])
    assert math.isfinite(scores[1])
    done = ponder.calibrate(trajectory, Quantile, at_most_steps=6.0, grid=[0.1, later])
    assert math.isfinite(done.point.score)  # a score that is no number is not the best


def test_what_is_fitted_leaves_them_out() -> None:
    clean = recorded(80)
    outputs = clean.outputs.clone()
    outputs[::4, 1] = math.nan
    outputs[1::8, 0] = math.inf
    trajectory = dataclasses.replace(clean, outputs=outputs)
    kept = clean.map(lambda tensor: tensor[torch.arange(80) % 4 != 0])
    assert fit_temperatures(trajectory)[1] == pytest.approx(fit_temperatures(kept)[1])
    assert fit_temperatures(trajectory)[2] == pytest.approx(fit_temperatures(clean)[2])
    with pytest.raises(ponder.PonderError, match="a step with none"):
        fit_temperatures(dataclasses.replace(clean, outputs=clean.outputs * math.nan))
    policy = Expected.fit(trajectory, price=0.5)
    assert all(math.isfinite(edge) for row in policy.edges for edge in row)
    never = dataclasses.replace(clean, outputs=clean.outputs * math.nan)
    assert never.replay(policy).exit_step.tolist() == [6] * 80
