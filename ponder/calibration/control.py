"""Risk control: the cheapest threshold with a bounded risk on fresh data, with a promise."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ponder._utils.checks import check_choice, check_share
from ponder._utils.rounding import rounded_down, rounded_up
from ponder.calibration.bounds import BOUNDS, check_losses, rows_needed
from ponder.calibration.families import Family, FamilyLike, family_of
from ponder.calibration.records import Floats, Ints, Record, check_record
from ponder.calibration.repeats import check_fresh
from ponder.calibration.risks import (
    Ranking,
    RiskLike,
    bound_for,
    loss_at,
    name_of,
    resolved,
)
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
        check_fresh(test, self._seen)
        steps = test.exit_steps(self.policy)
        losses = loss_at(self._risk, test, _lowest(self.policy.bound))(steps[None])
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
    fails. All that passed have a risk of at most `level`, at once, with probability at least
    `confidence` over the draw of the calibration rows, for any policy and distribution; so the
    cheapest of them may be taken (Schuster et al. 2022, Jazbec et al. 2024).

    With ``bound="conformal"``, conformal risk control (Angelopoulos et al. 2022): the promise is
    about the mean over calibration sets and fresh rows, E[risk] ≤ level, with no `confidence`; a
    row is taken to lose at least as much as at values tested before, which makes the risk monotone.
    Where nothing passes, rows run to full depth, which is as safe only where it has none of the
    risk, as of ``"disagreement"`` and ``"error_gap"``; of other risks the promise is about what is
    certified alone: E[risk · 1(certified)] ≤ level.

    The rows must be like those to come (exchangeable with them), and neither the values nor their
    order picked on them. The default grid is known in advance; values of a callable are tested in
    their order: begin with the latest exits.

    Args:
        trajectory: A full-depth run on calibration data that nothing else was chosen on.
        policies: A class of policies with a threshold, a policy whose threshold is moved, or a
            callable value → policy.
        risk: ``"disagreement"`` with full depth (needs no labels), ``"error_gap"``, the accuracy
            that is lost against full depth, ``"error"``, a callable (outputs, labels) → losses in
            [0, 1], or a `Risk`, such as `Missed`; with `policies.TopK` also ``"top_k"``,
            ``"top_1"``, ``"ndcg"``, ``"ndcg_gap"``, of queries (see `Ranking`). Gains, negative
            losses, are used by ``"betting"`` and count as 0 with other bounds.
        level: Upper limit of the risk, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        bound: ``"exact_binomial"`` (Clopper and Pearson 1934; losses 0 or 1),
            ``"hoeffding_bentkus"`` (any loss), ``"betting"`` (Waudby-Smith & Ramdas 2020; any loss,
            sharper if losses vary little), or ``"conformal"``. If None, the first where every loss
            is 0 or 1 by the definition of the risk (all named ones but nDCG's, and `Missed`),
            and the second for callables and other risks.
        grid: Values of the threshold, strictly rising or falling.
        costs: Cost of exiting after each step, `(steps,)`, by which the cheapest is chosen; n where
            None.

    Example:
        >>> sure = 8.0 * torch.nn.functional.one_hot(torch.arange(300) % 3, 3).float()
        >>> trajectory = Trajectory(sure.unsqueeze(1).expand(300, 4, 3), None, torch.arange(300))
        >>> control_risk(trajectory, policies.Confidence, level=0.02).mean_exit_step
        1.0
    """
    check_share("level", level, remedy="Pass level=0.05, say.")
    check_share("confidence", confidence, remedy="Pass confidence=0.95, say.")
    check_record(trajectory)
    family = family_of(policies, grid, trajectory)
    risk = resolved(risk, family.policy)
    bound = bound_for(risk) if bound is None else bound
    check_choice("bound", bound, [*BOUNDS, "conformal"])
    at = loss_at(risk, trajectory, _lowest(bound))
    full = at(np.full((1, len(trajectory)), trajectory.num_steps))[0]
    by_step = as_costs(costs, trajectory.num_steps)
    path, passed = _walk(family, trajectory, at, len(full), by_step, level, 1.0 - confidence, bound)
    place = min(
        reversed(range(len(passed))), key=lambda i: passed[i][0], default=None
    )  # the last of equal ones
    if place is None:
        value = None
        p_value = None
        observed = float(full.mean()) if len(full) else math.nan
        shares = np.eye(trajectory.num_steps)[-1]
    else:
        (value, observed, p_value), shares = path[place], passed[place][1]
    draft = Certified(
        policy=LastStep() if value is None else family.build(value),
        statement="",
        risk=name_of(risk),
        level=level,
        confidence=None if bound == "conformal" else confidence,
        bound=bound,
        rows=len(full),
        threshold_name=family.threshold,
        threshold_value=value,
        p_value=None if bound == "conformal" else p_value,
        path=tuple(path),
        num_steps=trajectory.num_steps,
        weights=trajectory.weights,
    )
    policy = replace(
        draft,
        statement=_statement(
            draft, observed, None if isinstance(risk, Ranking) else len(trajectory)
        ),
    )
    mean_step = float(shares @ np.arange(1, trajectory.num_steps + 1))
    exits = tuple(shares.tolist())
    return RiskControl(
        policy, value is not None, mean_step, policy.statement, observed, exits, trajectory, risk
    )


