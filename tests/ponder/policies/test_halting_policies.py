"""Sampling and its quantile."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import ponder
from ponder.policies import Bernoulli, PolicyBatch, Quantile
from tests.ponder import oracles
from tests.ponder.checks import refused


def trajectory_of(hazards: list[float], rows: int = 1) -> ponder.Trajectory:
    logits = torch.tensor(hazards, dtype=torch.float64).logit().expand(rows, -1)
    return ponder.Trajectory(torch.zeros(rows, len(hazards), 2), logits, torch.arange(rows))


def test_the_oracles_generator_is_splitmix64() -> None:
    assert oracles.mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 with seed 0


@given(st.integers(-(2**80), 2**80), st.integers(-(2**63), 2**63 - 1))
@example(0, 0)
@example(-1, -1)
@example(2**64, 2**63 - 1)
def test_seeded_numbers_are_a_function_of_seed_and_row(seed: int, row: int) -> None:
    u = Bernoulli(seed).init(PolicyBatch(torch.tensor([row, 7]), 5))
    assert u.dtype == torch.float32
    assert u.tolist() == [oracles.uniform(seed, row), oracles.uniform(seed, 7)]


def test_seeded_numbers_are_uniform_over_rows_and_over_seeds() -> None:
    over_rows = Bernoulli(0).init(PolicyBatch(torch.arange(20_000), 5))
    over_seeds = torch.stack([Bernoulli(seed).init(PolicyBatch(torch.zeros(1).long(), 5))[0] for seed in range(2_000)])
    for u, rows in ((over_rows, 20_000), (over_seeds, 2_000)):
        assert bool(((u >= 0) & (u < 1)).all())
        assert u.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / rows))
        shares = torch.histc(u, bins=10, min=0, max=1) / rows
        assert bool((shares - 0.1).abs().max() < 4 * math.sqrt(0.09 / rows))


def test_no_row_of_the_default_seed_is_degenerate() -> None:
    """With u = 0 a row would leave at step 1 whatever its hazards; row 0 of seed 0 used to."""
    assert Bernoulli(0).init(PolicyBatch(torch.arange(3), 5)).min() > 0.001


def test_without_a_seed_every_call_draws_anew_from_the_global_generator() -> None:
    batch = PolicyBatch(torch.arange(100), 5)
    first, second = Bernoulli().init(batch), Bernoulli().init(batch)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(Bernoulli().init(batch), first)


def test_unseeded_sampling_replays_under_the_same_generator_state() -> None:
    trajectory = trajectory_of([0.3] * 6, rows=50)
    torch.manual_seed(9)
    first = trajectory.replay(Bernoulli()).exit_step
    torch.manual_seed(9)
    assert torch.equal(trajectory.replay(Bernoulli()).exit_step, first)
    assert not torch.equal(trajectory.replay(Bernoulli()).exit_step, first)


@pytest.mark.parametrize("policy", [Bernoulli(3), Bernoulli()], ids=str)
def test_sampled_exits_follow_the_halting_distribution(policy: Bernoulli) -> None:
    rows = 20_000
    trajectory = trajectory_of([0.2, 0.5, 0.1, 0.6, 0.9], rows)
    shares = torch.bincount(trajectory.replay(policy).exit_step, minlength=6)[1:].double() / rows
    torch.testing.assert_close(shares, trajectory.halting.pmf[0], atol=0.015, rtol=0)


@pytest.mark.parametrize(("q", "step"), [(0.0, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (1.0, 4)])
def test_q_exit_is_the_first_step_whose_cdf_is_above_q(q: float, step: int) -> None:
    assert trajectory_of([0.5, 0.5, 0.5, 0.5]).replay(Quantile(q)).exit_step.tolist() == [step]


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, math.inf, "0.5", None, True])
def test_q_outside_the_unit_interval_is_refused(q: object) -> None:
    with refused("q", "[0, 1]", repr(q)):
        Quantile(q)


@pytest.mark.parametrize("seed", [1.5, "1", True])
def test_seeds_are_whole_numbers(seed: object) -> None:
    with refused("seed", repr(seed), type_error=True):
        Bernoulli(seed)
