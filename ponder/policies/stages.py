"""A policy with one threshold a step, for the stages of a cascade, whose scores differ."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ponder._utils.arrays import at_least_float32, namespace
from ponder.policies.base import (
    Array,
    ExitPolicy,
    PolicyState,
    StepView,
    ThresholdPolicy,
)

__all__ = ["StageThresholds"]


@dataclass(frozen=True)
class StageThresholds(ExitPolicy):
    """A certainty policy with one threshold a stage.

    Args:
        policy: The kind, such as `Confidence`; its own threshold is not read.
        thresholds: The threshold of each stage but the last.

    Example:
        >>> from ponder.policies.stages import StageThresholds
        >>> scores = torch.tensor([[[0.0, 2.0], [0.0, 2.0], [0.0, 9.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> record.replay(StageThresholds(policies.Confidence(0.5), (0.9, 0.8))).exit_step
        tensor([2])
    """

    policy: ThresholdPolicy
    thresholds: tuple[float, ...]
    needs = frozenset({"output"})

    def init(self, first: StepView) -> PolicyState:
        return self.policy.init(first)

    def decide(self, step: StepView, state: PolicyState) -> tuple[Array | bool, PolicyState]:
        """Compare each row's certainty with the threshold of its stage."""
        value, state = self.policy.statistic(step, state)
        value = at_least_float32(value)
        xp = namespace(value)
        thresholds = xp.asarray(self.thresholds, dtype=value.dtype)
        if xp is not np:
            thresholds = thresholds.to(value.device)
        return self.policy.tunable.crossed(value, thresholds[step.index - 1]), state

    def words(self) -> str:
        """Return the thresholds by stage; neighbouring stages with the same one are joined."""
        tunable = self.policy.tunable
        kind = self.policy.name_with_article
        numbered = list(enumerate(self.thresholds, 1))
        if len(numbered) == 1:
            return f"{kind} {tunable.words(self.thresholds[0])}"
        clauses = []
        for value, group in groupby(numbered, key=lambda pair: pair[1]):
            stages = [number for number, _ in group]
            span = f"stage {stages[0]}"
            if len(stages) > 1:
                span = f"stages {stages[0]} to {stages[-1]}"
            clauses.append(f"{tunable.words(value)} at {span}")
        return f"{kind} {' and '.join(clauses)}"
