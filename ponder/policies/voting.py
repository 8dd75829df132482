"""Voting: stop when enough of the steps so far have given this answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch.nn.functional as F
from torch import Tensor

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError
from ponder.policies.base import Setting, StepView, check_step, registry
from ponder.policies.threshold import Knob, ThresholdPolicy

__all__ = ["Voting"]


@registry.register("voting")
@dataclass(frozen=True)
class Voting(ThresholdPolicy):
    """Stop once `votes` of the steps so far, this one included, give the answer of this step.

    Unlike patience, a dissenting step in between costs nothing but itself (after the voting of Sun et al. 2021, "Early
    Exiting with Ensemble Internal Classifiers", Section 3.2, with a fixed number of votes).

    Args:
        votes: From 1 (leave at the first step) to the number of steps.
    """

    votes: int
    needs = frozenset({"output"})
    knob = Knob("votes", "at_least", low=1, high=lambda num_steps, width: num_steps, whole=True)

    def __post_init__(self) -> None:
        check_step("votes", self.votes)

    def check(self, setting: Setting) -> None:
        super().check(setting)
        check_step("votes", self.votes, setting.num_steps)
        if setting.task not in (None, "classification", "custom"):
            raise self._refusal(f"the task {setting.task!r}")

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        output = step.output
        if output.dim() != 2 or output.shape[-1] < 2:
            raise self._refusal(f"outputs of shape {tuple(output.shape)}")
        answer = output.argmax(-1)
        votes = F.one_hot(answer, output.shape[-1])
        votes = votes if state is None else votes + state
        return votes.gather(1, answer.unsqueeze(1)).squeeze(1), votes

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, votes=max(1, round(self.votes * num_steps / tuned_for)))

    def _refusal(self, got: str) -> ArgumentError:
        return ArgumentError(
            "policy",
            expected="class logits (batch, classes ≥ 2) under Voting",
            got=got,
            remedy="Only classes can be counted; use policies.Patience with a tolerance for numbers.",
        )
