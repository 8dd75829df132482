"""p-values against plain Python, and the promise that they keep."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ponder.statistics.bounds import (
    BOUNDS,
    binomial_cdf,
    check_losses,
    most_failures_in_batch,
    rows_needed,
    upper_bound,
)


def exact_cdf(k: int, n: int, p: float) -> float:
    q = Fraction(p)
    return float(sum(math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k + 1)))


def oracle(bound: str, losses: list[float], level: float) -> float:
    n = len(losses)
    mean = math.fsum(losses) / len(losses)
    if bound == "exact_binomial":
        return exact_cdf(round(sum(losses)), n, level)
    if bound == "hoeffding_bentkus":
        a = min(mean, level)
        h = (a * math.log(a / level) if a else 0.0) + (1 - a) * math.log((1 - a) / (1 - level))
        return min(
            math.exp(-n * h), math.e * exact_cdf(math.ceil(math.fsum(losses) - 1e-9), n, level), 1.0
        )
    wealth = 0.0
    best = 0.0
    seen = []
    variance = 0.25
    spread = 0.0
    for i, place in enumerate(np.random.default_rng(n).permutation(n), start=1):
        loss = losses[place]
        stake = min(math.sqrt(2 * math.log(20) / (n * variance)), 0.999 / (1 - level))
        wealth += math.log1p(stake * (level - loss))
        best = max(best, wealth) if i > 1 else wealth
        seen.append(loss)
        spread += (loss - (0.5 + math.fsum(seen)) / (i + 1)) ** 2
        variance = (0.25 + spread) / (i + 1)
    return min(math.exp(-best), 1.0)


def p_values(losses: Any, level: float, bound: str) -> Any:
    return BOUNDS[bound].p_values(losses, level)


@pytest.mark.parametrize("bound", sorted(BOUNDS))
@pytest.mark.parametrize("rows", [1, 40, 200])
@pytest.mark.parametrize("level", [0.02, 0.3])
def test_p_values_equal_plain_python(bound: str, rows: int, level: float) -> None:
    rng = np.random.default_rng(rows)
    losses = (rng.random((rows, 4)) < [0.0, 0.02, 0.3, 1.0]).astype(float)
    if bound != "exact_binomial":
        losses *= rng.random((rows, 1))
    found = p_values(losses, level, bound)
    assert found == pytest.approx(
        [oracle(bound, column, level) for column in losses.T.tolist()], rel=1e-9, abs=1e-300
    )


def test_betting_takes_gains() -> None:
    losses = np.where(np.random.default_rng(0).random((300, 1)) < 0.1, -1.0, 0.0)
    assert p_values(losses, 0.05, "betting") < p_values(np.maximum(losses, 0), 0.05, "betting")


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_no_bound_promises_too_often(bound: str) -> None:
    rng = np.random.default_rng(1)
    level = 0.1
    draws = 1000
    for rows in (30, 300):
        losses = (rng.random((rows, draws)) < level).astype(
            float
        )  # the mean is the level: the worst case
        assert (p_values(losses, level, bound) <= 0.05).mean() < 0.05 + 3 * math.sqrt(
            0.05 * 0.95 / draws
        )


@pytest.mark.parametrize("bound", sorted(BOUNDS))
@pytest.mark.parametrize("level", [0.01, 0.2])
def test_rows_needed_is_the_least_number(bound: str, level: float) -> None:
    rows = rows_needed(level, 0.95)
    assert p_values(np.zeros((rows, 1)), level, bound) <= 0.05 or bound == "betting"
    assert p_values(np.zeros((rows - 1, 1)), level, bound) > 0.05


@pytest.mark.parametrize(("failures", "rows"), [(0, 50), (3, 50), (50, 50), (7, 4000)])
def test_upper_bound_is_the_lowest_level_that_passes(failures: int, rows: int) -> None:
    level = upper_bound(failures, rows, 0.95)
    if failures == rows:
        assert level == 1.0
    else:
        assert (
            binomial_cdf(rows, level)[failures] <= 0.05 < binomial_cdf(rows, level - 1e-6)[failures]
        )


def hypergeometric_cdf(k: int, batch: int, failing: int, drawn: int) -> Fraction:
    ways = sum(math.comb(failing, i) * math.comb(batch - failing, drawn - i) for i in range(k + 1))
    return Fraction(ways, math.comb(batch, drawn))


@pytest.mark.parametrize("drawn", [0, 20, 95, 300])
@pytest.mark.parametrize("others", [0, 5, 400])
@pytest.mark.parametrize("allowed", [0, 4, 20])
def test_failures_in_a_batch_are_those_that_drawing_rejects(
    drawn: int, others: int, allowed: int
) -> None:
    found = most_failures_in_batch(drawn, others, allowed, 0.95)
    if others <= allowed:
        assert found == drawn
        return
    for k in range(drawn + 1):
        rejected = hypergeometric_cdf(k, drawn + others, allowed + 1 + k, drawn) <= Fraction(1, 20)
        assert rejected == (k <= found)


def test_losses_that_a_bound_says_nothing_of_are_refused() -> None:
    for losses, bound in (
        ([[0.5]], "exact_binomial"),
        ([[1.5]], "betting"),
        ([[-0.5]], "hoeffding_bentkus"),
    ):
        with pytest.raises(ValueError, match="losses: expected"):
            check_losses(np.array(losses), bound)