def _walk(
    family: Family,
    record: Record,
    losses: Callable[[Ints], Floats],
    many: int,
    costs: Floats,
    level: float,
    delta: float,
    bound: str,
) -> tuple[list[tuple[float, float, float]], list[tuple[float, Floats]]]:
    """Test the values from late exits to early ones, on the counting rows, until one fails.

    Returns:
        Value, mean loss and p-value of each value that was tested; total cost and shares of exits
        of each that passed.
    """
    path: list[tuple[float, float, float]] = []
    passed: list[tuple[float, Floats]] = []
    worst = np.full(many, -1.0)
    for places, steps in family.exit_steps(record, family.late_first()) if many else ():
        at = losses(steps)
        if bound == "conformal":
            monotone = np.maximum.accumulate(np.concatenate([worst[None], at]))[1:]
            worst = monotone[-1]
            limit = level
            statistics = (monotone.sum(1) + 1.0) / (many + 1)
        else:
            check_losses(at, bound)
            statistics = BOUNDS[bound].p_values(at.T, level)
            limit = delta
        holding = int(np.append(statistics <= limit, False).argmin())
        values = [family.values[place] for place in places[: holding + 1]]
        path += zip(
            values,
            at[: holding + 1].mean(1).tolist(),
            statistics[: holding + 1].tolist(),
            strict=True,
        )
        counts = exit_counts(steps[:holding], record.num_steps)
        passed += zip((counts @ costs).tolist(), counts / len(record), strict=True)
        if holding < len(places):
            break
    return path, passed


def exit_counts(steps: Ints, num_steps: int) -> Floats:
    """Return how many rows exit at each step, `(thresholds, steps)`."""
    return np.stack([(steps == step).sum(1) for step in range(1, num_steps + 1)], axis=1).astype(
        np.float64
    )


def _lowest(bound: str) -> float:
    return 0.0 if bound == "conformal" else BOUNDS[bound].low


def _statement(made: Certified, observed: float, given: int | None) -> str:
    """Return the promise in words, or why there is none and how many rows it would take."""
    promise = f"{made.risk} on fresh data is at most {rounded_up(made.level)}"
    if made.confidence is None:
        promise += " in the mean over calibration sets"
        if made.risk not in (
            "disagreement",
            "error_gap",
        ):  # full depth, the fallback, may have some of the risk
            promise += ", those that certify nothing counted as 0"
        needed = math.ceil(min(1.0 / made.level - 1.0 - 1e-9, sys.float_info.max))
    else:
        promise += f" with confidence {rounded_down(made.confidence)}"
        needed = rows_needed(made.level, made.confidence)
    if given in (None, made.rows):
        rows = f"{made.rows} {'queries' if given is None else 'rows'}"
    else:
        rows = f"{made.rows} of {given} rows that count"
    name = made.threshold_name
    if made.threshold_value is not None:
        rule = f"{promise}: {name} = {made.threshold_value:.6g}"
        return f"{rule} ({made.bound}, {rows}, observed {observed:.4f})"
    if made.rows < needed:
        why = f"{rows} are too few for this level even without a loss: at least {needed} are needed"
        if given is not None and 0 < made.rows < given:
            why += f", some {math.ceil(needed * given / made.rows)} rows in all"
    else:
        first, loss, _ = made.path[0]
        why = (
            f"already at {name} = {first:.6g}, tried first, the loss observed is {loss:.4f}; "
            "values are tried from late exits on if the policy declares the direction (tunable), "
            "else in the order of the grid"
        )
    return (
        f"nothing could be certified (asked for: {promise}), so every row runs to the last step: "
        f"{why} ({made.bound})"
    )
