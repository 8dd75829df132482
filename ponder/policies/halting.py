"""Policies on the halting distribution: sampling (PonderNet) and its quantile (PALBERT's Q-exit)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.trees import Tree
from ponder._utils.validation import check_int, check_real
from ponder.policies.base import ExitPolicy, PolicyBatch, StepView, ThresholdPolicy, registry
from ponder.policies.threshold import Threshold

__all__ = ["Bernoulli", "Quantile"]

_GAMMA = 0x9E3779B97F4A7C15


@registry.register("quantile")
@dataclass(frozen=True)
class Quantile(ThresholdPolicy):
    """Q-exit: stop at the first step n with CDF_n > q (PALBERT paper, Section 3.1).

    Args:
        q: Quantile level in [0, 1]. 0 exits as soon as any mass is behind; 1 runs to the last step.

    Example:
        >>> record = Trajectory(torch.zeros(1, 3, 2), torch.tensor([[-1.0, 0.0, 0.0]]), torch.arange(1))
        >>> record.halting.cdf(torch.tensor([1, 2, 3]))
        tensor([0.2689, 0.6345, 1.0000])
        >>> record.replay(policies.Quantile(0.5)).exit_step
        tensor([2])
    """

    q: float
    needs = frozenset({"hazard"})
    tunable = Threshold("q", "above")

    def __post_init__(self) -> None:
        check_real("q", self.q, 0.0, 1.0)

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        return step.cdf, state


@registry.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(ExitPolicy):
    """PonderNet's sampling: stop at step n with probability λ_n (Banino et al. 2021, Section 2.2).

    One number u ~ U[0, 1) is drawn for each row, and the row exits at the first n with CDF_n > u, which has
    exactly that law: given that a row has not stopped before n, it stops there with probability λ_n.

    Args:
        seed: With a seed, u is a function of (seed, row id) alone, so that a row exits at the same step in
            whatever batch it travels. None draws from PyTorch's global generator at every call.

    Example:
        >>> record = Trajectory(torch.zeros(1, 3, 2), torch.tensor([[-1.0, 0.0, 0.0]]), torch.arange(1))
        >>> record.replay(policies.Bernoulli(seed=0)).exit_step
        tensor([2])
        >>> record.replay(policies.Bernoulli(seed=0)).exit_step  # the same seed and row, the same step
        tensor([2])
    """

    seed: int | None = None
    needs = frozenset({"hazard"})

    def __post_init__(self) -> None:
        if self.seed is not None:
            check_int("seed", self.seed, None, remedy="Pass seed=0, say, or None.")

    def init(self, batch: PolicyBatch) -> Tree:
        if self.seed is None:
            return torch.rand(batch.size, device=batch.device)
        return _uniform(self.seed, batch.row_ids)

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return step.cdf > state, state


def _uniform(seed: int, row_ids: Tensor) -> Tensor:
    """Numbers in [0, 1), `(batch,)` float32, that are a function of seed and row id.

    A counter-based generator: the SplitMix64 finaliser (Steele, Lea & Flood 2014) applied to the seed plus the
    golden gamma (0 alone is a fixed point), and to its result plus the row id times the golden gamma. Int64
    arithmetic wraps around, on every device alike.
    """
    key = _mix(torch.tensor(_signed(seed + _GAMMA), device=row_ids.device))
    bits = _mix(key + row_ids.long() * _signed(_GAMMA))
    return _shift_right(bits, 40).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, whose own shift copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """`number` modulo 2^64 as a signed 64-bit integer."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >= 1 << 63 else number
