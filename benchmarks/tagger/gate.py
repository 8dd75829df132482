"""A gate for taggers: a text in which an early layer sees no entity at all needs no further layer.

An example of a policy of one's own, and of a risk: "of the texts with an entity, at most 1% are let through".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ponder.calibration import Missed
from ponder.calibration.records import Bools, Record
from ponder.policies import StepView, Threshold, ThresholdPolicy

__all__ = ["MissedEntities", "NoEntity"]


@dataclass(frozen=True)
class NoEntity(ThresholdPolicy):
    """Stop after one step if no token of the text has more than a threshold of probability of being in an entity.

    Args:
        threshold: The greatest probability of an entity, 1 − p(outside), over the tokens, in [0, 1].
        at: The step after which the gate looks; the others let nothing go.
        outside: The class of tokens that are in no entity.
    """

    threshold: float
    at: int = 2
    outside: int = 0
    needs = frozenset({"output"})
    tunable = Threshold("threshold", "below")

    def statistic(self, step: StepView, state: Any) -> tuple[torch.Tensor, Any]:
        """Return the greatest probability of an entity, `(batch,)`; infinite at the steps without a gate."""
        inside = 1.0 - step.output.softmax(-1)[..., self.outside]
        if step.mask is not None:
            inside = inside.masked_fill(~step.mask, 0.0)
        return inside.amax(1).masked_fill(step.index != self.at, torch.inf), state


@dataclass(frozen=True)
class MissedEntities(Missed):
    """Among texts that have an entity at full depth, the share with other tags; `classes` are the entities'."""

    name: str = "missed_entities"

    def rows(self, record: Record) -> Bools:
        """Return which texts have an entity at full depth, `(rows,)`."""
        *_, last = record.views(frozenset({"output"}))
        tagged: Bools = np.isin(np.asarray(last.output).argmax(-1), np.asarray(self.classes))
        if last.mask is not None:
            tagged = tagged & np.asarray(last.mask)
        return np.asarray(tagged.any(1))
