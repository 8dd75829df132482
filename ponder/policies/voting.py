"""Voting: stop when enough of the steps so far have given this answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.trees import Tree
from ponder._utils.validation import check_int
from ponder.errors import ArgumentError
from ponder.policies.base import ModelSpec, StepView, ThresholdPolicy, has_classes, registry
from ponder.policies.threshold import Threshold

__all__ = ["Voting"]


@registry.register("voting")
@dataclass(frozen=True)
class Voting(ThresholdPolicy):
    """Stop once `votes` of the steps so far, this one included, give the answer of this step.

    Unlike patience, a dissenting step in between costs nothing but itself (after the voting of Sun et al. 2021, "Early
    Exiting with Ensemble Internal Classifiers", Section 3.2, with a fixed number of votes).

    In token classification every position votes, and the row leaves once each of them that is no padding has enough.

    Args:
        votes: The number of votes, from 1 (leave at the first step) to the number of steps.

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.replay(policies.Voting(2)).exit_step  # two steps have given this answer
        tensor([2])
    """

    votes: int
    needs = frozenset({"output"})
    tunable = Threshold("votes", "at_least", low=1, high=lambda num_steps, width: num_steps, whole=True)

    def __post_init__(self) -> None:
        check_int("votes", self.votes)

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        check_int("votes", self.votes, 1, spec.num_steps)
        if not has_classes(spec, self):
            raise self._refusal(f"the task {spec.task.name!r}")

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        output = step.output
        if not step.task.fits(output):
            raise self._refusal(f"outputs of shape {tuple(output.shape)}")
        answer = step.task.predictions(output)
        nan = output.isnan().any(-1)  # no answer, which has no vote
        votes = F.one_hot(answer, output.shape[-1]).masked_fill(nan.unsqueeze(-1), 0)
        votes = votes if state is None else votes + state
        for_answer = votes.gather(-1, answer.unsqueeze(-1)).squeeze(-1).masked_fill(nan, 0)
        if for_answer.dim() == 1:
            return for_answer, votes
        if step.mask is not None:
            for_answer = torch.where(step.mask, for_answer, step.num_steps)
        return for_answer.amin(1), votes

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, votes=max(1, round(self.votes * num_steps / tuned_for)))

    def _refusal(self, got: str) -> ArgumentError:
        return ArgumentError(
            "policy",
            expected="class logits (batch, classes ≥ 2) under Voting",
            got=got,
            remedy="Only classes can be counted; use policies.Patience with a tolerance for numbers.",
        )
