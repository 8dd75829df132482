"""The rivals, each written anew after its authors' code, with their settings (`rule.md`).

* A fixed threshold: the first n rows teach, the next m certify by exact binomial bounds in a fixed sequence of
  thresholds, from the strictest on; the first that fails ends it.
* B-PAC's rule (arXiv 2601.22446), row by row: for each threshold a betting e-process on losses weighted by (1 - π) / π,
  whose bet is the sum of the gains so far over that of their squares. The loosest threshold answers whose wealth, and
  that of all stricter ones, is at least 1/δ; it is withdrawn when the wealth falls.
* BARGAIN's rule for accuracy (Zeighami, Shankar and Parameswaran, arXiv 2509.02896): the whole batch is at hand. For
  thresholds from the strictest on, rows above it are drawn without replacement and asked, ten by ten, until a betting
  test accepts that the target is met. It is given up if, after 50 rows, the mean less their standard deviation is below
  the target.
* PAC labels (Candès, Ilyas and Zrnic, arXiv 2506.10908): the whole batch is at hand. Rows are drawn from it with
  replacement, and each is asked with its own weight; the loosest threshold is taken at which a normal bound on the
  weighted share of errors is within the level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ponder.statistics.bounds import upper_bound

__all__ = ["BPac", "Result", "bargain", "fixed", "pac_labels"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
_DELTA = 0.05
_FIXED_THRESHOLDS = 40
_BPAC_THRESHOLDS = 1001
_FIRST_ROWS = 200
_FIRST_AUDIT = 0.7
_AUDIT = 0.05
_BARGAIN_THRESHOLDS = 20
_STEP = 10
_PATIENCE = 50
_LEAST_WEIGHT = 0.1


@dataclass(frozen=True)
class Result:
    """What a way to answer a stream did.

    Args:
        asked: Share of the rows about which the reference was asked.
        wrong: Share of the rows that got another answer in the end.
        worst: The largest such share at any moment after the first 500 rows.
    """

    asked: float
    wrong: float
    worst: float

    @classmethod
    def of(cls, asked: Mask, wrong: Mask) -> Result:
        """Return the result of masks, `(rows,)`."""
        moments = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
        return cls(float(asked.mean()), float(wrong.mean()), float(moments[500:].max()))


def fixed(sure: Array, differs: Mask, level: float, taught: int, certify: int) -> Result:
    """Answer by one threshold, which the rows after those that taught certify."""
    side = slice(taught, taught + certify)
    chosen = math.inf
    for threshold in np.quantile(sure[side], np.linspace(1.0, 0.0, _FIXED_THRESHOLDS + 1)[1:]):
        failures = int((differs[side] & (sure[side] >= threshold)).sum())
        if upper_bound(failures, certify, 1 - _DELTA) > level:
            break
        chosen = float(threshold)
    asked = sure < chosen
    asked[: taught + certify] = True
    return Result.of(asked, differs & ~asked)


class BPac:
    """B-PAC's rule on a stream, row by row.

    Args:
        level: The level.
        seed: Seed of its coin.
    """

    def __init__(self, level: float, seed: int) -> None:
        self._level = level
        self._draw = np.random.default_rng(seed)
        self._thresholds = np.linspace(0.0, 1.0, _BPAC_THRESHOLDS)
        self._wealth = np.zeros(_BPAC_THRESHOLDS)  # its logarithm
        self._gains = np.zeros(_BPAC_THRESHOLDS)
        self._squares = np.ones(_BPAC_THRESHOLDS)
        self._rows = 0
        self.threshold = 0.0

    @property
    def audit(self) -> float:
        """The audit rate of the next row that is answered."""
        return _FIRST_AUDIT if self._rows < _FIRST_ROWS else _AUDIT

    def asks(self, doubt: float) -> bool:
        """Throw the coin of a row, and return whether the reference is asked."""
        return doubt >= self.threshold or bool(self._draw.random() < self.audit)

    def learn(self, doubt: float, *, asked: bool, differs: bool) -> None:
        """Note a row; `differs` is read only if it was asked."""
        gain = np.full(_BPAC_THRESHOLDS, self._level)
        if asked and differs:
            probability = self.audit if doubt < self.threshold else 1.0
            gain -= (1.0 - _AUDIT) / probability * (doubt < self._thresholds)
        most = 0.9 / max(self._level, (1.0 - _AUDIT) / self.audit - self._level)
        self._wealth += np.log1p(np.clip(self._gains / self._squares, 0.0, most) * gain)
        self._gains += gain
        self._squares += gain**2
        low = self._wealth < math.log(1 / _DELTA)
        held = int(low.argmax()) if low.any() else _BPAC_THRESHOLDS
        self.threshold = float(self._thresholds[held - 1]) if held else 0.0
        self._rows += 1


def bargain(sure: Array, differs: Mask, level: float, taught: int, seed: int) -> Result:
    """Answer by the loosest of 20 ranks that a betting test on drawn rows accepts."""
    rest = taught + np.argsort(-sure[taught:], kind="stable")
    order = np.random.default_rng(seed).permutation(len(rest))
    step = max(len(rest) // _BARGAIN_THRESHOLDS, 1)
    known = np.zeros(len(sure), dtype=bool)
    known[:taught] = True
    answered = 0
    for end in range(step, len(rest) + 1, step):
        target = 1.0 - level * len(sure) / end
        if target <= 0.0:
            answered = end
            continue
        drawn = rest[order[order < end]]
        count, accepted = _tested(~differs[drawn], target)
        known[drawn[:count]] = True
        if not accepted:
            break
        answered = end
    asked = np.ones(len(sure), dtype=bool)
    asked[rest[:answered]] = known[rest[:answered]]
    return Result.of(asked, differs & ~asked)


def _tested(right: Mask, target: float) -> tuple[int, bool]:
    """Return how many rows of a population in random order a test asks, and whether it accepts.

    The accuracy of the whole population is compared with the target. After each ten rows: all were drawn; or the test
    that the accuracy is above, or the one that it is below, decides; or it is given up.
    """
    total = len(right)
    above = _Wealth(target, total)
    below = _Wealth(1.0 - target, total)
    for count in range(_STEP, total + _STEP, _STEP):
        drawn = right[: min(count, total)]
        for each in drawn[count - _STEP :].tolist():
            above.bet(float(each))
            below.bet(1.0 - float(each))
        if count >= total:
            return total, bool(drawn.mean() >= target)
        if drawn.mean() >= target:
            if above.reached:
                return count, True
        elif below.reached:
            return count, False
        if count >= _PATIENCE and drawn.mean() - drawn.std() < target:
            return count, False
    return total, False


class _Wealth:
    """Betting against: the mean of a finite population is at most m; drawn without replacement.

    Args:
        mean: m.
        total: Rows of the population.
    """

    def __init__(self, mean: float, total: int) -> None:
        self._mean = mean
        self._total = total
        self._count = 0
        self._sum = 0.0
        self._squares = 0.0
        self._wealth = 0.0  # its logarithm
        self.reached = False

    def bet(self, value: float) -> None:
        """Bet on the next row."""
        remains = self._total - self._count
        mean = (self._total * self._mean - self._sum) / remains
        number = self._count + 1
        centre = (0.5 + self._sum) / number
        spread = self._squares - 2 * centre * self._sum + self._count * centre**2
        variance = (0.25 + spread) / number
        bet = math.sqrt(2 * math.log(2 / _DELTA) / (number * math.log(number + 1) * variance))
        factor = math.inf if mean <= 0.0 else 1.0 + min(bet, 0.75 / mean) * (value - mean)
        self._wealth += math.log(max(factor, 1e-300))
        self._count += 1
        self._sum += value
        self._squares += value**2
        self.reached |= self._wealth >= math.log(1 / _DELTA)


def pac_labels(
    sure: Array, differs: Mask, level: float, taught: int, draws: int, weighted: bool, seed: int
) -> Result:
    """Answer by the loosest threshold at which weighted draws bound the share of errors by the level.

    Args:
        sure: Confidences, `(rows,)`.
        differs: Whether the reference's answer is another, `(rows,)`.
        level: The level, for all rows, those that taught included.
        taught: Rows that taught.
        draws: Draws with replacement from the others.
        weighted: Whether a drawn row is asked with a weight that grows with its doubt, or always.
        seed: Seed of the draws.
    """
    draw = np.random.default_rng(seed)
    rows = draw.integers(taught, len(sure), draws)
    doubts = 1.0 - sure[taught:]
    weights = np.ones(draws)
    if weighted:
        weights = np.clip((1.0 - sure[rows]) / (2 * doubts.mean()), _LEAST_WEIGHT, 1.0)
    kept = draw.random(draws) < weights
    within = level * len(sure) / (len(sure) - taught)
    errors = differs[rows] * kept / weights
    order = np.argsort(-sure[rows], kind="stable")
    counts = np.cumsum(errors[order]) / draws
    squares = np.cumsum(errors[order] ** 2) / draws
    bounds = counts + NormalDist().inv_cdf(1 - _DELTA) * np.sqrt(
        np.maximum(squares - counts**2, 0.0) / draws
    )
    failed = np.flatnonzero(bounds > within)
    held = int(failed[0]) if len(failed) else draws
    chosen = 0.0 if held == draws else float(sure[rows][order[held]])
    asked = sure <= chosen
    asked[:taught] = True
    asked[rows[kept]] = True
    return Result.of(asked, differs & ~asked)
