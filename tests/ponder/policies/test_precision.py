"""Models in float64 are judged in float64, and a sweep compares as a run does, whatever the default type is.

The trap: a statistic rounded to float32 is no longer just above its threshold, and a row that had to leave stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import policies
from ponder.policies import Confidence, Entropy, Expected, Learned, LinearScorer, Margin, Quantile, Tempered
from tests.ponder.test_sweep import recorded

NEAR = 1e-10  # far below what float32 can tell at 0.5, far above what float64 can


@pytest.fixture
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learned() -> Learned:
    scorer = LinearScorer(2)
    with torch.no_grad():
        scorer.weight.copy_(torch.tensor([[1.0, -1.0]]))
        scorer.bias.zero_()
    return Learned(scorer, 0.5)


def expected() -> Expected:
    """Stops in the upper of two bins, whose bound is 1/2."""
    identity = ((1.0, 0.0), (0.0, 1.0))
    policy = Expected(0.0, ((0.5,), (0.5,), (0.5,)), ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)), (identity, identity))
    assert policy.stops[0] == (False, True)
    return policy


LEAVES: dict[str, tuple[Any, float]] = {  # a policy, and the sign of the logit with which a row leaves at step 1
    "confidence": (Confidence(0.5), 1.0),
    "margin": (Margin(0.0), 1.0),
    "tempered": (Tempered(Confidence(0.5), (1.0,)), 1.0),
    "learned": (learned(), 1.0),
    "expected": (expected(), 1.0),
    "quantile": (Quantile(0.5), 1.0),
    "after": ((Confidence(0.5) | Quantile(0.999)).after(1), 1.0),
}


def just(sign: float, dtype: torch.dtype = torch.float64) -> ponder.Trajectory:
    """One row whose every statistic is at its threshold but for 1e-10 times `sign`."""
    outputs = torch.zeros(1, 3, 2, dtype=dtype)
    outputs[:, 0, 0] = sign * 4 * NEAR
    hazards = torch.full((1, 3), -30.0, dtype=dtype)
    hazards[:, 0] = sign * 4 * NEAR
    return ponder.Trajectory(outputs, hazards, torch.arange(1), features=outputs, task="classification")


@pytest.mark.parametrize("name", LEAVES)
def test_just_above_a_threshold_a_float64_row_leaves(name: str) -> None:
    policy, sign = LEAVES[name]
    assert just(sign).replay(policy).exit_step.tolist() == [1], "it is above"
    if name not in ("confidence", "margin", "tempered", "expected", "after"):  # the other class is then as sure
        assert just(-sign).replay(policy).exit_step.item() > 1


def test_just_below_the_entropy_of_a_coin_a_float64_row_leaves() -> None:
    trajectory = just(1e4)  # entropy is flat at its greatest: log 2 − 2e-12 or so
    most = float(torch.log(torch.tensor(2.0, dtype=torch.float64)))
    assert trajectory.replay(Entropy(most)).exit_step.tolist() == [1]
    assert just(0.0).replay(Entropy(most)).exit_step.tolist() != [1]


class Same(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


@pytest.mark.parametrize("name", ["confidence", "margin", "tempered", "learned", "expected", "after"])
def test_a_float64_model_is_judged_in_float64(name: str) -> None:
    model = ponder.PonderWrapper(
        Same(), 3, head=nn.Identity(), lambda_head=ponder.LambdaHead(2), task="classification"
    ).double()
    policy, sign = LEAVES[name]
    inputs = torch.tensor([[sign * 4 * NEAR, 0.0]], dtype=torch.float64)
    assert model.eval()(inputs, policy=policy).exit_step.tolist() == [1]
    assert model.unroll(inputs, keep_features=True).replay(policy).exit_step.tolist() == [1]


SCORER = LinearScorer(3)
GRIDS: dict[str, Any] = {
    "quantile": Quantile,
    "confidence": Confidence,
    "entropy": Entropy,
    "margin": Margin,
    "patience": policies.Patience,
    "voting": policies.Voting,
    "fixed step": policies.FixedStep,
    "or": lambda t: Quantile(t) | Confidence(0.8),
    "and": lambda t: Confidence(t) & policies.Patience(1),
    "after": lambda t: Entropy(t).after(2),
    "tempered": lambda t: Tempered(Confidence(t), (0.5, 1.0, 2.0, 1.0, 1.0, 3.0)),
    "sampled": lambda t: Quantile(t) & policies.Bernoulli(3),
    "learned": lambda t: Learned(SCORER, t),
}


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", GRIDS)
def test_a_sweep_equals_replay_under_a_float64_default(name: str, dtype: torch.dtype) -> None:
    made = recorded(seed=1)
    hazards = made.hazard_logits.to(torch.promote_types(dtype, torch.float32))
    outputs = made.outputs.to(dtype)
    trajectory = dataclasses.replace(made, outputs=outputs, features=outputs, hazard_logits=hazards)
    like = GRIDS[name]
    build = like if not isinstance(like, type) else lambda value: like(**like.tunable.argument(value))
    if isinstance(like, type) and like.tunable.whole:
        grid = [1.0, 2.0, 3.0]
    else:  # thresholds that some rows meet exactly in float32, though not as they are written
        sure = trajectory.outputs.float().softmax(-1).amax(-1)
        left = -torch.expm1(torch.nn.functional.logsigmoid(-hazards.float()).cumsum(1))
        seen = [float(value) for value in torch.cat([sure[:2], left[:2]]).flatten()]
        grid = sorted({value + shift for value in seen for shift in (-1e-9, 0.0, 1e-9) if value + shift < 1.0})
    columns = trajectory.sweep(build, grid).to_dict()["mean_exit_step"]
    replayed = [trajectory.replay(build(value)).exit_step.double().mean().item() for value in grid]
    assert columns == pytest.approx(replayed, abs=1e-12)


def test_a_half_precision_statistic_is_compared_alike_in_run_and_sweep() -> None:
    @dataclasses.dataclass(frozen=True)
    class First(policies.ThresholdPolicy):
        threshold: float
        needs = frozenset({"output"})
        tunable = policies.Threshold("threshold", "at_least")

        def statistic(self, step: Any, state: Any) -> Any:
            return step.output[:, 0], state

    outputs = torch.full((1, 3, 2), 0.3).to(torch.bfloat16)  # 0.30078125
    trajectory = ponder.Trajectory(outputs, None, torch.arange(1), task="classification")
    for build in (First, lambda t: First(t) & Confidence(0.1)):
        grid = [0.299, 0.3, 0.3005, 0.301]
        swept = trajectory.sweep(build, grid).to_dict()["mean_exit_step"]
        assert swept == [trajectory.replay(build(value)).exit_step.item() for value in grid] == [1, 1, 1, 3]
