"""The bounds: against exact binomial tails, published values, a plain Python loop, and their promise by simulation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from ponder.calibration import BOUNDS, bounds, p_values, rows_needed
from ponder.calibration.bounds import binomial_cdf
from tests.ponder.checks import refused

every_bound = pytest.mark.parametrize("bound", sorted(BOUNDS))


@given(st.integers(1, 400), st.floats(0.001, 0.999), st.data())
def test_binomial_tails_are_exact(rows: int, p: float, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, rows))
    expected = stats.binom.cdf(successes, rows, p)
    assert float(binomial_cdf(torch.tensor([successes]), rows, p)) == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_published_small_values() -> None:
    # Tables of the binomial distribution: P(Bin(10, 0.5) ≤ 2) = 56/1024, P(Bin(20, 0.1) ≤ 0) = 0.1216.
    assert float(binomial_cdf(torch.tensor([2]), 10, 0.5)) == pytest.approx(56 / 1024)
    assert float(binomial_cdf(torch.tensor([0]), 20, 0.1)) == pytest.approx(0.1216, abs=5e-5)
    # "Rule of three": no event in n rows says that the rate is at most about 3/n with confidence 0.95.
    assert float(p_values(torch.zeros(300, 1), 3 / 300, "exact_binomial")) == pytest.approx(0.05, abs=2e-3)


def hoeffding_bentkus(losses: list[float], level: float) -> float:
    n, mean = len(losses), math.fsum(losses) / len(losses)

    def entropy(a: float, b: float) -> float:
        first = 0.0 if a == 0 else a * math.log(a / b)
        return first + (0.0 if a == 1 else (1 - a) * math.log((1 - a) / (1 - b)))

    hoeffding = math.exp(-n * entropy(min(mean, level), level))
    bentkus = math.e * stats.binom.cdf(math.ceil(math.fsum(losses) - 1e-9), n, level)
    return min(hoeffding, bentkus, 1.0)


def betting(losses: list[float], level: float) -> float:
    capital = best = 1.0
    mean, squares = 0.5, 0.25  # estimates before any row
    seen: list[float] = []
    for loss in losses:
        variance = squares / (len(seen) + 1)
        stake = min(math.sqrt(2 * math.log(20) / (len(losses) * variance)), 0.999 / (1 - level))
        capital *= 1 + stake * (level - loss)
        best = max(best, capital)
        seen.append(loss)
        mean = (0.5 + math.fsum(seen)) / (len(seen) + 1)
        squares += (loss - mean) ** 2
    return min(1.0, 1 / best)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.01, 0.9))
def test_bounds_equal_their_formulas(losses: list[float], level: float) -> None:
    column = torch.tensor(losses, dtype=torch.float64).unsqueeze(1)
    assert float(p_values(column, level)) == pytest.approx(hoeffding_bentkus(losses, level), rel=1e-7, abs=1e-12)
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(len(losses))).tolist()
    shuffled = [losses[place] for place in order]
    assert float(p_values(column, level, "betting")) == pytest.approx(betting(shuffled, level), rel=1e-7)
    binary = column.round()
    exact = stats.binom.cdf(int(binary.sum()), len(losses), level)
    assert float(p_values(binary, level, "exact_binomial")) == pytest.approx(exact, rel=1e-7, abs=1e-12)


@every_bound
def test_rows_may_come_in_any_order(bound: str) -> None:
    """Sorted by loss, all rows without one come first, and a bet that follows them would win in every data set."""
    generator = torch.Generator().manual_seed(0)
    level, delta, trials = 0.1, 0.1, 4000
    losses = (torch.rand(200, trials, generator=generator) < level).double().sort(dim=0).values
    rate = float((p_values(losses, level, bound) <= delta).double().mean())
    assert rate <= delta + 3 * math.sqrt(delta * (1 - delta) / trials)


@every_bound
def test_a_p_value_below_delta_is_as_rare_as_delta(bound: str) -> None:
    """At a mean just above the level, at most a share δ of the data sets may say otherwise."""
    generator = torch.Generator().manual_seed(0)
    level, delta, trials = 0.1, 0.1, 4000
    for rows in (30, 200):
        losses = (torch.rand(rows, trials, generator=generator) < level).double()
        rate = float((p_values(losses, level, bound) <= delta).double().mean())
        assert rate <= delta + 3 * math.sqrt(delta * (1 - delta) / trials)
        if rows == 200 and bound == "exact_binomial":
            assert rate > 0.04  # and a bound that never speaks would be worthless


@pytest.mark.parametrize("bound", ["betting"])
def test_gains_count_where_losses_may_be_negative(bound: str) -> None:
    generator = torch.Generator().manual_seed(1)
    gaps = torch.randint(-1, 2, (500, 1), generator=generator).double()
    assert float(p_values(gaps - 0.0, 0.2, bound)) < float(p_values(gaps.clamp(min=0), 0.2, bound))
    worse = (torch.rand(300, 3000, generator=generator) < 0.35).double() - 0.25  # mean 0.1, from −0.25 to 0.75
    assert float((p_values(worse, 0.1, bound) <= 0.1).double().mean()) <= 0.1 + 0.02


@every_bound
@pytest.mark.parametrize(("level", "confidence"), [(0.02, 0.95), (0.1, 0.9), (0.3, 0.99)])
def test_the_rows_that_are_needed(bound: str, level: float, confidence: float) -> None:
    rows = rows_needed(level, confidence, bound)
    assert float(p_values(torch.zeros(rows, 1), level, bound)) <= 1 - confidence
    assert float(p_values(torch.zeros(rows - 1, 1), level, bound)) > 1 - confidence
    if bound != "betting":
        assert rows == math.ceil(math.log(1 - confidence) / math.log(1 - level))


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_the_rows_that_are_needed_grow_as_the_level_falls(bound: str) -> None:
    levels = [0.3, 1e-2, 1e-3, 1e-5, 1e-7, 1e-12, 1e-300, 1e-320]
    rows = [rows_needed(level, 0.95, bound) for level in levels]
    assert rows == sorted(rows)
    assert all(
        n >= (1 - 2e-3) * math.log(20) / -math.log1p(-level) for n, level in zip(rows[:-1], levels, strict=False)
    )


def test_shares_are_checked() -> None:
    for wrong in (0.0, 1.0, math.nan, "0.1"):
        with refused("level"):
            rows_needed(wrong, 0.95)
        with refused("confidence"):
            rows_needed(0.1, wrong)
        with refused("level"):
            p_values(torch.zeros(3, 1), wrong)


def test_unknown_bounds_are_refused() -> None:
    with refused("bound", "hoeffding_bentkus", "'gauss'"):
        p_values(torch.zeros(3, 1), 0.1, "gauss")


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_losses_of_which_a_bound_says_nothing_are_refused(bound: str) -> None:
    """NaN was no loss at all to `exact_binomial`, and gains were set off against losses."""
    below = -1.5 if bound == "betting" else -0.5
    wrong = [math.nan, 1.5, below, math.inf] + ([0.004] if bound == "exact_binomial" else [])
    for value in wrong:
        with refused("losses", "values from"):
            p_values(torch.tensor([[0.0], [value]]), 0.1, bound)
    for shape in ((3,), (0, 2), (2, 2, 2)):
        with refused("losses", f"shape {shape}"):
            p_values(torch.zeros(shape), 0.1, bound)


def test_betting_walks_over_the_thresholds_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows at 200 thresholds took ten tensors of 1.6 GB at a time."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for each in made if isinstance(made, list | tuple) else [made]:
                self.size = max(self.size, each.numel() if isinstance(each, torch.Tensor) else 0)
            return made

    losses = torch.rand(50, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at_once = BOUNDS["betting"].p_values(losses, 0.4)
    for most, widest in ((50 * 5, 5), (10, 1)):
        monkeypatch.setattr(bounds, "_LOSSES_AT_ONCE", most)
        with Largest() as largest:
            blockwise = BOUNDS["betting"].p_values(losses, 0.4)
        assert largest.size == 50 * widest
        assert torch.equal(blockwise, at_once)
