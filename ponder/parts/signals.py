"""How sure one step is of a class, as one number a row: what policies threshold, and what training simulates.

All signals grow with certainty, are computed in float32 at least, and are finite for logits of any finite size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.numerics import at_least_float32, weighted

__all__ = ["SIGNALS", "confidence", "energy", "margin", "negative_entropy"]


def confidence(logits: Tensor) -> Tensor:
    """The probability of the most probable class, `(…)`, of class logits `(…, classes)`."""
    return F.log_softmax(at_least_float32(logits), dim=-1).amax(-1).exp()


def margin(logits: Tensor) -> Tensor:
    """How far the two most probable classes are apart, in probability, `(…)`."""
    best, second = F.log_softmax(at_least_float32(logits), dim=-1).topk(2, dim=-1).values.exp().unbind(-1)
    return best - second


def negative_entropy(logits: Tensor) -> Tensor:
    """The negative entropy of the class probabilities, Σ p log p, `(…)`, from −log(classes) to 0."""
    log_p = F.log_softmax(at_least_float32(logits), dim=-1)
    p = log_p.exp()
    return weighted(p, log_p).sum(-1)  # 0 log 0 = 0, also for a logit of −inf


def energy(logits: Tensor) -> Tensor:
    """The normalised energy score of He et al. 2025 (COSEE), turned to grow with certainty, `(…)` in [0, 1].

    The paper's score is 1 / (1 + Σ_c exp z_c); this is one minus it, σ(log Σ_c exp z_c). NaN where a logit is +∞: an
    overflow is no certainty.
    """
    total = at_least_float32(logits).logsumexp(-1)
    return total.masked_fill(total == torch.inf, torch.nan).sigmoid()


SIGNALS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"confidence": confidence, "margin": margin, "negative_entropy": negative_entropy, "energy": energy}
)
