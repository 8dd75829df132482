"""Training as the model will be left: each step learns most from the examples that leave about there (COSEE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ponder._utils.validation import check_int, check_real
from ponder.objectives.base import Objective, Unrolled, registry
from ponder.objectives.signals import certainty, check_one_class, check_signal
from ponder.parts.tasks import Task

__all__ = ["SimulatedExits"]


@registry.register("simulated-exits")
@dataclass(frozen=True)
class SimulatedExits(Objective):
    r"""The losses of all steps, weighted by how near a step is to the one at which the example would leave.

    For each of K thresholds t_k, an example would leave at n*_k, the first step whose signal is above t_k, or at the
    last. The loss is

        (1/K) Σ_k Σ_n w_n(n*_k) ℓ_n   with   w_n(m) = exp(−β |n − m|) / Σ_j exp(−β |j − m|),

    and β = `sharpness` · (share of training that is done): all steps learn alike at first, and each from its own
    examples in the end (He et al. 2025, "COSEE: Consistency-Oriented Signal-Based Early Exiting via Calibrated Sample
    Weighting Mechanism", arXiv 2412.13236; Eq. 3–7). No gradient flows through the weights.

    The paper draws the K thresholds at random from the range that the signal had in the epoch before. Here they are
    the middles of K equal parts of the range in the batch, without the last step, at which every example leaves
    anyway: the same average with less noise, and nothing to remember from batch to batch.

    Args:
        thresholds: K ≥ 1.
        sharpness: β at the end of training, ≥ 0; 0 weighs all steps alike.
        signal: What the simulated policy reads: ``"confidence"``, ``"energy"`` (the paper's choice), ``"margin"`` or
            ``"negative_entropy"`` of class logits, or ``"halting"``, the Lambda head's CDF, which every task has.

    Example:
        >>> model.objective = objectives.SimulatedExits(thresholds=5, sharpness=10.0)
        >>> model.progress = ponder.Progress(step=10, total=100)
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    thresholds: int = 5
    sharpness: float = 10.0
    signal: Literal["confidence", "energy", "margin", "negative_entropy", "halting"] = "confidence"
    reads_whole_batch = True

    def __post_init__(self) -> None:
        check_int("thresholds", self.thresholds, remedy="Pass thresholds=5, say.")
        check_real("sharpness", self.sharpness, remedy="Pass sharpness=10.0, say.")
        check_signal(self.signal)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """How far training has come, and the hazard where the halting distribution is the signal."""
        return frozenset({"progress", "hazard"} if self.signal == "halting" else {"progress"})

    @property
    def teaches_all_steps(self) -> bool:  # type: ignore[override]
        """Whether every step is taught: unless a Lambda head says where rows leave, which is taught too."""
        return self.signal != "halting"

    def check_task(self, task: Task) -> None:
        check_one_class(self.signal, task)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        losses, progress = unrolled.losses, unrolled.progress
        assert progress is not None  # `check_batch` saw to it
        num_steps = losses.shape[1]
        sure = certainty(self.signal, unrolled)
        if num_steps == 1:
            return losses[:, 0]
        left = self._exit_steps(sure[:, :-1])
        steps = torch.arange(num_steps, device=losses.device)
        distance = (steps - left.unsqueeze(-1)).abs().to(losses.dtype)
        weights = torch.softmax(-self.sharpness * progress.share * distance, dim=-1)
        return (weights.mean(1) * losses).sum(-1)

    def _exit_steps(self, sure: Tensor) -> Tensor:
        """Where each row leaves under each threshold, `(batch, thresholds)` long, counted from 0."""
        low, high = sure.min(), sure.max()
        shares = (torch.arange(self.thresholds, device=sure.device, dtype=sure.dtype) + 0.5) / self.thresholds
        leaves = sure.unsqueeze(1) > (low + (high - low) * shares).unsqueeze(-1)
        never = torch.ones_like(leaves[..., :1])  # the last step takes who is left
        return torch.cat([leaves, never], dim=-1).long().argmax(-1)
