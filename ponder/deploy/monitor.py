r"""The audit of a promise: a share of the answers is computed again at full depth, after they were given.

An e-process tests "at most m of the answers differ" (Waudby-Smith & Ramdas 2020, "Estimating means of bounded random
variables by betting", Section 4). Its wealth W_t = Π_i (1 + λ (x_i − m)), with x_i = 1 for a disagreement, is
a nonnegative supermartingale from 1 while the promise holds, and P(some W_t ≥ 1/δ) ≤ δ (Ville 1939): one may look
after every audit, for years. With the bet λ = (q − m) / (m (1 − m)) each factor is the likelihood ratio of q against m;
the wealth is a mixture over a few q, written by the ratio r of their odds: r^x / (1 + (r − 1) m).

A test that bets all from the first day has lost nearly everything when a shift comes a year later. So the mixture has
a delayed start: half of the wealth bets from the first audit on, and the rest joins a little at each audit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path

import numpy as np

from ponder._utils.checks import check_real, check_share
from ponder._utils.files import read_json, write_json
from ponder._utils.rounding import rounded_down, rounded_up
from ponder._utils.seeds import uniform
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, LastStep

__all__ = ["Audit", "StepBack", "Watch", "audits_needed"]

_FORMAT = "ponder-audit-1"
_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


def _first_bets() -> list[float]:
    return [0.5 / len(_RATIOS)] * len(_RATIOS)


@dataclass(frozen=True)
class StepBack:
    """The end of a stage: its promise can no longer be held."""

    stage: int  # from 0
    audits: int
    disagreements: int  # audited answers that differed from full depth
    statement: str  # the same in words


@dataclass
class Audit:
    """Audit of a share of the answers against the promise that at most `level` of them differ from full depth.

    It asks for audits (`chosen`), takes their outcome (`record`) and ends a stage where the promise can no longer be
    held. As long as at most `level` of the answers differ, given those before, a stage ends with probability
    1 − `confidence` at most, over all time.

    Args:
        level: The share of answers that may differ, in (0, 1).
        confidence: The least probability with which no stage ends while the promise holds, in (0, 1).
        share: The share of answers that is audited, in (0, 1]; an audit costs a full-depth answer.
        seed: Seed by which the audited answers are drawn.

    The state is `answers`, all that were counted, `stage`, from 0, its `audits` and `disagreements`, and `bets`.

    Example:
        >>> audit = ponder.monitor.Audit(level=0.01, confidence=0.95, share=0.5)
        >>> sum(audit.chosen() for _ in range(1000))
        524
        >>> audit.record(True), audit.record(True).disagreements  # the second disagreement in two audits is too many
        (None, 2)
    """

    level: float = 0.01
    confidence: float = 0.95
    share: float = 0.01
    _: KW_ONLY
    seed: int = 0
    answers: int = 0
    stage: int = 0
    audits: int = 0
    disagreements: int = 0
    bets: list[float] = field(default_factory=_first_bets, repr=False)

    def __post_init__(self) -> None:
        check_share("level", self.level)
        check_share("confidence", self.confidence)
        check_real("share", self.share, 0.0, 1.0, open_low=True)

    @property
    def wealth(self) -> float:
        """The wealth of the e-process; at 1 / (1 − confidence) the stage ends."""
        return math.fsum(self.bets) + _reserve(self.audits)

    def chosen(self) -> bool:
        """Count one answer, and say whether it is to be audited: a draw that does not look at the answer."""
        drawn = uniform(self.seed, np.array([self.answers]))
        self.answers += 1
        return bool(drawn[0] < self.share)

    def record(self, disagrees: bool) -> StepBack | None:
        """Take the outcome of an audit, and return the end of the stage where the promise can no longer be held.

        Args:
            disagrees: Whether the answer that was given differs from the one at full depth.
        """
        joining = (_reserve(self.audits) - _reserve(self.audits + 1)) / len(_RATIOS)
        self.bets = [
            bet * (ratio if disagrees else 1.0) / (1.0 + (ratio - 1.0) * self.level) + joining
            for ratio, bet in zip(_RATIOS, self.bets, strict=True)
        ]
        self.audits, self.disagreements = self.audits + 1, self.disagreements + bool(disagrees)
        if self.wealth * (1.0 - self.confidence) < 1.0:
            return None
        said = (
            f"the promise that at most {rounded_up(self.level)} of the answers differ from full depth can no longer be "
            f"held: {self.disagreements} of {self.audits} audited answers differ (confidence "
            f"{rounded_down(self.confidence)})"
        )
        end = StepBack(self.stage, self.audits, self.disagreements, said)
        self.stage, self.audits, self.disagreements, self.bets = self.stage + 1, 0, 0, _first_bets()
        return end


class Watch:
    """A promise on live traffic: policies from the cheapest to the safest, an audit, and its state in a JSON file.

    The first policy answers until its stage ends, then the next, and full depth after the last. Any thread may call it.

    Args:
        policies: The policies, from the cheapest to the safest.
        audit: The promise, and the share of the answers that is audited.
        path: A JSON file in which the state survives a restart; None for none.
        on_step_back: Called with every `StepBack`.

    Example:
        >>> order = [policies.Confidence(0.8), policies.Confidence(0.95)]
        >>> watch = ponder.monitor.Watch(order, ponder.monitor.Audit(level=0.01, share=1.0))
        >>> for answer in range(3):
        ...     stage = watch.stage  # of the policy that gives this answer
        ...     if watch.chosen(stage):
        ...         watch.record(True, stage)  # another answer than at full depth
        >>> watch.policy  # the first one's promise could not be held
        Confidence(threshold=0.95)
    """

    def __init__(
        self,
        policies: Sequence[ExitPolicy],
        audit: Audit,
        path: str | Path | None = None,
        on_step_back: Callable[[StepBack], object] | None = None,
    ) -> None:
        self.policies, self.audit, self.on_step_back = tuple(policies), audit, on_step_back
        self.path, self._lock = None if path is None else Path(path), threading.Lock()
        self._described = [policy.to_dict() for policy in self.policies]
        if self.path is not None and self.path.exists():
            self._resume(self.path)
        self._save()  # a place that cannot be written fails at once

    @property
    def stage(self) -> int:
        """Number of the policy that answers now, from 0; a step back is for good."""
        return self.audit.stage

    @property
    def policy(self) -> ExitPolicy:
        """The policy that answers now; full depth after the last."""
        return [*self.policies, LastStep()][self.stage]

    def chosen(self, stage: int) -> bool:
        """Count an answer that the policy of `stage` gives, and say whether it is to be audited."""
        with self._lock:
            return self.audit.chosen() and stage == self.stage < len(self.policies)

    def record(self, disagrees: bool, stage: int) -> None:
        """Take the outcome of an audit; an answer of a policy that was stepped back from says nothing of this one.

        Args:
            disagrees: Whether the answer that was given differs from the one at full depth.
            stage: The stage in which it was given.
        """
        with self._lock:
            end = self.audit.record(disagrees) if stage == self.stage < len(self.policies) else None
            self._save()
        if end is not None and self.on_step_back is not None:
            self.on_step_back(end)

    def _resume(self, path: Path) -> None:
        saved = read_json(path, _FORMAT, "state of an audit")
        audit, own = Audit(**saved["audit"]), self.audit
        if saved["policies"] != self._described or (audit.level, audit.confidence) != (
            own.level,
            own.confidence,
        ):
            expected = "the state of these policies and of this promise"
            remedy = "Give each promise a file of its own, or delete this one to begin anew."
            raise ArgumentError(
                "path", expected=expected, got=f"that of others, in {path}", remedy=remedy
            )
        self.audit = audit

    def _save(self) -> None:
        if self.path is not None:
            write_json(
                self.path, _FORMAT, {"policies": self._described, "audit": asdict(self.audit)}
            )


def audits_needed(level: float, confidence: float, disagreement: float) -> float:
    r"""Return a bound on the mean number of audits until a rise of the disagreement above the level is noticed.

    The half of the wealth that bets from the first audit on, w, has to grow to 1/δ by the best of the bets, whose
    logarithm grows by g(q) = p log(q/m) + (1 − p) log((1 − q)/(1 − m)) an audit in the mean: log(1/(δ w)) / max_q g(q),
    and one overshoot, log(q/m), more (Wald 1945). It is infinite where no bet grows.

    Args:
        level: m, the promised disagreement.
        confidence: 1 − δ.
        disagreement: p, the disagreement after the shift; above the level.

    Example:
        >>> round(ponder.monitor.audits_needed(0.01, 0.95, 0.03))
        520
    """
    check_share("level", level)
    check_share("confidence", confidence)
    check_real("disagreement", disagreement, level, 1.0, open_low=True)
    needed = math.log(2 * len(_RATIOS) / (1.0 - confidence))

    def audits(ratio: float) -> float:
        price = math.log1p((ratio - 1.0) * level)
        growth = disagreement * math.log(ratio) - price
        return (needed + math.log(ratio) - price) / growth if growth > 0.0 else math.inf

    return min(map(audits, _RATIOS))


def _reserve(audits: int) -> float:
    """Return the wealth that does not bet yet: from a half it falls to nothing, ever more slowly."""
    return 0.5 / math.log2(audits + 2)
