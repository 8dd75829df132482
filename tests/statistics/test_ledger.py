"""The ledger: an oracle in plain Python, redraws of its promise in every setting, and its state."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ponder.errors import ArgumentError
from ponder.statistics import Ledger
from ponder.statistics.ledger import rises_by_rate

RATES = [0.005 * (1.2 / 0.005) ** (n / 19) for n in range(20)]
USUAL = [math.exp(-0.5 * (math.log(rate / 0.08) / 0.9) ** 2) for rate in RATES]
WEIGHTS = [0.75 * usual / sum(USUAL) + 0.25 / 20 for usual in USUAL]


def cost_by_hand(rate: float, probability: float) -> float:
    left = 1 - (1 - probability) * math.exp(rate)
    return -math.log(left / probability) if left > 0 else math.inf


def bound_by_hand(rows: list[tuple[float, bool, bool | None]], late: bool, delta: float) -> int:
    """Count every candidate in turn, after every row; rows are (probability, audited, differs or pending)."""
    smallest = 0
    for end in range(1, len(rows) + 1):
        seen = rows[:end]
        smallest += not seen[-1][1]
        costs = []
        for rate in RATES:
            prices = [cost_by_hand(rate, probability) for probability, _, _ in seen]
            lost = math.inf in prices
            caught = zip(prices, seen, strict=True)
            costs.append(math.inf if lost else sum(p for p, row in caught if row[1] and row[2]))
        missed = 0
        while (
            missed < smallest
            and math.fsum(
                weight * math.exp(rate * (missed + 1) - cost)
                for weight, rate, cost in zip(WEIGHTS, RATES, costs, strict=True)
            )
            < 1 / delta
        ):
            missed += 1
        smallest = min(smallest, missed)
    wrong = sum(audited and differs is not False for _, audited, differs in rows)
    return smallest + (wrong if late else 0)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("least", [0.3, 0.02, 0.002])
def test_the_bound_is_the_largest_number_that_is_left(late: bool, least: float) -> None:
    draw = random.Random(0)
    ledger = Ledger(0.9, late)
    rows = list[tuple[float, bool, bool]]()
    for row in range(120):
        probability = least if row == 70 else draw.uniform(0.3, 1.0)
        rows.append((probability, draw.random() < 0.4, draw.random() < 0.2))
        ledger.answer(probability, audited=rows[-1][1])
        if rows[-1][1]:
            ledger.settle(probability, differs=rows[-1][2])
        if row % 10 == 9:
            assert ledger.bound == bound_by_hand(list(rows), late, 0.1)
    assert 0 < ledger.missed_at_most <= ledger.unaudited
    assert ledger.caught == sum(audited and differs for _, audited, differs in rows)


def test_an_audit_counts_as_caught_until_it_has_an_outcome() -> None:
    def some(pending: int, late: bool = False) -> Ledger:
        ledger = Ledger(0.95, late)
        for _ in range(pending):
            ledger.answer(0.3, audited=True)
        for _ in range(300):
            ledger.answer(0.3, audited=False)
        return ledger

    waiting = some(5)
    agreed = some(5)
    for _ in range(5):
        agreed.settle(0.3, differs=False)
    assert agreed.bound == some(0).bound < waiting.bound
    assert some(5, late=True).bound == waiting.bound + 5
    differing = some(5)
    for _ in range(5):
        differing.settle(0.3, differs=True)
    assert differing.bound == waiting.bound
    assert differing.pending == 0


def test_the_state_goes_through_json_and_a_rise_is_what_a_catch_costs() -> None:
    ledger = Ledger(0.9)
    for row in range(400):
        ledger.answer(0.1 if row % 3 else 0.25, audited=row % 5 == 0)
        if row % 10 == 0:
            ledger.settle(0.1 if row % 3 else 0.25, differs=row % 20 == 0)
    again = Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    assert again == ledger
    rises = rises_by_rate([0.1, 0.3, 1.0])
    usable = np.isfinite(rises).all(0)
    assert (np.diff(rises[:, usable], axis=0) < 0).all()
    assert (rises[2] == 0).all()
    # Forty audits are pending; if none were, one rate alone would bound no less than all.
    assert ledger.bounds_by_rate().min() < ledger.worst
    for row in range(400):
        if row % 5 == 0 and row % 10:
            ledger.settle(0.1 if row % 3 else 0.25, differs=True)
    assert ledger.caught_costs == pytest.approx(ledger.costs)
    assert ledger.bound <= ledger.bounds_by_rate().min()
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ArgumentError, match="audit_probability"):
            ledger.answer(wrong, audited=False)


def fixed(rate: Callable[[int], float]) -> Any:
    """Rows that disagree at a rate of their own, audited with probability 0.2."""
    return lambda row, wealth, draw: (
        draw.random(len(wealth)) < rate(row),
        np.full(len(wealth), 0.2),
    )


def adversary(row: int, wealth: Any, draw: Any) -> Any:
    """Sees all but the coin: always disagrees, and takes the audit by which the wealth may jump."""
    return np.ones(len(wealth), dtype=bool), np.where(wealth > 0, 0.55, 0.12)


SETTINGS = {
    "no drift": fixed(lambda row: 0.3),
    "new classes after half": fixed(lambda row: 0.1 if row < 300 else 0.9),
    "sorted by class": fixed(lambda row: 1.0 if row // 60 % 2 else 0.02),
    "probability by row": lambda row, wealth, draw: (
        draw.random(len(wealth)) < 0.5,
        draw.uniform(0.1, 0.9, len(wealth)),
    ),
    "an adversary": adversary,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_of_a_thousand_streams_at_most_five_percent_are_broken_at_any_time(setting: str) -> None:
    streams = 1000
    draw = np.random.default_rng(0)
    rates = np.array(RATES)
    costs = np.zeros((streams, len(rates)))
    missed = np.zeros(streams)
    wealth = np.zeros(streams)
    broken = np.zeros(streams, dtype=bool)
    for row in range(600):
        differs, probability = SETTINGS[setting](row, wealth, draw)
        caught = differs & (draw.random(streams) < probability)
        with np.errstate(divide="ignore"):
            left = np.maximum(1 - (1 - probability[:, None]) * np.exp(rates), 0)
            price = -np.log(left / probability[:, None])
        costs = np.where(np.isinf(price), np.inf, costs + np.where(caught[:, None], price, 0.0))
        missed += differs & ~caught
        wealth = np.logaddexp.reduce(missed[:, None] * rates - costs + np.log(WEIGHTS), axis=1)
        broken |= wealth >= math.log(20)
    # One-sided limit of a binomial with 5%: mean 50, deviation 6.9. An exact bound is far below.
    assert broken.sum() <= 50
    assert missed.mean() > 50
