"""`Learned`: a user's module on the features, its contracts and its JSON form."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import policies
from ponder.policies import Learned, LinearScorer, Quantile, scorers
from tests.ponder.checks import refused, take
from tests.ponder.test_sweep import recorded
from tests.toys import TOYS, WIDTH, make_toy, wrap

DTYPES = (torch.float32, torch.float64)


@scorers.register("test-two-layers")
class TwoLayers(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.Dropout(0.5), nn.Tanh(), nn.Linear(hidden, 1))
        self.register_buffer("shift", torch.zeros(1))

    def settings(self) -> dict[str, Any]:
        return {"width": self.layers[0].in_features, "hidden": self.layers[0].out_features}

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features).squeeze(-1) + self.shift


def seeded(width: int = WIDTH) -> TwoLayers:
    torch.manual_seed(0)
    return TwoLayers(width, 5)


def test_it_leaves_where_the_score_is_high() -> None:
    trajectory, scorer = recorded(50), seeded(3)
    exits = trajectory.replay(Learned(scorer, 0.5)).exit_step.tolist()
    with torch.no_grad():
        scores = scorer.eval()(trajectory.features).sigmoid().tolist()
    for row, step in zip(scores, exits, strict=True):
        above = [n for n, score in enumerate(row[:-1], start=1) if score > 0.5]
        assert step == (above[0] if above else 6)
    assert len(set(exits)) > 2


@pytest.mark.parametrize("toy_name", TOYS)
def test_contracts_on_every_toy(toy_name: str) -> None:
    toy = make_toy(toy_name)
    model, scorer = wrap(toy).eval(), seeded()
    inputs, context = toy.batch(16, seed=5)
    unrolled = model.unroll(inputs, keep_features=True, **context)
    with torch.no_grad():  # half of the scores that rows meet before the last step are above
        policy = Learned(scorer, float(scorer.eval()(unrolled.features[:, :-1]).sigmoid().median()))
    run = model(inputs, policy=policy, **context)
    assert len(set(run.exit_step.tolist())) > 1
    assert run.exit_step.tolist() == unrolled.replay(policy).exit_step.tolist()
    rows = torch.tensor([7, 3, 3, 11])
    part = model(take(inputs, rows), policy=policy, **take(context, rows))
    assert part.exit_step.tolist() == run.exit_step[rows].tolist()
    with refused("policy", "keep_features=True"):
        model.unroll(inputs, **context).replay(policy)


def test_it_is_swept_calibrated_and_combined() -> None:
    trajectory, scorer = recorded(50), seeded(3)
    curve = trajectory.sweep(Learned(scorer, 0.5), [0.1, 0.4, 0.5, 0.9])
    assert curve.points[0].mean_exit_step < curve.points[-1].mean_exit_step
    done = ponder.calibrate(trajectory, lambda t: Learned(scorer, t) & Quantile(0.1), at_least=0.5, grid=[0.1, 0.5])
    assert done.met


def test_round_trips_with_its_weights(tmp_path: Any) -> None:
    trajectory = recorded(50)
    policy = Learned(seeded(3), 0.45)
    for twin in (
        policies.from_dict(json.loads(json.dumps(policy.to_dict()))),
        policies.from_dict(json.loads(json.dumps((policy | Quantile(0.9)).to_dict()))).policies[0],
        copy.deepcopy(policy),
        pickle.loads(pickle.dumps(policy)),
    ):
        assert twin == policy
        assert hash(twin) == hash(policy)
        assert torch.equal(trajectory.replay(twin).exit_step, trajectory.replay(policy).exit_step)
    other = Learned(seeded(3), 0.45)
    with torch.no_grad():
        other.scorer.shift += 1
    assert other != policy
    assert Learned(LinearScorer(3), 0.45) != policy
    assert policy != Learned(policy.scorer, 0.5)
    assert policy != Quantile(0.5)

    def build() -> ponder.PonderWrapper:
        torch.manual_seed(1)
        return ponder.PonderWrapper(nn.Linear(3, 3), 4, head=nn.Linear(3, 2), policy=Learned(LinearScorer(3), 0.5))

    model = build()
    model.policy = policy
    ponder.save(model, tmp_path)
    assert ponder.load(build(), tmp_path).policy == policy


def test_in_half_precision_and_without_a_graph() -> None:
    trajectory = recorded(50).map(lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor)
    policy = Learned(LinearScorer(3), 0.5)
    assert trajectory.replay(policy).exit_step.shape == (50,)
    view = policies.StepView(torch.ones(2, dtype=torch.long), 3, {"features": torch.randn(2, 3, requires_grad=True)})
    statistic, _ = policy.statistic(view, None)
    assert not statistic.requires_grad


def test_bad_input() -> None:
    with refused("scorer", "str", type_error=True):
        Learned("linear", 0.5)
    with refused("threshold"):
        Learned(LinearScorer(3), 1.5)
    with refused("scorer", "registered"):
        Learned(nn.Linear(3, 1), 0.5).to_dict()
    with refused("scorer", "(50, 2)"):
        recorded(50).replay(Learned(nn.Linear(3, 2), 0.5))
    data = Learned(LinearScorer(3), 0.5).to_dict()
    data["scorer"]["settings"]["width"] = 4
    with refused("scorer", "weights"):
        policies.from_dict(data)


def test_a_scorer_that_is_being_trained_decides_without_dropout_and_keeps_its_mode() -> None:
    # Trap: it was put into evaluation mode once, when the policy was made, and with each threshold that was tried.
    scorer = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
    policy, trajectory = Learned(scorer, 0.5), recorded(50)
    assert scorer.training
    expected = trajectory.replay(policy).exit_step.tolist()
    policy.with_threshold(0.4)
    assert scorer.training
    before = copy.deepcopy(scorer.state_dict())
    assert [trajectory.replay(policy).exit_step.tolist() for _ in range(3)] == [expected] * 3
    assert scorer.training
    assert all(torch.equal(scorer.state_dict()[name], value) for name, value in before.items())


def test_threads_leave_the_scorer_as_it_was() -> None:
    # Trap: the weights that a call exchanges were those that another thread put back, as tensors that learn no more.
    toy = make_toy("shared")
    policy = Learned(LinearScorer(WIDTH), 0.5)
    models = [wrap(toy, policy=policy).eval(), copy.deepcopy(wrap(toy)).double().eval()]
    inputs, _ = toy.batch(8, seed=1)
    own = [id(weight) for weight in policy.scorer.parameters()]
    expected = [model(inputs.to(dtype), policy=policy).exit_step for model, dtype in zip(models, DTYPES, strict=True)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(models[turn % 2], inputs.to(DTYPES[turn % 2]), policy=policy) for turn in range(100)]
        found = [call.result().exit_step for call in calls]
    finally:
        sys.setswitchinterval(interval)
    assert all(torch.equal(steps, expected[turn % 2]) for turn, steps in enumerate(found))
    assert [id(weight) for weight in policy.scorer.parameters()] == own
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in policy.scorer.parameters())
