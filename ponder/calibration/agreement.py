"""Choose a kind of policy on some rows, and certify its threshold on others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from ponder._utils.checks import check_real, check_share
from ponder.calibration.bounds import binomial_cdf, upper_bound
from ponder.calibration.control import RiskControl, control_risk
from ponder.calibration.families import Family, FamilyLike, family_of
from ponder.calibration.records import Floats, Record, at_exits, check_fresh, check_record
from ponder.calibration.risks import RiskLike, losses_of
from ponder.calibration.sweeps import as_costs
from ponder.policies.base import FixedStep
from ponder.policies.certainty import Confidence, Entropy, Margin

__all__ = ["candidates", "certify", "most_failures"]

Candidate: TypeAlias = tuple[FamilyLike, Iterable[float]]
"""A class of policies, or a policy whose threshold is moved, and the values that are tried."""
_VALUES, _SAMPLES = 141, 100


def candidates(record: Record) -> list[Candidate]:
    """Return the kinds of policy that outputs admit: a fixed step, three certainties, and these from later steps on.

    Values are dense where answers are sure, and were picked on no data. Early steps that are sure and wrong spoil a
    whole kind, so each is also tried from every later step on.
    """
    found: list[Candidate] = [(FixedStep, range(record.num_steps, 0, -1))]
    if record.width > 1 and record.meaning.classes:
        sure = 1.0 / (1.0 + np.exp(-np.linspace(12.0, -2.0, _VALUES)))
        unsure = np.logspace(-6.0, math.log10(math.log(record.width)), _VALUES)
        kinds = ((Confidence(0.5), sure), (Margin(0.5), sure), (Entropy(0.5), unsure))
        found += kinds
        found += [
            (kind.after(step), values)
            for kind, values in kinds
            for step in range(2, record.num_steps)
        ]
    return found


def certify(
    choosing: Record,
    certifying: Record,
    policies: Iterable[Candidate] | None = None,
    *,
    risk: RiskLike = "disagreement",
    level: float = 0.01,
    confidence: float = 0.95,
    speed_up: float | None = None,
    costs: Sequence[float] | None = None,
) -> RiskControl:
    """Choose the kind of policy on some rows, and certify its threshold on others, by the exact binomial bound.

    The kind is chosen whose certificate is the cheapest on average, over bootstrap samples of the choosing rows: a step
    that just passes on those, and fails on others, leaves the much dearer step behind it.

    Args:
        choosing: A full-depth run over rows that choose the kind of policy (and, for a speed-up, its threshold).
        certifying: The same over rows on which nothing was chosen.
        policies: The kinds and their values; `candidates` where None.
        risk: A risk whose losses are 0 or 1, as for `control_risk`.
        level: Upper limit of the risk, in (0, 1); not read where a speed-up is given.
        confidence: Probability with which the promise holds, in (0, 1).
        speed_up: Aim at so many times lower cost instead, > 1; the promise is then about the risk of that.
        costs: Cost of exiting after each step, `(steps,)`; n where None.

    Example:
        >>> from dataclasses import replace
        >>> certifying = replace(trajectory, row_ids=torch.arange(300, 600))  # in earnest: other rows
        >>> found = ponder.calibration.certify(trajectory, certifying, level=0.02)
        >>> type(found.policy.policy).__name__, found.mean_exit_step
        ('Confidence', 2.0)
    """
    check_share("confidence", confidence)
    check_share("level", level)
    check_record(choosing, "choosing")
    check_fresh(certifying, choosing, "certifying")
    by_step = as_costs(costs, choosing.num_steps)
    losses, rows = losses_of(risk, choosing)
    counting = np.ones(len(choosing)) if rows is None else rows * 1.0
    losses = losses * counting[:, None]
    likes = candidates(choosing) if policies is None else list(policies)
    tried = [family_of(like, values, choosing) for like, values in likes]
    if speed_up is None:
        shares = np.full(len(choosing), 1 / len(choosing))
        drawn = (
            np.random.default_rng(0)
            .multinomial(len(certifying), shares, size=_SAMPLES)
            .T.astype(np.float64)
        )
        allowed = np.array([most_failures(int(n), level, confidence) for n in counting @ drawn])
        place = int(
            np.argmin(
                [_certified_cost(choosing, one, losses, by_step, drawn, allowed) for one in tried]
            )
        )
        values = tried[place].values
    else:
        check_real("speed_up", speed_up, 1.0, by_step[-1] / by_step[0], open_low=True)
        place, value = _least_risk(choosing, tried, losses, by_step, by_step[-1] / speed_up)
        values = (value,)
        lost, which = losses_of(risk, certifying)
        at = at_exits(lost, certifying.exit_steps(tried[place].build(value)))
        at = at if which is None else at[which]
        level = min(upper_bound(int(at.sum()), len(at), confidence), 1.0 - 1e-9)
    given: Any = {
        "risk": risk,
        "level": level,
        "confidence": confidence,
        "grid": values,
        "costs": costs,
    }
    return control_risk(certifying, likes[place][0], bound="exact_binomial", **given)


@cache
def most_failures(rows: int, level: float, confidence: float) -> int:
    """Return how many of the rows may lose where the level is certified; −1 where not even none would do."""
    return int(np.searchsorted(binomial_cdf(rows, level), 1.0 - confidence, side="right")) - 1


def _certified_cost(
    record: Record, family: Family, losses: Floats, costs: Floats, drawn: Floats, allowed: Floats
) -> float:
    """Return the mean cost that bootstrap samples would certify; `drawn` is how often each holds a row."""
    failures, totals = [], []
    for _, steps in family.exit_steps(record, family.late_first()):
        failures.append(at_exits(losses, steps) @ drawn)
        totals.append(at_exits(costs, steps) @ drawn)
    passes = np.logical_and.accumulate(np.concatenate(failures) <= allowed, axis=0)
    certified = np.where(passes, np.concatenate(totals) / drawn.sum(0), costs[-1])
    return float(certified.min(0).mean())


def _least_risk(
    record: Record, tried: Sequence[Family], losses: Floats, costs: Floats, at_most: float
) -> tuple[int, float]:
    """Return the family and the value with the least risk, and then cost, of those that are cheap enough."""
    found = []
    for number, family in enumerate(tried):
        for places, steps in family.exit_steps(record):
            rows = zip(
                at_exits(losses, steps).mean(1), at_exits(costs, steps).mean(1), places, strict=True
            )
            found += [
                (r, c, number, family.values[place])
                for r, c, place in rows
                if c <= at_most * (1 + 1e-9)
            ]
    return min(found)[2:]
