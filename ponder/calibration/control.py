"""Risk control: the cheapest threshold whose risk on fresh data is kept under a level, with a promise."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ponder._utils.checks import check_choice, check_share
from ponder._utils.rounding import rounded_down, rounded_up
from ponder.calibration.bounds import BOUNDS, find, p_values, rows_needed
from ponder.calibration.families import Family, FamilyLike, Floats, Ints, Record, at_exits, check_record, family_of
from ponder.calibration.fresh import check_fresh
from ponder.calibration.risks import RiskLike, losses_of, name_of
from ponder.calibration.sweeps import as_costs
from ponder.policies.base import LastStep
from ponder.policies.combine import Certified

__all__ = ["RiskControl", "control_risk"]


@dataclass(frozen=True, eq=False)
class RiskControl:
    """The policy that risk control chose, and its promise.

    Args:
        policy: The policy with its certificate: give it to a model, and save both together.
        met: Whether some threshold was certified; if none was, the policy is full depth.
        mean_exit_step: Mean exit step on the calibration data.
        statement: The promise in words, or why none could be given.
        observed: The risk of the policy on the calibration data.
        exit_shares: The share of the rows that exit at each step, `(steps,)`.

    Example:
        >>> found = ponder.control_risk(trajectory, policies.Confidence, level=0.05)
        >>> found.met, found.mean_exit_step
        (True, 2.0)
        >>> model.policy = found.policy  # certificate included
    """

    policy: Certified
    met: bool
    mean_exit_step: float
    statement: str
    observed: float
    exit_shares: tuple[float, ...]
    _seen: Record = field(repr=False)
    _risk: RiskLike = field(repr=False)

    def evaluate(self, test: Record) -> tuple[float, float]:
        """Return risk and mean exit step on fresh data, a run of the same model over other rows."""
        check_record(test, "test")
        check_fresh(test, self._seen)
        steps = test.exit_steps(self.policy)
        losses, rows = losses_of(self._risk, test, _lowest(self.policy.bound))
        at = at_exits(losses, steps)
        return float((at if rows is None else at[rows]).mean()), float(steps.mean())


def control_risk(
    trajectory: Record,
    policies: FamilyLike,
    *,
    risk: RiskLike = "disagreement",
    level: float,
    confidence: float = 0.95,
    bound: str = "hoeffding_bentkus",
    grid: Iterable[float] | None = None,
    costs: Sequence[float] | None = None,
) -> RiskControl:
    r"""Choose the cheapest threshold whose risk on fresh data is at most `level`.

    Learn then Test (Angelopoulos et al. 2021) by fixed-sequence testing: the values are tested from the latest exits to
    the earliest, each at 1 − confidence, and the walk ends at the first that fails. All that passed have a risk of at
    most `level`, at once, with probability at least `confidence` over the draw of the calibration rows, whatever the
    policy and the distribution; so the cheapest of them may be taken, which need not be the last. Schuster et al.
    (2021, 2022) and Jazbec et al. (2024) use it for early exits.

    With ``bound="conformal"``, conformal risk control (Angelopoulos et al. 2022): the promise is about the mean over
    calibration sets and fresh rows, E[risk] ≤ level, with no `confidence`; a row is taken to lose at least as much as
    at values tested before, which makes the risk monotone. Where nothing passes, rows run to full depth, which is as
    safe only where it has none of the risk, as of ``"disagreement"`` and ``"error_gap"``; of other risks the promise is
    about what is certified alone: E[risk · 1(certified)] ≤ level.

    The rows must be like those to come (exchangeable with them), and neither the values nor their order may have been
    picked on them. The default grid is known in advance. Values of a callable are tested in the order in which you give
    them, so begin with the one that you expect to exit latest.

    Args:
        trajectory: A full-depth run on calibration data that nothing else was chosen on.
        policies: A class of policies with a threshold, a policy whose threshold is moved, or a callable value → policy.
        risk: ``"disagreement"`` with full depth (needs no labels), ``"error_gap"``, the accuracy that is lost against
            full depth, ``"error"``, a callable (outputs, labels) → losses in [0, 1], or a `Risk`, such as `Missed`. A
            gap can be negative on a row; ``"betting"`` uses that, the other bounds count gains as 0 and so promise
            more.
        level: Upper limit of the risk, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        bound: ``"hoeffding_bentkus"`` (any loss), ``"betting"`` (Waudby-Smith & Ramdas 2020; any loss, sharper where
            losses vary little), ``"exact_binomial"`` (losses 0 or 1), or ``"conformal"``.
        grid: Values of the threshold, strictly rising or falling.
        costs: Cost of exiting after each step, `(steps,)`, by which the cheapest is chosen; n where None.

    Example:
        >>> sure = 8.0 * torch.nn.functional.one_hot(torch.arange(300) % 3, 3).float()  # the same at every step
        >>> trajectory = Trajectory(sure.unsqueeze(1).expand(300, 4, 3), None, torch.arange(300))
        >>> control_risk(trajectory, policies.Confidence, level=0.02).mean_exit_step
        1.0
    """
    check_share("level", level, remedy="Pass level=0.05, say.")
    check_share("confidence", confidence, remedy="Pass confidence=0.95, say.")
    check_choice("bound", bound, [*sorted(BOUNDS), "conformal"])
    check_record(trajectory)
    losses, counting = losses_of(risk, trajectory, _lowest(bound))
    family = family_of(policies, grid, trajectory)
    walk = _Walk(level, 1.0 - confidence, bound)
    walk.run(family, trajectory, losses, counting, as_costs(costs, trajectory.num_steps))
    rows = len(trajectory) if counting is None else int(counting.sum())
    words = _Words(name_of(risk), level, confidence, bound, rows, len(trajectory), family.threshold)
    chosen = walk.cheapest()
    value = None if chosen is None else walk.path[chosen][0]
    inside = LastStep() if value is None else family.build(value)
    statement = words.statement(walk.path, chosen)
    policy = Certified(
        policy=inside,
        statement=statement,
        risk=words.risk,
        level=level,
        confidence=None if bound == "conformal" else confidence,
        bound=bound,
        rows=rows,
        threshold_name=family.threshold,
        threshold_value=value,
        p_value=None if chosen is None or bound == "conformal" else walk.path[chosen][2],
        path=tuple(walk.path),
        num_steps=trajectory.num_steps,
        weights=trajectory.weights,
    )
    shares = np.eye(trajectory.num_steps)[-1] if chosen is None else walk.shares[chosen]
    full = losses[:, -1] if counting is None else losses[counting, -1]
    observed = walk.path[chosen][1] if chosen is not None else float(full.mean()) if len(full) else math.nan
    mean_step = float(shares @ np.arange(1, trajectory.num_steps + 1))
    return RiskControl(
        policy, chosen is not None, mean_step, statement, observed, tuple(shares.tolist()), trajectory, risk
    )


class _Walk:
    """Test the values from late exits to early ones, until one fails."""

    def __init__(self, level: float, delta: float, bound: str) -> None:
        self.level, self.delta, self.bound = level, delta, bound
        self.path: list[tuple[float, float, float]] = []
        self.shares: list[Floats] = []
        self.costs: list[float] = []

    def run(self, family: Family, record: Record, losses: Floats, counting: Floats | None, costs: Floats) -> None:
        """Fill `path` with value, mean loss and p-value of each value, and `shares` and `costs` of those that passed."""
        worst = np.zeros(len(record)) - 1.0
        if counting is not None and not counting.any():
            return
        for places, steps in family.exit_steps(record, family.late_first()):
            at = at_exits(losses, steps)
            at = at if counting is None else at[:, counting]
            if self.bound == "conformal":
                at_worst = np.maximum.accumulate(np.concatenate([worst[None, : at.shape[1]], at]))[1:]
                worst, limit = at_worst[-1], self.level
                statistics = (at_worst.sum(1) + 1.0) / (at.shape[1] + 1)
            else:
                statistics, limit = p_values(at.T, self.level, self.bound), self.delta
            values = np.asarray(family.values)[places].tolist()
            passed = int(np.argmin(np.append(statistics <= limit, False)))
            tested = slice(passed + 1)
            self.path += zip(values[tested], at.mean(1)[tested].tolist(), statistics[tested].tolist(), strict=False)
            counts = exit_counts(steps[:passed], record.num_steps)
            self.shares += list(counts / len(record))
            self.costs += (counts @ costs).tolist()
            if passed < len(places):
                return

    def cheapest(self) -> int | None:
        """Return the place of the cheapest value that passed, the last of equal ones; None where there is none."""
        return min(reversed(range(len(self.costs))), key=self.costs.__getitem__, default=None)


def exit_counts(steps: Ints, num_steps: int) -> Floats:
    """Return how many rows exit at each step, `(thresholds, steps)`, from exit steps `(thresholds, rows)`."""
    return np.stack([(steps == step).sum(1) for step in range(1, num_steps + 1)], axis=1).astype(np.float64)


def _lowest(bound: str) -> float:
    return 0.0 if bound == "conformal" else find(bound).low


@dataclass(frozen=True)
class _Words:
    risk: str
    level: float
    confidence: float
    bound: str
    rows: int
    of: int
    threshold: str

    def statement(self, path: Sequence[tuple[float, float, float]], chosen: int | None) -> str:
        """Return the promise, or why there is none and how many rows it would take."""
        promise = f"{self.risk} on fresh data is at most {rounded_up(self.level)}"
        if self.bound == "conformal":
            promise += " in the mean over calibration sets"
            if self.risk not in ("disagreement", "error_gap"):  # full depth, the fallback, may have some of the risk
                promise += ", those that certify nothing counted as 0"
        else:
            promise += f" with confidence {rounded_down(self.confidence)}"
        rows = f"{self.rows} rows" + ("" if self.rows == self.of else f" that count (of {self.of})")
        if chosen is not None:
            value, observed, _ = path[chosen]
            return f"{promise}: {self.threshold} = {value:.6g} ({self.bound}, {rows}, observed {observed:.4f})"
        needed = self.needed()
        if self.rows < needed:
            why = f"{rows} are too few for this level even without a single loss: at least {needed} are needed"
            if 0 < self.rows < self.of:
                why += f", some {math.ceil(needed * self.of / self.rows)} rows in all"
        else:
            why = (
                f"already at {self.threshold} = {path[0][0]:.6g}, tried first, the loss observed is {path[0][1]:.4f}; "
                "values are tried from the latest exits on where the policy declares which these are (tunable), and "
                "else in the order of the grid"
            )
        return (
            f"nothing could be certified (asked for: {promise}), so every row runs to the last step: {why} "
            f"({self.bound})"
        )

    def needed(self) -> int:
        """Return the least number of rows with which the level can be certified, were every loss 0."""
        if self.bound == "conformal":
            return math.ceil(min(1.0 / self.level - 1.0 - 1e-9, sys.float_info.max))
        return rows_needed(self.level, self.confidence, self.bound)
