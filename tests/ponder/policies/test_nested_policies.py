"""Random policies nested to depth 5, on models of every shape: running, replaying and sweeping give the same exits.

Small by default, each policy on two models of four; `PONDER_FULL=1` tries 30 policies × every toy model × 5 seeds.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ponder
from ponder import policies
from ponder.analysis.policy_grid import as_policy_grid
from ponder.policies import ExitPolicy
from tests.ponder.checks import to_dtype
from tests.ponder.examples import CERTIFICATE
from tests.toys import NUM_STEPS, TOYS, make_toy, wrap

FULL = bool(os.environ.get("PONDER_FULL"))
POLICIES = 30
SEEDS = range(5 if FULL else 1)
SHAPES = sorted(TOYS) if FULL else ["dict-state", "gru-cell", "scheduled", "transformer"]
ROWS, DEPTH = 24, 5

Hole = Callable[[float], ExitPolicy]  # a policy that waits for the value of one threshold


def random_policy(draw: random.Random, depth: int, swept: bool) -> tuple[Hole, list[float]]:
    """A policy of a random shape; where `swept`, one of its leaves, a random one, takes the value that is passed."""
    if depth == 0 or draw.random() < 0.15:
        return random_leaf(draw, swept)
    kind = draw.choice(["or", "and", "after", "before", "tempered", "certified", "three"])
    if kind in ("or", "and", "three"):
        count = 3 if kind == "three" else 2
        chosen = draw.randrange(count)
        parts = [random_policy(draw, depth - 1, swept and place == chosen) for place in range(count)]
        combine = policies.All if kind == "and" else policies.Any_
        grid = parts[chosen][1]
        return lambda value: combine(tuple(part(value) for part, _ in parts)), grid
    inside, grid = random_policy(draw, depth - 1, swept)
    step = draw.randint(1, NUM_STEPS)
    temperatures = tuple(draw.uniform(0.3, 3.0) for _ in range(NUM_STEPS))
    around: dict[str, Callable[[ExitPolicy], ExitPolicy]] = {
        "after": lambda policy: policy.after(step),
        "before": lambda policy: policy.before(step),
        "tempered": lambda policy: policies.Tempered(policy, temperatures),
        "certified": lambda policy: policies.Certified(policy, path=(), **CERTIFICATE),
    }
    return lambda value: around[kind](inside(value)), grid


def random_leaf(draw: random.Random, swept: bool) -> tuple[Hole, list[float]]:
    shares = sorted(draw.uniform(0.05, 0.99) for _ in range(6))
    steps = [float(step) for step in range(1, NUM_STEPS)]
    normalize = draw.random() < 0.5
    leaves: dict[str, tuple[Hole, list[float]]] = {
        "quantile": (policies.Quantile, shares),
        "confidence": (policies.Confidence, shares),
        "margin": (policies.Margin, shares),
        "entropy": (lambda value: policies.Entropy(value, normalize), shares),
        "patience": (lambda value: policies.Patience(int(value)), steps),
        "voting": (lambda value: policies.Voting(int(value)), steps),
        "fixed step": (lambda value: policies.FixedStep(int(value)), steps),
    }
    blind = [policies.LastStep(), policies.Bernoulli(draw.randrange(100))]
    if not swept and draw.random() < 0.2:
        fixed = draw.choice(blind)
        return lambda value: fixed, []
    build, grid = leaves[draw.choice(sorted(leaves))]
    if swept:
        return build, grid if draw.random() < 0.5 else grid[::-1]
    own = build(draw.choice(grid))
    return lambda value: own, []


def with_nan(tree: Any, rows: list[int]) -> Any:
    """NaN in every floating-point tensor of some rows."""
    if isinstance(tree, torch.Tensor):
        if not tree.is_floating_point():
            return tree
        poisoned = tree.clone()
        poisoned[rows] = math.nan
        return poisoned
    if isinstance(tree, dict):
        return {key: with_nan(value, rows) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(with_nan(value, rows) for value in tree)
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_run_replay_and_sweep_are_one(shape: str, seed: int) -> None:
    toy = make_toy(shape, seed)
    model = wrap(toy).eval().double()
    inputs, context = (to_dtype(tree, torch.float64) for tree in toy.batch(ROWS, seed))
    inputs = with_nan(inputs, [3, 11])
    trajectory = model.unroll(inputs, **context)
    trajectory = dataclasses.replace(trajectory, row_ids=torch.arange(100, 100 + ROWS))
    draw, exits_seen = random.Random(seed), set()
    drawn = [random_policy(draw, DEPTH, swept=True) for _ in range(POLICIES)]
    for build, grid in drawn if FULL else drawn[SHAPES.index(shape) % 2 :: 2]:
        made = as_policy_grid(build, grid, trajectory)
        assert made.places(trajectory) is not None, build(grid[0])  # read off one pass
        swept = made.exit_steps(trajectory)
        later = made.exits_get_later
        assert later is not None
        assert bool(((swept[1:] - swept[:-1]) * (1 if later else -1) >= 0).all())
        for policy, steps in zip(made.policies, swept, strict=True):
            replayed = trajectory.replay(policy)
            assert torch.equal(replayed.exit_step, steps), policy
        for place in (0, len(grid) // 2, -1):
            ran = model(inputs, policy=made.policies[place], row_ids=trajectory.row_ids, **context)
            assert torch.equal(ran.exit_step, swept[place]), made.policies[place]
            expected = trajectory.outputs[torch.arange(ROWS), ran.exit_step - 1]
            torch.testing.assert_close(ran.outputs, expected, equal_nan=True)
            exits_seen.update(ran.exit_step.tolist())
    assert exits_seen == set(range(1, NUM_STEPS + 1))


def test_the_policies_are_nested_as_deep_as_they_should() -> None:
    def depth(policy: ExitPolicy) -> int:
        return 1 + max((depth(part) for part in policy.parts()), default=-1)

    draw = random.Random(0)
    made = [build(grid[0]) for build, grid in (random_policy(draw, DEPTH, swept=True) for _ in range(POLICIES))]
    assert max(map(depth, made)) == DEPTH
    assert all(isinstance(policy, ExitPolicy) for policy in made)
    assert all(policies.from_dict(policy.to_dict()) == policy for policy in made)
    assert (
        ponder.Trajectory(torch.zeros(0, NUM_STEPS, 3), torch.zeros(0, NUM_STEPS), torch.arange(0))
        .replay(made[0])
        .exit_step.tolist()
        == []
    )
