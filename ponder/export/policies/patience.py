"""Patience: stop once the answer has stayed the same for some steps in a row."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.export.policies.base import Array, StepView, registry
from ponder.export.policies.counting import Counting

__all__ = ["Patience"]


@registry.register("patience")
@dataclass(frozen=True)
class Patience(Counting):
    """Twin of `ponder.policies.Patience`."""

    patience: int
    tolerance: float = 0.0
    needs = frozenset({"output"})

    def unchanged(self, now: Array, before: Array, step: StepView) -> Array:
        return step.task.same(now, before, self.tolerance, step.mask)
