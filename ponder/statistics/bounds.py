r"""p-values for "the mean loss is above a level", from n independent losses, valid for every n.

A p-value is the probability of losses as low as these if their true mean were above the level. If
it is at most δ, the mean is at most the level with confidence 1 − δ. `BOUNDS` holds them by name.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ponder._utils.arrays import Floats
from ponder.errors import ArgumentError

__all__ = [
    "BOUNDS",
    "Bound",
    "binomial_cdf",
    "check_losses",
    "most_failures_in_batch",
    "rows_needed",
    "upper_bound",
]

_HIGHEST_STAKE = 0.999  # of 1 / (1 − level), the stake with which a loss of 1 takes all wealth


@dataclass(frozen=True)
class Bound:
    """A bound on the mean of losses.

    Args:
        p_values: (losses `(rows, thresholds)`, level) → p-values `(thresholds,)`.
        binary: Whether losses must be 0 or 1.
        low: Least loss that it can use; lower losses are raised to it.
    """

    p_values: Callable[[Floats, float], Floats]
    binary: bool = False
    low: float = 0.0


def check_losses(losses: Floats, bound: str) -> None:
    """Raise an error if the losses are outside the range of a bound."""
    chosen = BOUNDS[bound]
    if chosen.binary:
        inside = (losses == 0) | (losses == 1)
        expected = f"0 or 1 with {bound!r}"
    else:
        inside = (losses >= chosen.low) & (losses <= 1)
        expected = f"numbers from {chosen.low:g} to 1"
    if not inside.all():
        got = f"values from {losses.min():.6g} to {losses.max():.6g}"
        remedy = (
            "Choose bound='hoeffding_bentkus' or 'betting' for losses between 0 and 1, "
            "and divide larger ones."
        )
        raise ArgumentError("losses", expected=expected, got=got, remedy=remedy)


def rows_needed(level: float, confidence: float) -> int:
    r"""Return the least number of rows that certify a level if every loss is 0.

    The p-value of ``"hoeffding_bentkus"`` and ``"exact_binomial"`` is then (1 − level)^n. That of
    ``"betting"`` is larger, so more rows may be needed.

    Example:
        >>> rows_needed(0.02, 0.95)
        149
    """
    rows = math.log(1.0 - confidence) / math.log1p(-level)
    return max(math.ceil(min(rows, sys.float_info.max)), 1)  # a tiny level gives an infinite ratio


def _log_pmf(rows: int, p: float, most: int) -> Floats:
    """Return log P(Bin(rows, p) = k) for k = 0..most."""
    k = np.arange(most + 1.0)
    # log (rows choose k), from each k to the next: × (rows − k) / (k + 1).
    log_growth = np.log(rows - k[:-1]) - np.log(k[1:])
    log_choose = np.concatenate([[0.0], np.cumsum(log_growth)])
    log_pmf: Floats = log_choose + k * math.log(p) + (rows - k) * math.log1p(-p)
    return log_pmf


@lru_cache(maxsize=64)
def binomial_cdf(rows: int, p: float) -> Floats:
    """Return P(Bin(rows, p) ≤ k) for k = 0..rows."""
    return np.minimum(np.exp(np.logaddexp.accumulate(_log_pmf(rows, p, rows))), 1.0)


def upper_bound(failures: int, rows: int, confidence: float) -> float:
    """Return the upper limit of a failure rate, by Clopper and Pearson (1934), to 10⁻⁹.

    It is the lowest level that so many failures certify, and is found by bisection.

    Example:
        >>> round(upper_bound(3, 149, 0.95), 4)
        0.0512
    """
    low = failures / rows
    high = 1.0
    for _ in range(31):
        middle = min((low + high) / 2.0, 1.0 - 1e-12)
        cdf = float(np.exp(_log_pmf(rows, middle, failures)).sum())
        if cdf <= 1.0 - confidence:
            high = middle
        else:
            low = middle
    return high


def most_failures_in_batch(drawn: int, others: int, allowed: int, confidence: float) -> int:
    r"""Return with how many failures drawn rows certify that few of the others in a batch fail.

    Rows are drawn from a finite batch at random and without replacement. If k of c drawn rows fail,
    K failures in the whole batch are rejected where P(Hypergeometric(M, K, c) ≤ k) ≤ δ. Of the
    other rows at most m fail if K = m + 1 + k is rejected. That probability is also the one that,
    of failing rows in any fixed order, at most k are drawn before m + 1 are not: the negative
    hypergeometric distribution, whose cdf is computed here. So thresholds may be tested in a fixed
    sequence although the number of failures among the others depends on the draw: it first exceeds
    m at the failing row at which m + 1 are not drawn.

    Args:
        drawn: Rows that were drawn, c.
        others: The other rows of the batch, M − c.
        allowed: How many of these may fail, m.
        confidence: 1 − δ.

    Returns:
        The largest such number; −1 if too few rows were drawn.

    Example:
        >>> most_failures_in_batch(500, 1500, 40, 0.95), most_failures_in_batch(50, 1500, 40, 0.95)
        (6, -1)
    """
    if others <= allowed:
        return drawn
    batch = drawn + others
    not_drawn = np.arange(allowed + 1.0)
    log_none = np.log((others - not_drawn) / (batch - not_drawn)).sum()
    # From the probability that k failing rows are drawn first to that of k + 1.
    k = np.arange(float(drawn))
    log_orders = np.log((allowed + 1 + k) / (k + 1))
    log_drawn = np.log((drawn - k) / (batch - allowed - 1 - k))
    log_pmf = log_none + np.concatenate([[0.0], np.cumsum(log_orders + log_drawn)])
    cdf = np.exp(np.logaddexp.accumulate(log_pmf))
    return int(np.searchsorted(cdf, 1.0 - confidence, side="right")) - 1


def _exact_binomial(losses: Floats, level: float) -> Floats:
    """P(Bin(n, level) ≤ number of losses), for losses of 0 or 1 (Brown, Cai & DasGupta 2001)."""
    failures = losses.sum(axis=0).round().astype(np.intp)
    p_values: Floats = binomial_cdf(len(losses), level)[failures]
    return p_values


def _hoeffding_bentkus(losses: Floats, level: float) -> Floats:
    r"""min(exp(−n h(min(R̂, α), α)), e P(Bin(n, α) ≤ ⌈n R̂⌉)), with h the relative entropy.

    Source: Bates et al. 2021; Angelopoulos et al. 2021, Proposition 1.
    """
    rows = len(losses)
    total = losses.sum(axis=0)
    mean = np.minimum(total / rows, level)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 log 0 is 0
        of_losses = np.where(mean > 0, mean * np.log(mean / level), 0.0)
    entropy = of_losses + (1 - mean) * np.log((1 - mean) / (1 - level))
    hoeffding = np.exp(-rows * entropy)
    failures = np.ceil(total - 1e-9).astype(np.intp)  # a sum of losses may be rounded up
    bentkus = math.e * binomial_cdf(rows, level)[failures]
    p_values: Floats = np.minimum(np.minimum(hoeffding, bentkus), 1.0)
    return p_values


def _betting(losses: Floats, level: float) -> Floats:
    r"""1 / max_t K_t, K_t = Π_{i≤t} (1 + ν_i (α − L_i)): wealth of bets that losses are small.

    Under a mean above α the wealth K is a supermartingale, whose maximum exceeds 1/δ with
    probability at most δ (Ville). The stake ν_i depends on earlier rows only, and stays below
    1 / (1 − α), so that no bet loses all the wealth (Waudby-Smith & Ramdas 2020, Section 4.3, the
    predictable plug-in; each bet is aimed at level 0.05). A negative loss, which is a gain on a
    row, increases the wealth.

    The bets follow one another, so the order of the rows must not depend on their losses, as it
    does if rows are sorted by class. They are shuffled by a seed that is their number, in the same
    way for all thresholds.
    """
    rows = len(losses)
    losses = losses[np.random.default_rng(rows).permutation(rows)]
    seen = np.arange(1.0, rows + 1)[:, None]
    mean = (0.5 + losses.cumsum(axis=0)) / (seen + 1)
    variance = (0.25 + ((losses - mean) ** 2).cumsum(axis=0)) / (seen + 1)
    earlier_variance = np.concatenate([np.full((1, losses.shape[1]), 0.25), variance[:-1]])
    stake = np.sqrt(2.0 * math.log(1 / 0.05) / (rows * earlier_variance))
    stake = np.minimum(stake, _HIGHEST_STAKE / (1 - level))
    log_wealth = np.log1p(stake * (level - losses)).cumsum(axis=0)
    p_values: Floats = np.minimum(np.exp(-log_wealth.max(axis=0)), 1.0)
    return p_values


BOUNDS: dict[str, Bound] = {
    "hoeffding_bentkus": Bound(_hoeffding_bentkus),
    "betting": Bound(_betting, low=-1.0),
    "exact_binomial": Bound(_exact_binomial, binary=True),
}
