"""Policies on hazards: sampling (PonderNet), its quantile (Q-exit), their sum (ACT), one alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ponder._utils.arrays import namespace
from ponder._utils.checks import check_real
from ponder._utils.seeds import uniform
from ponder.policies.base import (
    Array,
    ExitPolicy,
    PolicyState,
    StepView,
    Threshold,
    ThresholdPolicy,
)

__all__ = ["ACT", "Bernoulli", "Quantile", "RightAnswer"]


@dataclass(frozen=True)
class Quantile(ThresholdPolicy):
    """Q-exit: stop at the first step n with CDF_n > q (PALBERT paper, Section 3.1).

    Args:
        q: Quantile level in [0, 1]. 0 exits as soon as there is any mass; 1 runs to the last step.

    Example:
        >>> logits = torch.tensor([[-1.0, 0.0, 0.0]])
        >>> record = Trajectory(torch.zeros(1, 3, 2), logits, torch.arange(1))
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

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        return step.cdf, state


@dataclass(frozen=True)
class Bernoulli(ExitPolicy):
    """PonderNet's sampling: stop at step n with probability λ_n (Banino et al. 2021, Section 2.2).

    One number u ~ U[0, 1) is drawn for each row, and the row exits at the first n with CDF_n > u,
    which has exactly that law: given that a row has not stopped before n, it stops there with
    probability λ_n.

    Args:
        seed: With a seed, u is a function of (seed, row id) alone, so that a row exits at the same
            step in any batch. None draws anew at every call, from PyTorch's global generator.

    Example:
        >>> logits = torch.tensor([[-1.0, 0.0, 0.0]])
        >>> record = Trajectory(torch.zeros(1, 3, 2), logits, torch.arange(1))
        >>> record.replay(policies.Bernoulli(seed=0)).exit_step
        tensor([2])
        >>> record.replay(policies.Bernoulli(seed=0)).exit_step  # the same seed and row
        tensor([2])
    """

    seed: int | None = None
    needs = frozenset({"hazard"})

    def init(self, first: StepView) -> PolicyState:
        ids = first.row_ids
        if self.seed is not None:
            return uniform(self.seed, ids)
        xp = namespace(ids)
        if xp is np:
            return np.random.random(first.size)
        return xp.rand(first.size, device=ids.device)

    def decide(self, step: StepView, state: PolicyState) -> tuple[Array | bool, PolicyState]:
        return step.cdf > state, state


@dataclass(frozen=True)
class ACT(ThresholdPolicy):
    """Adaptive computation time: stop once the halting units add up to 1 − ε.

    See Graves 2016, Section 2. With the halting unit h_n = σ(hazard logit), the row exits at N =
    min{n : h_1 + … + h_n ≥ 1 − ε}. Unlike hazards, halting units are added and not multiplied, so
    that N is certain and nothing is sampled.

    The answer of a run is the output of step N. The paper's answer is the mean of the outputs of
    steps 1 … N under the weights that `objectives.ACT` trains; `objectives.ACT.answer` computes it
    from a trajectory.

    Args:
        epsilon: ε in [0, 1], the mass that may be missing. 1 exits at the first step.

    Example:
        >>> logits = torch.tensor([[-1.0, 1.0, 0.0]])
        >>> record = Trajectory(torch.zeros(1, 3, 2), logits, torch.arange(1))
        >>> torch.tensor([-1.0, 1.0]).sigmoid().cumsum(0)
        tensor([0.2689, 1.0000])
        >>> record.replay(policies.ACT(0.01)).exit_step
        tensor([2])
    """

    epsilon: float = 0.01
    needs = frozenset({"hazard"})
    tunable = Threshold("epsilon", "at_most")

    def __post_init__(self) -> None:
        check_real("epsilon", self.epsilon, 0.0, 1.0)

    def init(self, first: StepView) -> PolicyState:
        return namespace(first.hazard).zeros_like(first.hazard)

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        total = state + step.hazard
        return 1.0 - total, total


@dataclass(frozen=True)
class RightAnswer(ThresholdPolicy):
    """Stop once the probability that the answer is right is above a threshold (HRM, TRM).

    The probability is σ(q) of a Lambda head whose logit q was trained by `objectives.AllRight`; it
    is read at each step alone, and is no hazard. HRM (Wang et al. 2025, arXiv 2506.21734) and TRM
    (Jolicoeur-Martineau 2025, arXiv 2510.04871) stop where q > 0.

    Args:
        threshold: In [0, 1].

    Example:
        >>> logits = torch.tensor([[-1.0, 0.0, 2.0, 3.0]])
        >>> record = Trajectory(torch.zeros(1, 4, 2), logits, torch.arange(1))
        >>> record.replay(policies.RightAnswer(0.5)).exit_step
        tensor([3])
    """

    threshold: float = 0.5
    needs = frozenset({"hazard"})
    tunable = Threshold("threshold", "above")

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        return step.hazard, state
