"""The rivals, each written anew, on a stream with a cheap model that is taught once.

* A fixed threshold: the first n rows teach, the next m certify by exact binomial bounds in a fixed sequence of
  thresholds, from the strictest on; the first that fails ends it.
* BARGAIN's rule for accuracy (Zeighami, Shankar and Parameswaran, arXiv 2509.02896), after the description of the paper
  and of its code: the whole batch is at hand. For thresholds from the strictest on, rows above it are drawn and asked
  until a betting test accepts that the target is met. It is given up if, after 50 draws, the mean less its standard
  error is below the target.
* B-PAC's rule (arXiv 2601.22446), after its authors' code: for each threshold a betting e-process on losses weighted by
  (1 - π) / π, whose bet is the sum of the gains so far over that of their squares. The loosest threshold answers whose
  wealth, and that of all stricter ones, is at least 1/δ; it is withdrawn when the wealth falls.
* PAC labels (Candès, Ilyas and Zrnic, arXiv 2506.10908), after its authors' code: the whole batch is at hand. Rows are
  drawn from it and asked; the loosest threshold is taken at which an upper bound on the share of errors is within the
  level. The bound here is the exact binomial one, with equal chances for all rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ponder.statistics.bounds import upper_bound

__all__ = ["Result", "bargain", "bpac", "fixed", "pac_labels"]

Array = NDArray[np.float64]
_DELTA = 0.05
_THRESHOLDS = 40
_PATIENCE = 50


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
    def of(cls, asked: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> Result:
        """Return the result of masks, `(rows,)`."""
        moments = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
        return cls(float(asked.mean()), float(wrong.mean()), float(moments[500:].max()))


def _thresholds(sure: Array) -> Array:
    """Return thresholds of the confidence, the strictest first."""
    return np.quantile(sure, np.linspace(1.0, 0.0, _THRESHOLDS + 1)[1:])


def fixed(
    sure: Array, differs: NDArray[np.bool_], level: float, taught: int, certify: int
) -> Result:
    """Answer by one threshold, which the rows after those that taught certify."""
    side = slice(taught, taught + certify)
    chosen = math.inf
    for threshold in _thresholds(sure[side]):
        failures = int((differs[side] & (sure[side] >= threshold)).sum())
        if upper_bound(failures, certify, 1 - _DELTA) > level:
            break
        chosen = float(threshold)
    asked = sure < chosen
    asked[: taught + certify] = True
    return Result.of(asked, differs & ~asked)


def bargain(
    sure: Array, differs: NDArray[np.bool_], level: float, taught: int, seed: int
) -> Result:
    """Answer by the loosest threshold that a betting test on drawn rows accepts."""
    order = taught + np.random.default_rng(seed).permutation(len(sure) - taught)
    known = np.zeros(len(sure), dtype=bool)
    known[:taught] = True
    chosen = math.inf
    for threshold in _thresholds(sure[taught:]):
        above = order[sure[order] >= threshold]
        target = 1.0 - min(level * len(sure) / max(len(above), 1), 1.0)
        count = _accepted(~differs[above], target)
        known[above[: abs(count)]] = True
        if count < 0:
            break
        chosen = float(threshold)
    asked = known | (sure < chosen)
    return Result.of(asked, differs & ~asked)


def _accepted(right: NDArray[np.bool_], target: float) -> int:
    """Return the draws after which a test accepts that the mean is above a target; negative if it gives up."""
    wealth = 0.0
    total = 0.5
    squares = 0.25
    for count, each in enumerate(right.tolist(), start=1):
        deviation = math.sqrt(squares / count)
        if target <= 0.0:
            return count - 1
        bet = math.sqrt(2 * math.log(1 / _DELTA) / (count * math.log(1 + count))) / max(
            deviation, 0.05
        )
        bet = min(bet, 0.75 / target)
        wealth += math.log1p(bet * (each - target))
        total += each
        squares += (each - total / (count + 1)) ** 2
        if wealth >= math.log(1 / _DELTA):
            return count
        lower = (total - 0.5) / count - deviation / math.sqrt(count)
        if count >= _PATIENCE and lower < target:
            return -count
    return -len(right)


def bpac(
    sure: Array,
    differs: NDArray[np.bool_],
    level: float,
    taught: int,
    audit: float,
    seed: int,
) -> Result:
    """Answer by the loosest threshold whose e-process, and that of all stricter ones, has the wealth 1/δ."""
    draw = np.random.default_rng(seed)
    thresholds = _thresholds(sure[taught : taught + 500])
    wealth = np.zeros(len(thresholds))
    gains = np.zeros(len(thresholds))
    squares = np.ones(len(thresholds))
    most = 0.9 / max(level, (1.0 - audit) / audit - level)
    asked = np.ones(len(sure), dtype=bool)
    chosen = math.inf
    for row in range(taught, len(sure)):
        answers = sure[row] >= chosen
        probability = audit if answers else 1.0
        asked[row] = draw.random() < probability
        weight = (1.0 - audit) * asked[row] / probability
        gain = level - weight * differs[row] * (sure[row] >= thresholds)
        wealth += np.log1p(np.clip(gains / squares, 0.0, most) * gain)
        gains += gain
        squares += gain**2
        held = np.logical_and.accumulate(wealth >= math.log(1 / _DELTA))
        chosen = float(thresholds[held.sum() - 1]) if held.any() else math.inf
    return Result.of(asked, differs & ~asked)


def pac_labels(
    sure: Array, differs: NDArray[np.bool_], level: float, taught: int, draws: int, seed: int
) -> Result:
    """Answer by the loosest threshold at which drawn rows bound the share of errors by the level."""
    rows = np.random.default_rng(seed).integers(taught, len(sure), draws)
    within = min(level * len(sure) / (len(sure) - taught), 1.0)
    chosen = math.inf
    for threshold in _thresholds(sure[taught:]):
        failures = int((differs[rows] & (sure[rows] >= threshold)).sum())
        if upper_bound(failures, draws, 1 - _DELTA) > within:
            break
        chosen = float(threshold)
    asked = sure < chosen
    asked[:taught] = True
    asked[rows] = True
    return Result.of(asked, differs & ~asked)
