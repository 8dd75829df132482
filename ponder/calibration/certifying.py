"""Choose a kind of policy on some rows, and certify its threshold on others.

1. `candidates` lists the kinds that outputs admit, each with the values of its threshold.
2. On bootstrap samples of the choosing rows, each kind is certified as it would be on the
   certifying rows (`_certified_cost`), and the kind with the lowest mean cost is chosen. For a
   speed-up, the kind and value with the least risk are chosen instead (`_least_risk`).
3. `control_risk` certifies the threshold of that kind on the certifying rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple, TypeAlias

import numpy as np

from ponder._utils.checks import check_real, check_share
from ponder.calibration.control import RiskControl, control_risk
from ponder.calibration.families import Family, FamilyLike, family_of
from ponder.calibration.records import Floats, Record, at_exits, check_fresh, check_record
from ponder.calibration.risks import RiskLike, loss_at, losses_of
from ponder.calibration.sweeps import as_costs
from ponder.policies.base import FixedStep, ThresholdPolicy
from ponder.policies.certainty import Confidence, Entropy, Margin
from ponder.statistics.bounds import binomial_cdf, upper_bound
from ponder.statistics.certificate import CONFIDENCE, LEVEL
from ponder.statistics.sequence import first_failing

__all__ = [
    "Candidate",
    "candidates",
    "certainties",
    "certify",
    "counted_losses",
    "most_failures",
    "with_later_starts",
]

Candidate: TypeAlias = tuple[FamilyLike, Iterable[float]]
"""A class of policies, or a policy whose threshold is moved, and the values that are tried."""
_VALUES = 141
_SAMPLES = 100


def candidates(record: Record) -> list[Candidate]:
    """Return the kinds of policy that outputs admit.

    They are a fixed step, the certainties, and the certainties from later steps on.
    """
    fixed: Candidate = (FixedStep, range(record.num_steps, 0, -1))
    kinds = certainties(record)
    return [fixed, *kinds, *with_later_starts(kinds, record.num_steps)]


def certainties(record: Record) -> list[tuple[ThresholdPolicy, Floats]]:
    """Return confidence, margin and entropy with the values to try; none without classes.

    Values are dense where answers are certain. They were fixed without any data.
    """
    if record.width == 1 or not record.meaning.classes:
        return []
    shares = 1.0 / (1.0 + np.exp(-np.linspace(12.0, -2.0, _VALUES)))
    entropies = np.logspace(-6.0, math.log10(math.log(record.width)), _VALUES)
    return [(Confidence(0.5), shares), (Margin(0.5), shares), (Entropy(0.5), entropies)]


def with_later_starts(
    kinds: Sequence[tuple[ThresholdPolicy, Floats]], num_steps: int
) -> list[Candidate]:
    """Return each kind with no exit before step 2, 3, … N − 1.

    An early step that is certain and wrong makes a whole kind useless, so each kind is also tried
    from every later step on.
    """
    later = list[Candidate]()
    for kind, values in kinds:
        later += [(kind.after(start), values) for start in range(2, num_steps)]
    return later


def certify(
    choosing: Record,
    certifying: Record,
    policies: Iterable[Candidate] | None = None,
    *,
    risk: RiskLike = "disagreement",
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
    speed_up: float | None = None,
    costs: Sequence[float] | None = None,
) -> RiskControl:
    """Choose the kind of policy on some rows, and certify its threshold on others.

    The certificate is by the exact binomial bound. The kind is chosen whose certificate is the
    cheapest on average over bootstrap samples of the choosing rows. A single sample would favour a
    step that just passes: if it fails on the certifying rows, the next step is much more expensive.

    Args:
        choosing: A full-depth run over rows that choose the kind of policy (and, for a speed-up,
            its threshold).
        certifying: A full-depth run over rows on which nothing was chosen.
        policies: The kinds and their values; by default `candidates`.
        risk: A risk whose losses are 0 or 1, as for `control_risk`.
        level: Upper limit of the risk, in (0, 1); not read if a speed-up is passed.
        confidence: Probability with which the promise holds, in (0, 1).
        speed_up: Choose the policy with the least risk that is so many times cheaper, > 1; the
            promise is then about its risk.
        costs: Cost of exiting after each step, `(steps,)`. By default step n costs n.

    Raises:
        ArgumentError: Records of training mode, or rows that are in both of them.

    Example:
        >>> from dataclasses import replace
        >>> certifying = replace(trajectory, row_ids=torch.arange(300, 600))  # stands for new rows
        >>> found = ponder.calibration.certify(trajectory, certifying, level=0.02)
        >>> type(found.policy.policy).__name__, found.mean_exit_step
        ('Confidence', 2.0)
    """
    check_share("confidence", confidence)
    check_share("level", level)
    check_record(choosing, "choosing")
    check_fresh(certifying, choosing, "certifying")
    by_step = as_costs(costs, choosing.num_steps)
    losses = counted_losses(risk, choosing)
    if policies is None:
        policies = candidates(choosing)
    likes = list(policies)
    families = [family_of(like, values, choosing) for like, values in likes]
    if speed_up is None:
        most = partial(most_failures, level=level, confidence=confidence)
        place = _cheapest(choosing, families, losses, by_step, len(certifying), most)
        values = families[place].values
    else:
        fastest = math.inf
        if by_step[0]:
            fastest = by_step[-1] / by_step[0]
        check_real("speed_up", speed_up, 1.0, fastest, open_low=True)
        best = _least_risk(choosing, families, losses.losses, by_step, by_step[-1] / speed_up)
        place = best.family
        values = (best.value,)
        # One policy is certified, so its own upper bound is the level that is promised.
        steps = certifying.exit_steps(families[place].build(best.value))
        losses_there = loss_at(risk, certifying)(steps[None])[0]
        failures = int(losses_there.sum())
        level = min(upper_bound(failures, len(losses_there), confidence), 1.0 - 1e-9)
    return control_risk(
        certifying,
        likes[place][0],
        risk=risk,
        level=level,
        confidence=confidence,
        bound="exact_binomial",
        grid=values,
        costs=costs,
    )


@cache
def most_failures(rows: int, level: float, confidence: float) -> int:
    """Return the largest number of losses that certifies a level; −1 if the rows are too few."""
    return int(np.searchsorted(binomial_cdf(rows, level), 1.0 - confidence, side="right")) - 1


@dataclass(frozen=True)
class CountedLosses:
    """Losses of the choosing rows, with 0 in the rows that do not count.

    Args:
        losses: The losses, `(rows, steps)`.
        counting: 1 for each row that counts, else 0, `(rows,)`.
    """

    losses: Floats
    counting: Floats


def counted_losses(risk: RiskLike, record: Record) -> CountedLosses:
    """Return the losses of a record, with 0 in the rows that do not count."""
    losses, rows = losses_of(risk, record)
    counting = np.ones(len(record))
    if rows is not None:
        counting = rows * 1.0
    return CountedLosses(losses * counting[:, None], counting)


def _cheapest(
    record: Record,
    families: Sequence[Family],
    losses: CountedLosses,
    costs: Floats,
    certifying: int,
    most_failures: Callable[[int], int],
) -> int:
    """Return the place of the family with the lowest certified cost, averaged over samples.

    Args:
        record: The choosing rows.
        families: The families.
        losses: Losses of the choosing rows.
        costs: Cost of exiting after each step, `(steps,)`.
        certifying: Number of rows that will certify, which is the size of a bootstrap sample.
        most_failures: Function from a number of rows to the number of losses that still certifies.
    """
    shares = np.full(len(record), 1 / len(record))
    samples = np.random.default_rng(0).multinomial(certifying, shares, size=_SAMPLES)
    drawn = samples.T.astype(np.float64)
    allowed = np.array([most_failures(int(rows)) for rows in losses.counting @ drawn])
    each = [
        _certified_cost(record, family, losses.losses, costs, drawn, allowed) for family in families
    ]
    return int(np.argmin(each))


def _certified_cost(
    record: Record, family: Family, losses: Floats, costs: Floats, drawn: Floats, allowed: Floats
) -> float:
    """Return the mean cost that a family would certify on bootstrap samples.

    Args:
        record: The choosing rows.
        family: The family; its values are tested from late exits to early ones.
        losses: Losses of the rows, `(rows, steps)`.
        costs: Cost of exiting after each step, `(steps,)`.
        drawn: How often each sample holds each row, `(rows, samples)`.
        allowed: Number of losses that still certifies, `(samples,)`.
    """
    failures = list[Floats]()
    total_costs = list[Floats]()
    for _, steps in family.exit_steps(record, family.late_first()):
        failures.append(at_exits(losses, steps) @ drawn)
        total_costs.append(at_exits(costs, steps) @ drawn)
    # Fixed-sequence testing: a value is certified if it and all values before it pass.
    num_passed = first_failing(np.concatenate(failures), allowed)
    mean_costs = np.concatenate(total_costs) / drawn.sum(axis=0)
    passes = np.arange(len(mean_costs))[:, None] < num_passed
    certified = np.where(passes, mean_costs, costs[-1])
    return float(certified.min(axis=0).mean())


class _Tried(NamedTuple):
    """A value of a family, ordered by its risk, and then its cost."""

    risk: float
    cost: float
    family: int
    value: float


def _least_risk(
    record: Record, families: Sequence[Family], losses: Floats, costs: Floats, at_most: float
) -> _Tried:
    """Return the value with the least risk, and then cost, of those that are cheap enough."""
    tried = list[_Tried]()
    for number, family in enumerate(families):
        for places, steps in family.exit_steps(record):
            risks = at_exits(losses, steps).mean(axis=1).tolist()
            mean_costs = at_exits(costs, steps).mean(axis=1).tolist()
            for risk, cost, place in zip(risks, mean_costs, places, strict=True):
                tried.append(_Tried(risk, cost, number, family.values[place]))
    return min(each for each in tried if each.cost <= at_most * (1 + 1e-9))
