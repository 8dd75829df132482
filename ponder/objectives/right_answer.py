"""The objective that trains halting in HRM and TRM: is the whole answer right now?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.checks import check_real
from ponder.errors import ArgumentError
from ponder.objectives.base import Depth, Objective, Unrolled

__all__ = ["AllRight"]


@dataclass(frozen=True)
class AllRight(Objective):
    r"""The loss of each step's answer, and a halting logit that says whether it is right.

    (1/N) Σ_n c_n (ℓ_n + w BCE(q_n, [the answer of step n is right in every labelled part])), where
    q_n is the logit of the Lambda head. HRM (Wang et al. 2025, arXiv 2506.21734) and TRM
    (Jolicoeur-Martineau 2025, arXiv 2510.04871) train so, with w = 1/2, and halt where q_n > 0
    (`policies.RightAnswer`). Their bootstrapped value of going on, which TRM leaves out, is not
    here.

    The state is carried: each step starts from the detached state of the step before, so that a
    step learns from its own answer alone, and memory does not grow through the steps.

    Without `exploration` all steps count, c_n = 1. With it, training halts as HRM's and TRM's does:
    a row counts up to the first step m at which q > 0, which is at least 1, or for the share
    `exploration` of the rows at least a number drawn from 2, …, N.

    A row is what halts: a whole puzzle in a `ponder.loops.Loop` with ``halted="together"``, one
    position with ``"frozen"``.

    Args:
        weight: w ≥ 0.
        exploration: The share of the rows that must go on for longer, in [0, 1]; None if all steps
            count.

    Example:
        >>> model.objective = objectives.AllRight()
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    weight: float = 0.5
    exploration: float | None = None
    needs = frozenset({"hazard"})

    def __post_init__(self) -> None:
        check_real("weight", self.weight)
        if self.exploration is not None:
            check_real("exploration", self.exploration, 0.0, 1.0)

    def depth(self, num_steps: int) -> Depth:
        return Depth(0, num_steps, detached=True)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        logits: Tensor = unrolled.given("hazard_logits")
        is_right = _is_right(unrolled).to(logits.dtype)
        halting = F.binary_cross_entropy_with_logits(logits, is_right, reduction="none")
        of_steps = unrolled.losses + self.weight * halting
        if self.exploration is not None:
            of_steps = of_steps * _counted(logits.detach(), self.exploration)
        return of_steps.mean(-1)


def _counted(logits: Tensor, exploration: float) -> Tensor:
    """Return which steps of each row count, `(batch, steps)` bool."""
    rows, num_steps = logits.shape
    steps = torch.arange(1, num_steps + 1, device=logits.device)
    least = torch.randint(min(2, num_steps), num_steps + 1, (rows, 1), device=logits.device)
    explores = torch.rand(rows, 1, device=logits.device) < exploration
    least = torch.where(explores, least, 1)
    halts = (logits > 0) & (steps >= least)
    # A step counts unless the row has halted at one before it.
    return halts.long().cumsum(-1) - halts.long() == 0


def _is_right(unrolled: Unrolled) -> Tensor:
    """Return whether each step is right in every labelled part, `(batch, steps)` bool."""
    task = unrolled.task
    if task.metric not in ("accuracy", "exact_match"):
        raise ArgumentError(
            "objective",
            expected="a task whose answers are right or wrong",
            got=f"the task {task.name!r}",
            remedy="Use objectives.Ponder, which asks for a loss alone.",
        )
    answers, known = task.targets(unrolled.given("labels"))
    parts = (task.predictions(unrolled.outputs) == answers.unsqueeze(1)) | ~known.unsqueeze(1)
    is_right: Tensor = parts.flatten(2).all(-1) if parts.dim() > 2 else parts
    return is_right
