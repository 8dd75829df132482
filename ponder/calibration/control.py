"""Risk control: the cheapest threshold whose risk on fresh data is below a level, with a promise.

`control_risk` walks the values of a family from late exits to early ones (`_walk`), stops at the
first that fails its test, and takes the cheapest that passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ponder._utils.checks import check_choice, check_share
from ponder.calibration.families import Family, FamilyLike, family_of
from ponder.calibration.records import Floats, Ints, Record, check_fresh, check_record
from ponder.calibration.risks import (
    RiskLike,
    bound_for,
    loss_at,
    name_of,
    resolved,
    words_of,
)
from ponder.calibration.sweeps import as_costs
from ponder.policies.base import ExitPolicy, LastStep
from ponder.policies.combine import Certified
from ponder.statistics.bounds import BOUNDS
from ponder.statistics.certificate import Certificate
from ponder.statistics.sequence import CONFORMAL, FixedSequence

__all__ = ["RiskControl", "control_risk"]


@dataclass(frozen=True, eq=False)
class RiskControl:
    """The policy that risk control chose, and its promise.

    Args:
        policy: The policy with its certificate: give it to a model, and save both together.
        observed: The risk of the policy on the calibration data.
        exit_shares: The share of the rows that exit at each step, `(steps,)`.

    Example:
        >>> found = ponder.control_risk(trajectory, policies.Confidence, level=0.05)
        >>> found.met, found.mean_exit_step
        (True, 2.0)
        >>> model.policy = found.policy  # certificate included
    """

    policy: Certified
    observed: float
    exit_shares: tuple[float, ...]
    _seen: Record = field(repr=False)
    _risk: RiskLike = field(repr=False)

    @property
    def certificate(self) -> Certificate:
        """The facts of the promise."""
        return self.policy.certificate

    @property
    def met(self) -> bool:
        """Whether a threshold was certified; if not, the policy is full depth."""
        return self.certificate.met

    @property
    def statement(self) -> str:
        """The promise in one sentence, as commands state it, or why nothing is promised."""
        return self.certificate.sentence

    @property
    def mean_exit_step(self) -> float:
        """Mean exit step on the calibration data."""
        return float(np.dot(self.exit_shares, np.arange(1, len(self.exit_shares) + 1)))

    def evaluate(self, test: Record) -> tuple[float, float]:
        """Return risk and mean exit step on fresh data, a run of the same model over other rows."""
        check_fresh(test, self._seen)
        steps = test.exit_steps(self.policy)
        losses = loss_at(self._risk, test, _lowest(self.certificate.bound))(steps[None])
        return float(losses.mean()), float(steps.mean())


def control_risk(
    trajectory: Record,
    policies: FamilyLike,
    *,
    risk: RiskLike = "disagreement",
    level: float,
    confidence: float = 0.95,
    bound: str | None = None,
    grid: Iterable[float] | None = None,
    costs: Sequence[float] | None = None,
) -> RiskControl:
    r"""Choose the cheapest threshold whose risk on fresh data is at most `level`.

    Learn then Test (Angelopoulos et al. 2021) by fixed-sequence testing: the values are tested from
    the latest exits to the earliest, each at 1 − confidence, and the walk ends at the first that
    fails. With probability at least `confidence` over the draw of the calibration rows, all values
    that passed have a risk of at most `level`, for any policy and distribution. So the cheapest of
    them may be taken (Schuster et al. 2022, Jazbec et al. 2024).

    With ``bound="conformal"``, conformal risk control (Angelopoulos et al. 2022), the promise is
    about the mean over calibration sets and fresh rows, E[risk] ≤ level, with no `confidence`. The
    loss of a row is replaced by its maximum over the values tested before, which makes the risk
    monotone. If no value passes, rows run to full depth. Full depth has zero ``"disagreement"`` and
    ``"error_gap"``; for other risks the bound holds only when a threshold was certified:
    E[risk · 1(certified)] ≤ level.

    The rows must be exchangeable with those to come, and neither the values nor their order may be
    chosen on them. The default grid is known in advance. Values of a callable are tested in their
    order: begin with the latest exits.

    Args:
        trajectory: A full-depth run on calibration data on which nothing else was chosen.
        policies: A class of policies with a threshold, a policy whose threshold is moved, or a
            callable value → policy.
        risk: ``"disagreement"`` with full depth (needs no labels); ``"error_gap"``, the accuracy
            that is lost against full depth; ``"error"``; a callable (outputs, labels) → losses in
            [0, 1]; or a `Risk`, such as `Missed`. With `policies.TopK` also the risks of queries
            ``"top_k"``, ``"top_1"``, ``"ndcg"`` and ``"ndcg_gap"`` (see `Ranking`). Negative losses
            are used by ``"betting"`` and count as 0 with other bounds.
        level: Upper limit of the risk, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        bound: ``"exact_binomial"`` (Clopper and Pearson 1934; losses 0 or 1),
            ``"hoeffding_bentkus"`` (any loss), ``"betting"`` (Waudby-Smith & Ramdas 2020; any loss,
            sharper if losses vary little), or ``"conformal"``. By default the first if every loss
            is 0 or 1 by the definition of the risk (`Missed`, and all named risks but those of
            nDCG), and the second for callables and other risks.
        grid: Values of the threshold, strictly rising or falling. By default those that the policy
            declares.
        costs: Cost of exiting after each step, `(steps,)`, by which the cheapest is chosen. By
            default step n costs n.

    Raises:
        ArgumentError: An argument out of its range, a record of training mode, or losses that the
            bound does not take.

    Example:
        >>> logits = 8.0 * torch.nn.functional.one_hot(torch.arange(300) % 3, 3).float()
        >>> every_step = logits.unsqueeze(1).expand(300, 4, 3)  # the same answer at every step
        >>> trajectory = Trajectory(every_step, None, torch.arange(300))
        >>> control_risk(trajectory, policies.Confidence, level=0.02).mean_exit_step
        1.0
    """
    check_share("level", level, remedy="Pass level=0.05, say.")
    check_share("confidence", confidence, remedy="Pass confidence=0.95, say.")
    check_record(trajectory)
    family = family_of(policies, grid, trajectory)
    risk = resolved(risk, family.policy)
    if bound is None:
        bound = bound_for(risk)
    check_choice("bound", bound, [*BOUNDS, CONFORMAL])
    loss_of = loss_at(risk, trajectory, _lowest(bound))
    full_depth = loss_of(np.full((1, len(trajectory)), trajectory.num_steps))[0]
    num_rows = len(full_depth)
    sequence = FixedSequence(bound, level, confidence, num_rows)
    counts = np.zeros((0, trajectory.num_steps))
    if num_rows:
        counts = _walk(sequence, family, trajectory, loss_of)
    chosen: ExitPolicy = LastStep()
    observed = float(full_depth.mean()) if num_rows else math.nan
    shares = np.eye(trajectory.num_steps)[-1]
    place: int | None = None
    if len(counts):
        # Of equally cheap values the last is taken, whose exits are earlier.
        total = (counts @ as_costs(costs, trajectory.num_steps))[::-1]
        place = len(total) - 1 - int(total.argmin())
        value, observed, _ = sequence.path[place]
        chosen = family.build(value)
        shares = counts[place] / len(trajectory)
    words = words_of(risk)
    certificate = sequence.certificate(
        place,
        rule=chosen.rule("row"),
        change=words.change,
        unit=words.unit,
        given=None if words.unit == "query" else len(trajectory),
        is_mean=words.is_mean,
        risk=name_of(risk),
        threshold_name=family.threshold,
        num_steps=trajectory.num_steps,
        weights=trajectory.weights,
    )
    return RiskControl(
        policy=Certified(chosen, certificate),
        observed=observed,
        exit_shares=tuple(shares.tolist()),
        _seen=trajectory,
        _risk=risk,
    )


def _walk(
    sequence: FixedSequence, family: Family, record: Record, loss_of: Callable[[Ints], Floats]
) -> Floats:
    """Test the values from late exits to early ones, until one fails.

    Args:
        sequence: The test.
        family: The values.
        record: The calibration rows.
        loss_of: Function from exit steps `(values, rows)` to losses `(values, counted)`.

    Returns:
        The number of rows that exit at each step, of the values that passed, `(values, steps)`.
    """
    counts = [np.zeros((0, record.num_steps))]
    for places, steps in family.exit_steps(record, family.late_first()):
        each = [(steps == step).sum(axis=1) for step in range(1, record.num_steps + 1)]
        counts.append(np.stack(each, axis=1).astype(np.float64))
        if not sequence.test([family.values[place] for place in places], loss_of(steps)):
            break
    return np.concatenate(counts)[: sequence.num_passed]


def _lowest(bound: str) -> float:
    """Return the least loss that a bound can use; lower ones are raised to it."""
    if bound == CONFORMAL:
        return 0.0
    return BOUNDS[bound].low
