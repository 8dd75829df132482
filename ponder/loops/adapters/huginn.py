"""Huginn: a core with the input injected at every step, and criteria added after training.

Geiping et al. 2025, arXiv 2502.05171. Its `PerIterationExitEvaluator` has `init` and `check`, as a
policy has `init` and `decide`; here are its criteria with its default thresholds, of a position
instead of the last token of one row:

    "latent-diff"       policies.Converged(tolerance=0.03, on="features"), ‖h_n − h_{n−1}‖ / ‖h_n‖
    "argmax-stability"  policies.Patience(5)
    "kl"                OutputChange("kl", 1e-3), KL(p_{n−1} ‖ p_n)
    "entropy-diff"      OutputChange("entropy", 1e-3), |H(p_n) − H(p_{n−1})|
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ponder.policies import StepView, Threshold, ThresholdPolicy
from ponder.policies.base import PolicyState

__all__ = ["InjectedCore", "OutputChange"]


class InjectedCore(nn.Module):
    """h ← core(adapter([h, e])) with e, the embedded input, at every step."""

    def __init__(self, core: Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.core = core
        self.adapter = nn.Linear(2 * width, width, bias=False)

    def forward(
        self, hidden: Tensor, embedded: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return the states after a step."""
        return self.core(self.adapter(torch.cat([hidden, embedded], dim=-1)), attention_mask)


@dataclass(frozen=True)
class OutputChange(ThresholdPolicy):
    """Stop once the class probabilities change little from step to step; not at the first."""

    kind: Literal["kl", "entropy"] = "kl"
    threshold: float = 1e-3
    needs = frozenset({"output"})
    tunable = Threshold("threshold", "below")

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Tensor, PolicyState]:
        """Return the change, infinite at the first step, and the log-probabilities."""
        now: Tensor = step.output.float().log_softmax(-1)
        if state is None:
            return torch.full(now.shape[:1], torch.inf), now
        if self.kind == "kl":
            return (state.exp() * (state - now)).sum(-1), now
        entropy, before = (-(each.exp() * each).sum(-1) for each in (now, state))
        return (entropy - before).abs(), now
