"""Synthetic streams by the thousand, on which `Live`'s rule and ledger may break their promise in 5%.

The cheap model is fixed; a doubt is right in its setting's first half. The ledger is broken if more was missed at any
moment than it allows, the promise if more answers were wrong than the level allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder.cascade.live_rule import AuditRule, Outcome, Standing
from ponder.statistics.ledger import Ledger

__all__ = ["SETTINGS", "redrawn"]

LEVEL = 0.2


@dataclass(frozen=True)
class _Moment:
    """What a setting sees before a row: all but the coin.

    Args:
        place: Share of the stream that has passed.
        sorted_class: Number of the class whose turn it is, in a stream that is sorted by class.
        doubt: The doubt of the cheap model.
        probability: The audit probability that the rule chose.
        draw: A number in [0, 1).
    """

    place: float
    sorted_class: int
    doubt: float
    probability: float
    draw: float


Differs = Callable[[_Moment], bool]
SETTINGS: Mapping[str, Differs] = {
    "no drift": lambda now: now.draw < now.doubt,
    "new classes after half": lambda now: now.draw < now.doubt + (0.3 if now.place > 0.5 else 0.0),
    "sorted by class": lambda now: now.draw < (0.6 if now.sorted_class % 4 == 3 else now.doubt / 2),
    "an adversary": lambda now: now.probability < 0.4,
}
"""Whether the reference differs. The adversary lets the cheap model be wrong wherever an audit is improbable."""


def redrawn(setting: str, streams: int, rows: int) -> dict[str, Any]:
    """Return in how many streams the bound and the promise were broken at any time."""
    ledgers = promises = 0
    asked = list[float]()
    wrong = list[float]()
    bounds = list[float]()
    for seed in range(streams):
        found = _stream(SETTINGS[setting], rows, np.random.default_rng(seed))
        ledgers += found.ledger_broken
        promises += found.promise_broken
        asked.append(found.asked / rows)
        wrong.append(found.missed / rows)
        bounds.append(found.bound / rows)
    means = {"asked": asked, "wrong": wrong, "bound": bounds}
    counts = {"setting": setting, "level": LEVEL, "streams": streams}
    counts |= {"ledgers_broken": ledgers, "promises_broken": promises}
    return counts | {name: round(float(np.mean(values)), 5) for name, values in means.items()}


@dataclass
class _Stream:
    """What happened on a stream."""

    asked: int = 0
    missed: int = 0
    bound: int = 0
    ledger_broken: bool = False
    promise_broken: bool = False


def _stream(differs: Differs, rows: int, draw: np.random.Generator) -> _Stream:
    """Answer a stream as `Live` does: the rule chooses, the gate keeps the bound within the level."""
    rule = AuditRule()
    ledger = Ledger()
    found = _Stream()
    doubts = draw.beta(0.3, 3.0, rows).tolist()
    coins = draw.random(rows).tolist()
    chances = draw.random(rows).tolist()
    for row in range(rows):
        within = LEVEL * (row + 1)
        standing = Standing(LEVEL, row, rows - row, row, ledger)
        probability = _gated(rule.audit_probability(doubts[row], standing), ledger, within)
        moment = _Moment(row / rows, row * 20 // rows, doubts[row], probability, chances[row])
        wrong = differs(moment)
        audited = coins[row] < probability
        if probability < 1.0:
            ledger.answer(probability, audited=audited)
            if audited:
                ledger.settle(probability, differs=wrong)
        if audited:
            rule.learn(Outcome(doubts[row], wrong, probability))
        found.asked += audited
        found.missed += wrong and not audited
        found.ledger_broken |= found.missed > ledger.bound
        found.promise_broken |= found.missed > within
    found.bound = ledger.bound
    return found


def _gated(probability: float, ledger: Ledger, within: float) -> float:
    """Return an audit probability, or 1 if the bound could then pass what the level allows."""
    if probability < 1.0 and ledger.bound_after(probability) > within:
        return 1.0
    return probability
