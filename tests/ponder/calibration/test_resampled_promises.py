"""The promises of risk control on resampled populations with ties, rows that are NaN, and callables that tell no order.

The population is finite and its risks are known exactly, so that each resampling either keeps the promise or breaks it;
no more than δ may break it. The level lies just under the risk of the first value that is tested, and in the middle of
the grid: there a wrong bound shows. Small by default; `PONDER_FULL=1` draws 500 resamplings of each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

import ponder
from ponder import policies
from ponder.calibration import BOUNDS
from ponder.calibration.control import find_low
from ponder.calibration.risks import losses_by_step
from ponder.policies import Confidence, Patience, Quantile

TRIALS = 500 if os.environ.get("PONDER_FULL") else 30
SEEDS = (11, 12, 13, 14)
POPULATION, ROWS, STEPS, DELTA = 4000, 200, 4, 0.1


@cache
def population() -> ponder.Trajectory:
    """Rows whose logits are whole numbers, so that many tie, with 6% NaN at some step or at all."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(3, (POPULATION,), generator=generator)
    drift = torch.nn.functional.one_hot(labels, 3)[:, None] * torch.arange(1, STEPS + 1)[:, None]
    outputs = (drift + 1.5 * torch.randn(POPULATION, STEPS, 3, generator=generator)).round()
    hazards = (torch.randn(POPULATION, STEPS, generator=generator)).round()
    bad = torch.rand(POPULATION, generator=generator)
    outputs[bad < 0.03, 0] = math.nan
    outputs[(bad > 0.03) & (bad < 0.05), 2:] = math.nan
    outputs[bad > 0.99] = math.nan
    hazards[(bad > 0.05) & (bad < 0.06)] = math.nan
    return ponder.Trajectory(outputs, hazards, torch.arange(POPULATION), labels=labels, task="classification")


def resampled(whole: ponder.Trajectory, sample: torch.Tensor) -> ponder.Trajectory:
    """Rows of a population as a sample drew them: each draw is a row of its own."""
    return replace(whole.map(lambda tensor: tensor[sample]), row_ids=torch.arange(len(sample)))


def gates(t: float) -> policies.ExitPolicy:
    """Three ways to leave of which nothing is known before."""
    if t < 0.3:
        return Quantile(0.6).after(2)
    return Confidence(0.85) if t < 0.6 else Patience(1) | Quantile(0.9)


KINDS: dict[str, tuple[Any, list[float] | None]] = {
    "ties": (Confidence, None),
    "whole numbers": (lambda n: (Patience(int(n)) | Quantile(0.95)).after(2), [1, 2, 3]),
    "callable": (gates, [0.2, 0.5, 0.8]),
    "callable, the other way": (gates, [0.8, 0.5, 0.2]),
}


@cache
def exits(kind: str) -> dict[float, torch.Tensor]:
    """Where the population leaves under every value, from runs of each policy alone."""
    curve = population().sweep(*KINDS[kind])
    return {
        point.threshold: population().replay(policy).exit_step
        for point, policy in zip(curve.points, curve.policies, strict=True)
    }


def true_risks(kind: str, risk: Any, bound: str) -> dict[float, float]:
    """The risk of every value over the population."""
    losses = losses_by_step(risk, population(), find_low(bound))
    rows = torch.arange(POPULATION)
    return {value: float(losses[rows, steps - 1].mean()) for value, steps in exits(kind).items()}


def levels(risks: dict[float, float], first: float) -> list[float]:
    """Just under the risk of the first value, where a level can lie there, and in the middle of the risks."""
    spread = sorted(set(risks.values()))
    chosen = [risks[first] - 1e-6, max(0.03, (spread[0] + spread[len(spread) // 2]) / 2)]
    return [level for level in chosen if 0.0 < level < 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("risk", ["disagreement", "error", "error_gap"])
@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_promises_are_broken_no_more_often_than_said(bound: str, risk: Any, kind: str) -> None:
    whole, (like, grid) = population(), KINDS[kind]
    risks = true_risks(kind, risk, bound)
    first = ponder.control_risk(whole, like, risk=risk, level=0.5, bound=bound, grid=grid).policy.path[0][0]
    certified = 0
    for seed, level in product(SEEDS, levels(risks, first)):
        if seed != SEEDS[0] and certified:
            break  # more are drawn only where nothing was certified

        def draw(generator: torch.Generator, level: float = level) -> float | None:
            sample = torch.randint(POPULATION, (ROWS,), generator=generator)
            done = ponder.control_risk(
                resampled(whole, sample),
                like,
                risk=risk,
                level=level,
                confidence=1 - DELTA,
                bound=bound,
                grid=grid,
            )
            return None if done.policy.threshold_value is None else risks[done.policy.threshold_value]

        broken, passed = count(draw, level, seed)
        certified += passed
        print(
            f"{bound}, {risk}, {kind}, level {level:.4f}: broken {broken / TRIALS:.3f}, certified {passed / TRIALS:.3f}"
        )
        assert broken / TRIALS <= DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / TRIALS)
    assert certified  # a bound that never speaks would keep every promise


def count(draw: Callable[[torch.Generator], float | None], level: float, seed: int) -> tuple[int, int]:
    """How many resamplings break the promise, and how many certify something."""
    generator = torch.Generator().manual_seed(seed)
    found = [draw(generator) for _ in range(TRIALS)]
    return sum(each is not None and each > level for each in found), sum(each is not None for each in found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_conformal_control_keeps_the_mean(kind: str) -> None:
    whole, (like, grid) = population(), KINDS[kind]
    risks = true_risks(kind, "disagreement", "conformal")
    first = ponder.control_risk(whole, like, level=0.5, bound="conformal", grid=grid).policy.path[0][0]
    level = 0.01 + max(risks[first], sorted(set(risks.values()))[len(set(risks.values())) // 2])
    generator, seen = torch.Generator().manual_seed(13), []
    for _ in range(TRIALS):
        sample = torch.randint(POPULATION, (ROWS,), generator=generator)
        part = resampled(whole, sample)
        done = ponder.control_risk(part, like, level=level, bound="conformal", grid=grid)
        seen.append(0.0 if done.policy.threshold_value is None else risks[done.policy.threshold_value])
    mean = sum(seen) / TRIALS
    spread = math.sqrt(sum((value - mean) ** 2 for value in seen) / TRIALS)
    print(f"conformal, {kind}, level {level:.4f}: mean risk {mean:.4f}")
    assert mean <= level + 3 * spread / math.sqrt(TRIALS)
    assert max(seen) > 0.0
