r"""p-values for "the mean loss is above a level", from n independent losses, valid for every n.

Each function answers: how likely would losses as good as these be, if their true mean were above `level`? A p-value of
at most δ lets one say the contrary with confidence 1 − δ.
"""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.validation import check_choice, check_share
from ponder.errors import ArgumentError

__all__ = ["BOUNDS", "Bound", "p_values", "rows_needed"]


@dataclass(frozen=True)
class Bound:
    """A way to bound the mean of losses.

    Args:
        p_values: (losses `(rows, thresholds)` float64, level) → p-values `(thresholds,)`.
        best_row: Level → how much one row without loss lowers the log of the p-value at most.
        binary: Whether losses must be 0 or 1.
        low: Least loss that it can use; a gap that can be negative is cut at 0 where this is 0.
    """

    p_values: Callable[[Tensor, float], Tensor]
    best_row: Callable[[float], float]
    binary: bool = False
    low: float = 0.0


def p_values(losses: Tensor, level: float, bound: str = "hoeffding_bentkus") -> Tensor:
    """p-values of "the mean loss is above `level`", one for each column.

    Args:
        losses: `(rows, thresholds)`, in [0, 1] (``"betting"`` takes [−1, 1] too).
        level: The level that the mean loss is held against, in (0, 1).
        bound: ``"hoeffding_bentkus"``, ``"betting"`` or ``"exact_binomial"`` (losses 0 or 1).

    Raises:
        ArgumentError: Losses of another shape, none, NaN, or such as the bound says nothing of.

    Example:
        >>> p_values(torch.zeros(149, 1), 0.02, "exact_binomial").lt(0.05)
        tensor([True])
        >>> sorted(BOUNDS)
        ['betting', 'exact_binomial', 'hoeffding_bentkus']
    """
    check_share("level", level)
    chosen = find(bound)
    if losses.dim() != 2 or not len(losses):
        raise ArgumentError(
            "losses",
            expected="(rows, thresholds), with at least one row",
            got=f"shape {tuple(losses.shape)}",
            remedy="One threshold is losses.unsqueeze(1).",
        )
    inside = (losses == 0) | (losses == 1) if chosen.binary else (losses >= chosen.low) & (losses <= 1)
    if not bool(inside.all()):
        raise ArgumentError(
            "losses",
            expected="0 or 1" if chosen.binary else f"numbers from {chosen.low:g} to 1",
            got=f"values from {float(losses.min()):.6g} to {float(losses.max()):.6g}",
            remedy="Choose 'hoeffding_bentkus' or 'betting' for losses between 0 and 1."
            if chosen.binary
            else "Divide them by the largest loss there can be; NaN is none.",
        )
    return chosen.p_values(losses.double(), level)


