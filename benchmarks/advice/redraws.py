"""Redraws of the race on simulated models: a student, a model with exits, and both in int8."""

from __future__ import annotations

from typing import Any

import numpy as np

from ponder.advice.promises import Recorded, promise
from ponder.advice.specs import WAYS, Depth, WaySpec
from ponder.calibration.records import Record

__all__ = ["redraw"]

POPULATION = 20_000
STEPS = 4
CLASSES = 4
CONFIDENCE = 0.95
_INT8 = 0.5
"""Seconds of the model in int8 for a text, as a multiple of the model's, to choose the winner."""


def redraw(redraws: int, rows: int, level: float) -> dict[str, Any]:
    """Certify the ways of a race on many draws of its texts, and count the broken promises."""
    whole = _population(np.random.default_rng(0))
    draw = np.random.default_rng(1)
    per_way = 1.0 - (1.0 - CONFIDENCE) / len(WAYS)
    broken = dict.fromkeys(WAYS, 0)
    met = dict(broken)
    any_broken = 0
    winner_broken = 0
    for _ in range(redraws):
        seen = whole.taken(draw.integers(0, POPULATION, rows))
        seen = Recorded(np.arange(rows), seen.exits, seen.student, seen.int8)
        wrong = dict[WaySpec, bool]()
        costs = dict[WaySpec, float]()
        for way in WAYS:
            made = promise(seen, way, level, per_way)
            wrong[way] = made.met and _risk(whole, way, made.policy) > level
            met[way] += made.met
            broken[way] += wrong[way]
            costs[way] = _cost(way, made.depth) if made.met else 1.0
        any_broken += any(wrong.values())
        winner_broken += wrong[min(costs, key=lambda way: costs[way])]
    settings = {
        "redraws": redraws,
        "rows": rows,
        "level": level,
        "confidence": CONFIDENCE,
        "population": POPULATION,
    }
    counts = {
        way.name: {"met": met[way] / redraws, "broken": broken[way] / redraws} for way in WAYS
    }
    return {
        "settings": settings,
        "any_broken": any_broken / redraws,
        "winner_broken": winner_broken / redraws,
        "ways": counts,
    }


def _population(draw: np.random.Generator) -> Recorded:
    """Simulate texts of varying ease: evidence grows with the step; student and int8 are noisier."""
    ease = draw.gamma(2.0, 2.5, size=(POPULATION, 1, 1))
    truth = np.eye(CLASSES)[draw.integers(0, CLASSES, POPULATION)][:, None] * ease
    noise = draw.normal(size=(POPULATION, STEPS, CLASSES)) * np.array([1.6, 1.0, 0.5, 0.1])[:, None]
    exits = truth + noise
    student = truth[:, 0] + draw.normal(size=(POPULATION, CLASSES)) * 1.3
    student -= np.log(np.exp(student).sum(1, keepdims=True))
    int8 = exits + draw.normal(size=exits.shape) * 0.02
    return Recorded(np.arange(POPULATION), exits, student, int8)


def _risk(whole: Recorded, way: WaySpec, policy: Any) -> float:
    """Return the disagreement of a policy with the full model on the whole population."""
    deep: Any = whole.int8 if way.int8 else whole.exits
    if way.student:
        assert whole.student is not None
        behind = deep if way.depth is Depth.EXITS else deep[:, -1:]
        deep = np.concatenate([whole.student[:, None], behind], axis=1)
    record = Record(deep, None, whole.ids, task="classification")
    steps = record.exit_steps(policy)
    answers = deep[np.arange(POPULATION), steps - 1].argmax(-1)
    return float((answers != whole.exits[:, -1].argmax(-1)).mean())


def _cost(way: WaySpec, depth: Any) -> float:
    """Return the mean seconds of a text, as a multiple of the full model's."""
    steps = 1 if way.depth is Depth.FULL else STEPS
    behind = np.minimum((depth - way.student) / steps, 1.0).mean()
    seconds = _INT8 if way.int8 else 1.0
    return float(0.03 * way.student + seconds * behind)
