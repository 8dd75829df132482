"""Certify each way on the same rows, draw the rows that certify again, and race the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.anything.problems import Problem
from benchmarks.anything.rivals import PUBLISHED, AdaptiveConsistency, InstancePruning
from ponder import calibration, policies
from ponder._utils.rows import CHOOSE_AND_CERTIFY, split
from ponder.calibration import Record
from ponder.calibration.certifying import certainties
from ponder.calibration.cost import wall_clock
from ponder.calibration.draws import certify_draws

__all__ = ["CONFIDENCE", "LEVELS", "measured", "redrawn", "timed"]

LEVELS = (0.01, 0.02)
CONFIDENCE = 0.95
REDRAWN = 1000
"""Rows that certify in a redraw."""
_PAIRS = 5
_SHARES = 1.0 / (1.0 + np.exp(-np.linspace(12.0, -4.0, 241)))
_CHANCES = np.geomspace(1e-9, 0.5, 241)
"""Margins, and probabilities that the leader changes, that are tried: fixed without any data."""


def measured(problem: Problem) -> list[dict[str, Any]]:
    """Return a row for each level and way: members asked and other answers, on fresh rows."""
    record = problem.ensemble.record(problem.rows)
    certifying = record.map(lambda values: values[: problem.certifying])
    fresh = record.map(lambda values: values[problem.certifying :])
    found = [
        {"way": way, "level": level, **_asked(problem, policy, fresh)}
        for level in LEVELS
        for way, policy in _certified(problem, certifying, level)
    ]
    return [*found, *_as_published(problem)]


def _certified(
    problem: Problem, certifying: Record, level: float
) -> Iterable[tuple[str, policies.ExitPolicy | None]]:
    """Yield each way with its policy; None where nothing could be promised."""
    found = problem.ensemble.certify(
        problem.rows[: problem.certifying],
        level=level,
        confidence=CONFIDENCE,
        tolerance=problem.tolerance,
    )
    yield "ours", found.policy if found.met else None
    steps = certifying.num_steps
    rivals: dict[str, tuple[Callable[[float], policies.ExitPolicy], Iterable[float]]] = {
        "same number for all": (lambda step: policies.FixedStep(int(step)), range(steps, 0, -1))
    }
    if problem.tolerance is None:
        rivals["margin"] = (policies.Margin, _SHARES)
    if problem.by_member is not None:
        size = problem.ensemble.block
        rivals["Beta rule"] = (lambda chance: AdaptiveConsistency(chance, size), _CHANCES)
        rivals["pruning"] = (lambda chance: InstancePruning(chance, size), _CHANCES)
    for way, (build, grid) in rivals.items():
        control = calibration.control_risk(
            certifying,
            build,
            risk=_risk(problem),
            level=level,
            confidence=CONFIDENCE,
            grid=grid,
        )
        yield way, control.policy if control.met else None


def _as_published(problem: Problem) -> list[dict[str, Any]]:
    """Return the rules as their authors set them, on the same fresh rows, after every member."""
    if problem.by_member is None:
        return []
    fresh = problem.by_member.record(problem.rows[problem.certifying :])
    return [
        {"way": way, "level": None, **_asked(problem, build(), fresh, block=1)}
        for way, build in PUBLISHED.items()
    ]


def _asked(
    problem: Problem, policy: policies.ExitPolicy | None, fresh: Record, block: int | None = None
) -> dict[str, Any]:
    """Return mean members, the factor that is saved, and the share of other answers."""
    count = problem.ensemble.members.count
    if policy is None:
        return {"members": float(count), "fewer": 1.0, "other": 0.0, "met": False}
    steps = fresh.exit_steps(policy)
    members = float(np.minimum(steps * (block or problem.ensemble.block), count).mean())
    other = float(_losses(problem, fresh, steps).mean())
    return {"members": members, "fewer": count / members, "other": other, "met": True}


def _losses(problem: Problem, record: Record, steps: Any) -> Any:
    """Return whether each row has another answer than that of all members, `(rows,)`."""
    outputs = record.outputs[np.arange(len(record)), steps - 1]
    last = record.outputs[:, -1]
    if problem.tolerance is not None:
        return np.abs(outputs - last)[:, 0] > problem.tolerance
    return outputs.argmax(-1) != last.argmax(-1)


def _risk(problem: Problem) -> Any:
    if problem.tolerance is None:
        return "disagreement"
    return calibration.Moved(problem.tolerance)


def redrawn(problem: Problem, draws: int) -> list[dict[str, Any]]:
    """Return, for each level, how many promises of ours were broken, of so many draws."""
    population = problem.ensemble.record(problem.rows)
    draw = np.random.default_rng(0)
    rows = []
    for level in LEVELS:
        risks = []
        fewer = []
        for _ in range(draws):
            drawn = draw.integers(len(population), size=REDRAWN)
            sample = population.map(partial(np.take, indices=drawn, axis=0))
            # A row that is drawn twice is two rows like those to come.
            sample = replace(sample, row_ids=np.arange(REDRAWN))
            asked = _asked(problem, _chosen(problem, sample, level), population)
            risks.append(asked["other"])
            fewer.append(asked["fewer"])
        broken = sum(risk > level for risk in risks)
        rows.append(
            {"level": level, "draws": draws, "broken": broken, "fewer": float(np.mean(fewer))}
        )
    return rows


def _chosen(problem: Problem, record: Record, level: float) -> policies.ExitPolicy | None:
    """Return the policy that `Ensemble.certify` would choose on a record."""
    if problem.ensemble.members.in_any_order:
        found = certify_draws(
            record, tolerance=problem.tolerance, level=level, confidence=CONFIDENCE
        )
    else:
        choosing, certifying = split(record.row_ids, CHOOSE_AND_CERTIFY)
        found = calibration.certify(
            record.map(lambda values: values[choosing]),
            record.map(lambda values: values[certifying]),
            certainties(record),
            level=level,
            confidence=CONFIDENCE,
        )
    return found.policy if found.met else None


def timed(problem: Problem) -> Mapping[str, float] | None:
    """Return how many times fewer seconds and members the certified ensemble takes."""
    if problem.whole is None:
        return None
    ensemble, rows = problem.timed or (problem.ensemble, problem.rows[problem.certifying :])
    ensemble.policy = problem.ensemble.policy  # certified last for the level 2%
    whole = problem.whole
    ratio = wall_clock(lambda: whole(rows), lambda: ensemble.predict(rows), pairs=_PAIRS)
    members = float(ensemble.predict(rows).exit_step.mean())
    return {
        "seconds": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "fewer": ensemble.members.count / members,
    }