def rows_needed(level: float, confidence: float, bound: str = "hoeffding_bentkus") -> int:
    r"""The least number of rows with which a level can be certified at all, were every loss 0.

    Without a loss the p-value of ``"hoeffding_bentkus"`` and ``"exact_binomial"`` is (1 − level)^n. That of
    ``"betting"`` is computed, up to some 260,000 rows; beyond, this is a number that it cannot do without.

    Args:
        level: The level to certify, in (0, 1).
        confidence: Probability with which the certificate is to hold, in (0, 1).
        bound: ``"hoeffding_bentkus"``, ``"betting"`` or ``"exact_binomial"``.

    Example:
        >>> rows_needed(0.02, 0.95)
        149
    """
    check_share("level", level)
    check_share("confidence", confidence)
    delta, chosen = 1.0 - confidence, find(bound)
    fewest = math.ceil(min(-math.log(delta) / chosen.best_row(level), sys.float_info.max))
    if bound != "betting" or fewest > _TRIED_OUT:
        return max(fewest, 1)

    def enough(rows: int) -> bool:
        return float(chosen.p_values(torch.zeros(rows, 1, dtype=torch.float64), level)) <= delta

    most = max(fewest, 1)
    while not enough(most):
        most *= 2
    return bisect.bisect_left(range(most), True, lo=max(most // 2, fewest - 1, 1), key=enough)


_TRIED_OUT = 2**18


def find(bound: str) -> Bound:
    """Find a bound by its name."""
    check_choice("bound", bound, sorted(BOUNDS))
    return BOUNDS[bound]


def _exact_binomial(losses: Tensor, level: float) -> Tensor:
    """P(Bin(n, level) ≤ number of losses), for losses that are 0 or 1 (Brown, Cai & DasGupta 2001)."""
    return binomial_cdf(losses.sum(0).round(), losses.shape[0], level)


def _hoeffding_bentkus(losses: Tensor, level: float) -> Tensor:
    r"""min(exp(−n h(min(R̂, α), α)), e P(Bin(n, α) ≤ ⌈n R̂⌉)) (Bates et al. 2021; Angelopoulos et al. 2021, Prop. 1)."""
    rows, risk = losses.shape[0], losses.mean(0)
    below = risk.clamp(max=level)
    entropy = torch.xlogy(below, below / level) + torch.xlogy(1 - below, (1 - below) / (1 - level))
    hoeffding = torch.exp(-rows * entropy)
    bentkus = math.e * binomial_cdf(torch.ceil(losses.sum(0) - 1e-9), rows, level)
    return torch.minimum(hoeffding, bentkus).clamp(max=1.0)


_LOSSES_AT_ONCE = 2**20  # beside which some ten tensors of that size stand
_HIGHEST_STAKE = 0.999  # times 1 / (1 − level), the stake that one full loss would ruin


def _betting(losses: Tensor, level: float) -> Tensor:
    r"""1 / max_t K_t, K_t = Π_{i≤t} (1 + ν_i (α − L_i)): money won by betting that losses are small.

    Under a mean above α the capital K is a supermartingale, whose maximum exceeds 1/δ with probability at most δ
    (Ville). The stake ν_i looks at earlier rows only, and stays below 1 / (1 − α) so that no bet can ruin
    (Waudby-Smith & Ramdas 2020, Section 4.3, the predictable plug-in; at each time the bet is aimed at level 0.05).
    Losses may be negative: a gain on a row is then money earned.

    The bets follow one another, so the rows must not come in an order that tells of their losses (class by class, short
    ones first): they are shuffled, in the same way for all thresholds and whatever the losses are.
    """
    rows = losses.shape[0]
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(rows)).to(losses.device)
    blocks = losses.split(max(_LOSSES_AT_ONCE // rows, 1), dim=1)
    return torch.cat([_betting_in_order(block[order], level) for block in blocks])


def _betting_in_order(losses: Tensor, level: float) -> Tensor:
    """The p-values of `_betting` for losses that are bet on in their order."""
    rows = losses.shape[0]
    seen = torch.arange(1, rows + 1, dtype=torch.float64, device=losses.device).unsqueeze(1)
    mean = (0.5 + losses.cumsum(0)) / (seen + 1)
    variance = (0.25 + ((losses - mean) ** 2).cumsum(0)) / (seen + 1)
    before = torch.cat([variance.new_full((1, losses.shape[1]), 0.25), variance[:-1]])
    stake = torch.sqrt(2.0 * math.log(1 / 0.05) / (rows * before)).clamp(max=_HIGHEST_STAKE / (1 - level))
    capital = torch.log1p(stake * (level - losses)).cumsum(0)
    return torch.exp(-capital.amax(0)).clamp(max=1.0)


def binomial_cdf(successes: Tensor, rows: int, p: float) -> Tensor:
    """P(Bin(rows, p) ≤ successes), elementwise, float64."""
    k = torch.arange(rows + 1, dtype=torch.float64)
    log_choose = math.lgamma(rows + 1) - torch.lgamma(k + 1) - torch.lgamma(rows - k + 1)
    log_pmf = log_choose + k * math.log(p) + (rows - k) * math.log1p(-p)
    cdf = torch.logcumsumexp(log_pmf, 0).exp().clamp(max=1.0)
    inside = successes.long().clamp(0, rows).cpu()
    return cdf[inside].to(successes.device)


def _honest_row(level: float) -> float:
    return -math.log1p(-level)


def _best_bet(level: float) -> float:
    return math.log1p(_HIGHEST_STAKE * level / (1 - level))


BOUNDS: dict[str, Bound] = {
    "hoeffding_bentkus": Bound(_hoeffding_bentkus, _honest_row),
    "betting": Bound(_betting, _best_bet, low=-1.0),
    "exact_binomial": Bound(_exact_binomial, _honest_row, binary=True),
}
