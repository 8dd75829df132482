"""One loop: a policy that is replayed sees the rows that it sees when the model runs, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ponder
from ponder import policies
from ponder.calibration import Record
from ponder.running.loop import Exited, exits_of, gather

ROWS = 40
STEPS = 5
WIDTH = 6
CLASSES = 3
POLICIES = (
    policies.Confidence(0.5),
    policies.Quantile(0.7),
    policies.Bernoulli(seed=3),
    policies.Patience(2),
    policies.Confidence(0.5) | policies.Quantile(0.9),
    policies.FixedStep(3),
    policies.LastStep(),
)


@dataclass(frozen=True)
class Watching(policies.PolicyWrapper):
    """The policy inside, which notes how many rows it is asked about, and at which step."""

    seen: list[tuple[int, int]] = field(default_factory=list)

    def decide(self, step: Any, state: Any) -> tuple[Any, Any]:
        self.seen.append((int(step.index[0]), len(step.index)))
        return self.policy.decide(step, state)


@pytest.fixture(scope="module")
def model() -> ponder.PonderWrapper:
    torch.manual_seed(0)
    step = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    return (
        ponder.PonderWrapper(
            step,
            num_steps=STEPS,
            head=nn.Linear(WIDTH, CLASSES),
            lambda_head=ponder.LambdaHead(WIDTH),
        )
        .double()
        .eval()
    )


def made_inputs() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_run_and_replay_ask_about_the_same_rows(
    model: ponder.PonderWrapper, policy: policies.ExitPolicy
) -> None:
    inputs = made_inputs()
    trajectory = model.unroll(inputs)
    arrays = Record(trajectory.outputs.numpy(), trajectory.hazard_logits.numpy(), np.arange(ROWS))
    watched = [Watching(policy) for _ in range(4)]
    runs = (
        model(inputs, policy=watched[0]).exit_step,
        trajectory.replay(watched[1]).exit_step,
        torch.from_numpy(arrays.replay(watched[2]).exit_step),
        ponder.predict(model, inputs, policy=watched[3], batch_size=7).exit_step,
    )
    exit_step = runs[0]
    remaining = [(step, int((exit_step >= step).sum())) for step in range(1, STEPS)]
    assert watched[0].seen == [(step, rows) for step, rows in remaining if rows]
    assert len({int(number) for number in exit_step}) > 1 or policy.exit_of_all(STEPS)
    for other, one in zip(runs, watched, strict=True):
        assert torch.equal(other, exit_step)
        assert one.seen == watched[0].seen


def test_a_policy_sees_what_remained_before_a_step_and_what_has_stopped_by_it() -> None:
    hazards = np.random.default_rng(0).uniform(0.1, 0.9, (4, STEPS))
    logits = np.log(hazards / (1.0 - hazards))
    record = Record(np.zeros((4, STEPS, CLASSES)), logits, np.arange(4), task="classification")
    remains = np.ones(4)
    for number, view in enumerate(record.views(frozenset({"hazard"}))):
        np.testing.assert_allclose(view.hazard, hazards[:, number])
        np.testing.assert_allclose(view.survival, remains)
        remains = remains * (1.0 - hazards[:, number])
        np.testing.assert_allclose(view.cdf, 1.0 - remains)


@pytest.mark.parametrize("positions", [True, False])
def test_a_mask_of_positions_goes_with_the_features_that_it_fits(positions: bool) -> None:
    """Padding moves from step to step, and the real positions do not, so that they have converged."""
    features = np.random.default_rng(0).normal(size=(2, STEPS, 4, WIDTH))
    features[:, :, :2] = 1.0
    mask = np.tile(np.arange(4) < 2, (2, 1))
    record = Record(
        np.zeros((2, STEPS, CLASSES)),
        None,
        np.arange(2),
        features=features if positions else features[:, :, 0],
        mask=mask,
        task="classification",
    )
    assert record.exit_steps(policies.Converged(0.01)).tolist() == [2, 2]


@torch.no_grad()
def test_rows_that_exit_come_back_in_the_order_of_the_batch(model: ponder.PonderWrapper) -> None:
    inputs = made_inputs()
    source, batch = model.start(inputs, {"output"})
    exits = exits_of(source, policies.Confidence(0.5), batch)
    rows = np.concatenate([one.rows for one in exits if one.rows is not None])
    assert sorted(rows.tolist()) == list(range(ROWS))
    assert [one.step for one in exits] == sorted({one.step for one in exits})
    answers = gather(exits, batch)
    for one in exits:
        assert torch.equal(answers.outputs[one.rows], one.outputs)
        assert answers.exit_step[one.rows].tolist() == [one.step] * len(one.outputs)


def test_rows_that_exit_together_are_not_moved() -> None:
    outputs = np.zeros((2, CLASSES))
    batch = policies.PolicyBatch(np.array([7, 9]), STEPS)
    answers = gather([Exited(2, None, outputs)], batch)
    assert answers.outputs is outputs
    assert answers.exit_step.tolist() == [2, 2]
