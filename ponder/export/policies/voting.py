"""Voting: stop once one answer has been given often enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder._utils.validation import check_int
from ponder.export.policies.base import (
    Array,
    ModelSpec,
    NumpyPolicy,
    StepView,
    check_answers,
    check_classes,
    registry,
)
from ponder.export.policies.signals import least

__all__ = ["Voting"]


@registry.register("voting")
@dataclass(frozen=True)
class Voting(NumpyPolicy):
    """Twin of `ponder.policies.Voting`."""

    votes: int
    needs = frozenset({"output"})

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        check_int("votes", self.votes, 1, model.num_steps)
        check_classes(model, self)
        check_answers(model, self)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        output = step.output
        assert output is not None
        answer = step.task.predictions(output)
        answered = np.asarray(~np.isnan(output).any(-1))  # NaN has no vote
        votes = np.eye(output.shape[-1], dtype=np.int64)[answer] * answered[..., None] + (0 if state is None else state)
        own = np.take_along_axis(votes, answer[..., None], -1)[..., 0] * answered
        return least(own.astype(np.float64), step.mask) >= self.votes, votes
