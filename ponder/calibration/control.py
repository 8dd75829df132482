"""Risk control: the cheapest threshold whose risk on fresh data is kept under a level, with a promise."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.rounding import rounded_down, rounded_up
from ponder._utils.validation import check_choice, check_real, check_share
from ponder.analysis.policy_grid import PolicyGrid, PolicyGridLike, as_policy_grid
from ponder.calibration.bounds import BOUNDS, Bound, find, rows_needed
from ponder.calibration.fresh import check_fresh, check_same_weights
from ponder.calibration.risks import RiskLike, losses_by_step, name_of
from ponder.errors import ArgumentError
from ponder.parts.recording import check_evaluated, check_has_rows, check_sample
from ponder.policies import LastStep
from ponder.policies.certified import Certified, digest_of
from ponder.policies.fitted import check_unfitted
from ponder.trajectory import Trajectory

__all__ = ["RiskControl", "control_risk"]


@dataclass(frozen=True, eq=False)
class RiskControl:
    """The policy that risk control chose, and what is promised of it.

    Args:
        policy: The policy with its certificate: give it to a model, and save both together.
        met: Whether some threshold was certified; otherwise the policy is full depth.
        mean_exit_step: Mean exit step on the calibration data.
        statement: What is promised, or why nothing could be.

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
    _seen: Trajectory
    _risk: RiskLike

    def __repr__(self) -> str:
        return f"RiskControl({self.policy!r}, met={self.met}, mean_exit_step={self.mean_exit_step:.4g})"

    def evaluate(self, test: Trajectory) -> tuple[float, float]:
        """Risk and mean exit step on fresh data.

        Raises:
            ArgumentError: Rows of `test` were used to calibrate, or to fit the policy; or it is a run of another model.
        """
        check_has_rows(test, "test")
        check_evaluated(test, "test")
        check_same_weights(test, self._seen)
        check_fresh(test, self._seen)
        check_unfitted(test, [self.policy], "test")
        exit_step = test.replay(self.policy).exit_step.cpu()
        losses = losses_by_step(self._risk, test, find_low(self.policy.bound))
        return float(losses[torch.arange(len(test)), exit_step - 1].mean()), float(exit_step.double().mean())


def control_risk(
    trajectory: Trajectory,
    policies: PolicyGridLike,
    *,
    risk: RiskLike = "disagreement",
    level: float,
    confidence: float = 0.95,
    bound: str = "hoeffding_bentkus",
    grid: Iterable[float] | None = None,
) -> RiskControl:
    r"""Choose the cheapest threshold whose risk on fresh data is at most `level`.

    Learn then Test (Angelopoulos et al. 2021) by fixed-sequence testing: the values are tested from the latest exits to
    the earliest, each at 1 − confidence, and the walk ends at the first that fails. All that passed have a risk of at
    most `level`, at once, with probability at least `confidence` over the draw of the calibration rows, whatever the
    policy and the distribution; so the one with the least mean exit step may be taken, which need not be the last.
    Schuster et al. (2021, 2022) and Jazbec et al. (2024) use it for early exits.

    With ``bound="conformal"``, conformal risk control (Angelopoulos et al. 2022): the promise is about the mean over
    calibration sets and fresh rows, E[risk] ≤ level, with no `confidence`; a row is taken to lose at least what it
    loses at values tested before, which makes the risk monotone. At the last value that passes the mean of these losses
    is at most `level`, and a fresh row loses no more than them at any value before, so here too the cheapest of these
    may be taken, on the same rows. Where nothing passes, rows run to full depth, which is as safe
    only where it has none of the risk, as of ``"disagreement"`` and ``"error_gap"``. Of ``"error"``, and of functions
    that full depth does not keep at 0, the promise is about what is certified alone: E[risk · 1(certified)] ≤ level.

    The rows must be like those to come (exchangeable with them), and neither the values nor their order may have been
    picked on them. The default grid is known in advance. Which end of a grid leaves later is read off the thresholds
    that the policies declare; where those do not tell, as in ``lambda t: one(t) if t < 0.5 else other(t)``, the values
    are tested in the order in which you give them, so begin with the one that you expect to leave latest.

    Args:
        trajectory: A full-depth run on calibration data that nothing else was chosen on.
        policies: A class of policies with a threshold, a policy whose threshold is moved, or a callable value → policy.
            A class of your own is saved once it has a name: ``policies.register("a-name")``.
        risk: ``"disagreement"`` with full depth (needs no labels), ``"error_gap"``, the accuracy that is lost against
            full depth, ``"error"``, or a callable (outputs, labels) → losses in [0, 1]. The certificate calls a
            callable by the name of its function; a lambda, which has none, is a "custom risk" there. A gap can be
            negative on a row; ``"betting"`` uses that, the other bounds count gains as 0 and so promise more.
        level: What the risk is kept under, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        bound: ``"hoeffding_bentkus"`` (any loss), ``"betting"`` (Waudby-Smith & Ramdas 2020; any loss, sharper where
            losses vary little), ``"exact_binomial"`` (losses 0 or 1), or ``"conformal"``.
        grid: Values of the threshold, strictly rising or falling.

    Raises:
        ArgumentError: A level or confidence outside (0, 1), an empty trajectory or one recorded in training mode,
            missing labels, rows on which a policy was fitted, a grid that is unordered or not finite, a policy with no
            threshold, losses out of range or, with ``"exact_binomial"``, between 0 and 1.

    Example:
        >>> sure = 8.0 * torch.nn.functional.one_hot(torch.arange(300) % 3, 3).float()  # the same at every step
        >>> trajectory = Trajectory(sure.unsqueeze(1).expand(300, 4, 3), None, torch.arange(300))
        >>> control_risk(trajectory, policies.Confidence, level=0.02).mean_exit_step
        1.0
    """
    check_share("level", level, remedy="Pass level=0.05, say.")
    check_share("confidence", confidence, remedy="Pass confidence=0.95, say.")
    check_choice("bound", bound, [*sorted(BOUNDS), "conformal"])
    check_sample(trajectory)
    low = find_low(bound)
    by_step = losses_by_step(risk, trajectory, low)
    tried = as_policy_grid(policies, grid, trajectory)
    for value in tried.values:
        check_real("grid", value, -math.inf, remedy="A certificate is saved as JSON, which has finite numbers alone.")
    check_unfitted(trajectory, tried.policies)
    steps = tried.exit_steps(trajectory).cpu()
    order = _from_late_to_early(tried)
    losses = by_step.gather(1, steps[order].T - 1)
    if bound == "conformal":
        passed, statistics = _conformal(losses, level)
    else:
        passed, statistics = _fixed_sequence(losses, level, 1.0 - confidence, find(bound))
    values = [tried.values[place] for place in order[: len(statistics)].tolist()]
    path = tuple(
        (value, mean, statistic)
        for value, mean, statistic in zip(values, losses.mean(0).tolist(), statistics, strict=False)
    )
    place = _cheapest(steps.sum(1)[order[:passed]].tolist())
    chosen = None if place is None else int(order[place])
    name = name_of(risk)
    everywhere = risk in ("disagreement", "error_gap")  # of which full depth, what is fallen back on, has none
    statement = _statement(name, level, confidence, bound, len(trajectory), tried.threshold, path, place, everywhere)
    inside = LastStep() if chosen is None else tried.policies[chosen]
    policy = Certified(
        policy=inside,
        statement=statement,
        risk=name,
        level=level,
        confidence=None if bound == "conformal" else confidence,
        bound=bound,
        rows=len(trajectory),
        threshold_name=tried.threshold,
        threshold_value=None if place is None else path[place][0],
        p_value=None if place is None or bound == "conformal" else path[place][2],
        path=path,
        num_steps=trajectory.num_steps,
        weights=trajectory.weights,
        policy_digest=digest_of(inside),
    )
    mean_step = float(trajectory.num_steps) if chosen is None else float(steps[chosen].double().mean())
    return RiskControl(policy, chosen is not None, mean_step, statement, trajectory, risk)


