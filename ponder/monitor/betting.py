r"""Bets against a promise: money that grows only if the disagreement is above a level.

A gambler bets, audit after audit, that early exits disagree with full depth more often than the level m says. His
capital is K_t = Π_i (1 + λ (x_i − m)), x_i = 1 for a disagreement. As long as the disagreement really is at most m, K
is a nonnegative supermartingale from 1, and P(some K_t ≥ 1/δ) ≤ δ (Ville 1939), however long and however often one
looks (Waudby-Smith & Ramdas 2020, "Estimating means of bounded random variables by betting", Sections 4 and 5.3).
For x in {0, 1}, the stake λ = (q − m) / (m (1 − m)) makes each factor the likelihood ratio of q against m; the
gambler spreads his money over a few q. They are told by their odds, r times those of m, so that they lie close above
every level, also above one near 1: the likelihood ratio is r^x / (1 + (r − 1) m).

A gambler who bet from the first day has lost nearly all when a shift comes a year later. So half of the money starts
at the first audit, and the rest comes in afterwards, a little at each audit; the sum is still such a supermartingale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ponder._utils.bisection import bisect
from ponder._utils.validation import check_int, check_real, check_share
from ponder.errors import CheckpointError

__all__ = ["Capital", "audits_needed", "confidence_sequence"]

_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""How many times the odds of the level each bet takes those of the disagreement to be."""


@dataclass(frozen=True)
class Capital:
    """What the gambler owns after some audits.

    Args:
        level: m, the disagreement that is promised, in (0, 1).
        audits: Number of audits so far.
        stakes: The money in each bet.
    """

    level: float
    audits: int
    stakes: tuple[float, ...]

    @classmethod
    def start(cls, level: float) -> Self:
        """Half of the money, spread over the bets; the other half comes in later."""
        check_share("level", level)
        return cls(level, 0, (0.5 / len(_RATIOS),) * len(_RATIOS))

    def after(self, disagrees: bool) -> Self:
        """The capital after one more audit."""
        added = (_reserve(self.audits) - _reserve(self.audits + 1)) / len(self.stakes)
        stakes = tuple(
            stake * (ratio if disagrees else 1.0) / (1.0 + (ratio - 1.0) * self.level) + added
            for ratio, stake in zip(_RATIOS, self.stakes, strict=True)
        )
        return type(self)(self.level, self.audits + 1, stakes)

    @property
    def wealth(self) -> float:
        """K_t: the money in the bets, and what has not come in yet; 1 before the first audit."""
        return math.fsum(self.stakes) + _reserve(self.audits)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"level": self.level, "audits": self.audits, "stakes": list(self.stakes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; what versions with fewer bets wrote is read, too.

        Raises:
            CheckpointError: It is none.
        """
        try:
            level, stakes = float(data["level"]), tuple(float(stake) for stake in data["stakes"])
            found = cls(level, int(data["audits"]), _in_the_bets_of_today(level, stakes))
            sound = 0.0 < found.level < 1.0 and found.audits >= 0 and len(found.stakes) == len(_RATIOS)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the saved capital of an audit cannot be read: {error!r}.") from error
        if not sound or not all(0.0 <= stake < math.inf for stake in found.stakes):
            raise CheckpointError(f"the saved capital of an audit is impossible: {dict(data)}.")
        return found


def audits_needed(level: float, confidence: float, disagreement: float, *, after: int = 0) -> float:
    r"""How many audits it takes at most, in the mean, to notice that the disagreement has risen above the level.

    It is a bound, to plan by: where it was simulated, a half to three quarters of it were needed.

    The money that comes in at the shift, w, has to grow to 1/δ by the best of the bets, whose logarithm grows by
    g(q) = p log(q/m) + (1 − p) log((1 − q)/(1 − m)) an audit in the mean: log(1/(δ w)) / max_q g(q), and one overshoot,
    log(q/m), more (Wald 1945). The least that any test with this guarantee can need is log(1/δ) / KL(p ‖ m). It is
    infinite where no bet grows, as none does while the odds have risen by less than a twentieth or so.

    Args:
        level: m, what is promised.
        confidence: 1 − δ.
        disagreement: p, the disagreement after the shift; above the level.
        after: How many audits there were before the shift.

    Example:
        >>> round(audits_needed(0.01, 0.95, 0.03))
        520
    """
    check_share("level", level)
    check_share("confidence", confidence)
    check_real("disagreement", disagreement, level, 1.0, open_low=True)
    check_int("after", after, 0)
    share = 0.5 if after == 0 else _reserve(after) - _reserve(after + 1)
    needed = math.log(len(_RATIOS) / ((1.0 - confidence) * share))

    def audits(ratio: float) -> float:
        price = math.log1p((ratio - 1.0) * level)
        growth = disagreement * math.log(ratio) - price
        return (needed + math.log(ratio) - price) / growth if growth > 0.0 else math.inf

    return min(audits(ratio) for ratio in _RATIOS)


def confidence_sequence(disagreements: int, audits: int, confidence: float) -> tuple[float, float]:
    r"""Lowest and highest disagreement that the audits leave possible, at every time at once.

    Here the gambler spreads his money over all q by Jeffreys's prior, which has the closed form
    K(m) = B(k + ½, n − k + ½) / (B(½, ½) m^k (1 − m)^(n − k)); the values with K(m) < 1/δ remain. With probability
    `confidence` they hold the true disagreement after every audit, if it does not change.

    Args:
        disagreements: k.
        audits: n.
        confidence: 1 − δ.

    Example:
        >>> low, high = confidence_sequence(5, 1000, 0.95)
        >>> low < 0.005 < high < 0.02
        True
    """
    check_int("audits", audits, 0)
    check_int("disagreements", disagreements, 0, audits)
    check_share("confidence", confidence)
    if not audits:
        return 0.0, 1.0
    k, n = disagreements, audits
    mixed = math.lgamma(k + 0.5) + math.lgamma(n - k + 0.5) - math.lgamma(n + 1.0) - math.log(math.pi)

    def possible(m: float) -> bool:
        if m == 1.0:  # where halving has come to, of what is closer to 1 than numbers are to one another
            return n == k
        spent = (k * math.log(m) if k else 0.0) + ((n - k) * math.log1p(-m) if n > k else 0.0)
        return mixed - spent < -math.log(1.0 - confidence)

    middle = k / n
    low = 0.0 if k == 0 else bisect(possible, middle, 0.0)[1]
    high = 1.0 if k == n else bisect(possible, middle, 1.0)[1]
    return low, high


def _in_the_bets_of_today(level: float, stakes: tuple[float, ...]) -> tuple[float, ...]:
    """The money in fewer bets of an earlier version: on 1.5 to 30 times the level, as far as that is below 1, or one.

    Each goes to the bet of the same ratio. Money may change bets between two audits: the sum stays a supermartingale.
    """
    ratios = _RATIOS[2:]
    if len(stakes) != max(1, sum(ratio * level < 1.0 for ratio in ratios)):
        return stakes
    return (0.0, 0.0, *stakes, *(0.0,) * (len(ratios) - len(stakes)))


def _reserve(audits: int) -> float:
    """The money that has not come in after so many audits: it falls from a half to nothing, ever more slowly."""
    return 0.5 / math.log2(audits + 2)
