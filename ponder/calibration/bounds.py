r"""p-values for "the mean loss is above a level", from n independent losses, valid for every n.

Each answers: how likely would losses as good as these be, if their true mean were above the level?
A p-value of at most δ lets one say the contrary with confidence 1 − δ.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ponder.calibration.records import Floats
from ponder.errors import ArgumentError

__all__ = ["BOUNDS", "Bound", "binomial_cdf", "check_losses", "rows_needed", "upper_bound"]

_HIGHEST_STAKE = 0.999  # times 1 / (1 − level), the stake that one full loss would ruin


@dataclass(frozen=True)
class Bound:
    """A way to bound the mean of losses.

    Args:
        p_values: (losses `(rows, thresholds)`, level) → p-values `(thresholds,)`.
        binary: Whether losses must be 0 or 1.
        low: Least loss that it can use; with 0, a gap that can be negative is cut at 0.
    """

    p_values: Callable[[Floats, float], Floats]
    binary: bool = False
    low: float = 0.0


def check_losses(losses: Floats, bound: str) -> None:
    """Check that a bound is valid for such losses."""
    chosen = BOUNDS[bound]
    if chosen.binary:
        inside = (losses == 0) | (losses == 1)
    else:
        inside = (losses >= chosen.low) & (losses <= 1)
    if not inside.all():
        if chosen.binary:
            expected = f"0 or 1 with {bound!r}"
        else:
            expected = f"numbers from {chosen.low:g} to 1"
        got = f"values from {losses.min():.6g} to {losses.max():.6g}"
        remedy = (
            "Choose bound='hoeffding_bentkus' or 'betting' for losses between 0 and 1, and divide "
            "larger ones."
        )
        raise ArgumentError("losses", expected=expected, got=got, remedy=remedy)


def rows_needed(level: float, confidence: float) -> int:
    r"""Return the least number of rows that can certify a level, if every loss is 0.

    Without a loss the p-value of ``"hoeffding_bentkus"`` and ``"exact_binomial"`` is (1 − level)^n.
    That of ``"betting"`` is larger, so that more may be needed.

    Example:
        >>> rows_needed(0.02, 0.95)
        149
    """
    return max(
        math.ceil(min(math.log(1.0 - confidence) / math.log1p(-level), sys.float_info.max)), 1
    )


def _log_pmf(rows: int, p: float, most: int) -> Floats:
    """Return log P(Bin(rows, p) = k) for k = 0..most."""
    k = np.arange(most + 1.0)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(rows - k[:-1]) - np.log(k[1:]))])
    found: Floats = log_choose + k * math.log(p) + (rows - k) * math.log1p(-p)
    return found


@lru_cache(maxsize=64)
def binomial_cdf(rows: int, p: float) -> Floats:
    """Return P(Bin(rows, p) ≤ k) for k = 0..rows."""
    return np.minimum(np.exp(np.logaddexp.accumulate(_log_pmf(rows, p, rows))), 1.0)


def upper_bound(failures: int, rows: int, confidence: float) -> float:
    """Return the lowest level that so many failures certify (Clopper and Pearson 1934).

    Example:
        >>> round(upper_bound(3, 149, 0.95), 4)
        0.0512
    """
    low = failures / rows
    high = 1.0
    for _ in range(31):
        middle = min((low + high) / 2.0, 1.0 - 1e-12)
        cdf = float(np.exp(_log_pmf(rows, middle, failures)).sum())
        low, high = (low, middle) if cdf <= 1.0 - confidence else (middle, high)
    return high


def _exact_binomial(losses: Floats, level: float) -> Floats:
    """P(Bin(n, level) ≤ number of losses), for losses 0 or 1 (Brown, Cai & DasGupta 2001)."""
    found: Floats = binomial_cdf(len(losses), level)[losses.sum(0).round().astype(np.intp)]
    return found


def _hoeffding_bentkus(losses: Floats, level: float) -> Floats:
    r"""min(exp(−n h(min(R̂, α), α)), e P(Bin(n, α) ≤ ⌈n R̂⌉)).

    Bates et al. 2021; Angelopoulos et al. 2021, Proposition 1.
    """
    rows = len(losses)
    total = losses.sum(0)
    below = np.minimum(total / rows, level)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = np.where(below > 0, below * np.log(below / level), 0.0)
    entropy = loss + (1 - below) * np.log((1 - below) / (1 - level))
    bentkus = math.e * binomial_cdf(rows, level)[np.ceil(total - 1e-9).astype(np.intp)]
    found: Floats = np.minimum(np.minimum(np.exp(-rows * entropy), bentkus), 1.0)
    return found


def _betting(losses: Floats, level: float) -> Floats:
    r"""1 / max_t K_t, K_t = Π_{i≤t} (1 + ν_i (α − L_i)): wealth of bets that losses are small.

    Under a mean above α the wealth K is a supermartingale, whose maximum exceeds 1/δ with
    probability at most δ (Ville). The stake ν_i looks at earlier rows only, and stays below 1 / (1
    − α) so that no bet can ruin (Waudby-Smith & Ramdas 2020, Section 4.3, the predictable plug-in;
    each bet is aimed at level 0.05). Losses may be negative: a gain on a row is then money earned.

    The bets follow one another, so rows must not come in an order that knows their losses (class by
    class, say): they are shuffled, in the same way for all thresholds, and the losses take no part
    in it.
    """
    rows = len(losses)
    losses = losses[np.random.default_rng(rows).permutation(rows)]
    seen = np.arange(1.0, rows + 1)[:, None]
    mean = (0.5 + losses.cumsum(0)) / (seen + 1)
    variance = (0.25 + ((losses - mean) ** 2).cumsum(0)) / (seen + 1)
    before = np.concatenate([np.full((1, losses.shape[1]), 0.25), variance[:-1]])
    stake = np.minimum(
        np.sqrt(2.0 * math.log(1 / 0.05) / (rows * before)), _HIGHEST_STAKE / (1 - level)
    )
    wealth = np.log1p(stake * (level - losses)).cumsum(0)
    found: Floats = np.minimum(np.exp(-wealth.max(0)), 1.0)
    return found


BOUNDS: dict[str, Bound] = {
    "hoeffding_bentkus": Bound(_hoeffding_bentkus),
    "betting": Bound(_betting, low=-1.0),
    "exact_binomial": Bound(_exact_binomial, binary=True),
}