def find_low(bound: str) -> float:
    """The least loss that a bound can use."""
    return 0.0 if bound == "conformal" else find(bound).low


def _from_late_to_early(tried: PolicyGrid) -> Tensor:
    """The order in which the values are tested, `(thresholds,)`: from the end of the grid with the later exits.

    It must not depend on the data, or the promise does not hold; so where the policies do not declare which end that
    is, the grid is taken as it was given.
    """
    order = torch.arange(len(tried.values))
    return order.flip(0) if tried.exits_get_later else order


def _cheapest(steps: list[int]) -> int | None:
    """The place of the least of the numbers of steps, the last of equal ones; None where there are none."""
    return min(reversed(range(len(steps))), key=steps.__getitem__, default=None)


def _fixed_sequence(losses: Tensor, level: float, delta: float, bound: Bound) -> tuple[int, list[float]]:
    """How many values pass before the first that fails, and the p-values up to and with that one."""
    if bound.binary and not bool(((losses == 0) | (losses == 1)).all()):
        raise ArgumentError(
            "bound",
            expected="'hoeffding_bentkus' or 'betting' for losses between 0 and 1",
            got="'exact_binomial'",
            remedy="Choose one of them, or make the losses 0 or 1.",
        )
    p = bound.p_values(losses, level)
    failed = (~(p <= delta)).nonzero()
    passed = int(failed[0]) if len(failed) else len(p)
    return passed, p[: passed + 1].tolist()


def _conformal(losses: Tensor, level: float) -> tuple[int, list[float]]:
    """How many values pass, and n/(n+1) R̂ + 1/(n+1), which must be at most the level, up to the first that fails."""
    rows = losses.shape[0]
    monotone = losses.cummax(1).values
    bounded = (rows * monotone.mean(0) + 1.0) / (rows + 1)
    failed = (bounded > level).nonzero()
    passed = int(failed[0]) if len(failed) else len(bounded)
    return passed, bounded[: passed + 1].tolist()


def _statement(
    risk: str,
    level: float,
    confidence: float,
    bound: str,
    rows: int,
    threshold: str,
    path: tuple[tuple[float, float, float], ...],
    place: int | None,
    everywhere: bool,
) -> str:
    conformal = bound == "conformal"
    promise = f"{risk} on fresh data is at most {rounded_up(level)}"
    promise += " in the mean over calibration sets" if conformal else f" with confidence {rounded_down(confidence)}"
    if conformal and not everywhere:
        promise += ", those that certify nothing counted as 0"
    if place is not None:
        value, observed, _ = path[place]
        return f"{promise}: {threshold} = {value:.6g} ({bound}, {rows} rows, observed {observed:.4f})"
    enough = (
        math.ceil(min(1.0 / level - 1.0 - 1e-9, sys.float_info.max))
        if conformal
        else rows_needed(level, confidence, bound)
    )
    if rows < enough:
        why = f"{rows} rows are too few for this level even without a single loss: at least {enough} are needed"
    else:
        why = (
            f"already at {threshold} = {path[0][0]:.6g}, tried first, the loss observed is {path[0][1]:.4f}; values "
            "are tried from the latest exits on where the policy declares which these are (tunable), and else in the "
            "order of the grid"
        )
    return f"nothing could be certified (asked for: {promise}), so every row runs to the last step: {why} ({bound})"
