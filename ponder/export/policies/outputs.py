"""Policies on how sure the head is of a class, of the least sure position where there are several."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from ponder._utils.validation import check_flag, check_real
from ponder.export.policies.base import Array, ModelSpec, NumpyPolicy, StepView, check_classes, registry
from ponder.export.policies.signals import confidence, energy, least, margin, negative_entropy

__all__ = ["Confidence", "Energy", "Entropy", "Margin"]


@dataclass(frozen=True)
class _Certainty(NumpyPolicy):
    """Exit where the certainty of the step, which is higher the surer it is, is above a threshold."""

    threshold: float
    needs = frozenset({"output"})

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    @staticmethod
    @abstractmethod
    def measure(logits: Array) -> Array:
        """The certainty, `(…)`, of class logits `(…, classes)`."""

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        check_classes(model, self)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        assert step.output is not None
        value = least(self.measure(step.output), step.mask)
        return value > value.dtype.type(self.threshold), state


@registry.register("confidence")
@dataclass(frozen=True)
class Confidence(_Certainty):
    """Twin of `ponder.policies.Confidence`."""

    measure = staticmethod(confidence)


@registry.register("margin")
@dataclass(frozen=True)
class Margin(_Certainty):
    """Twin of `ponder.policies.Margin`."""

    measure = staticmethod(margin)


@registry.register("energy")
@dataclass(frozen=True)
class Energy(_Certainty):
    """Twin of `ponder.policies.Energy`."""

    measure = staticmethod(energy)


@registry.register("entropy")
@dataclass(frozen=True)
class Entropy(_Certainty):
    """Twin of `ponder.policies.Entropy`."""

    normalize: bool = False

    def __post_init__(self) -> None:
        check_flag("normalize", self.normalize)
        check_real("threshold", self.threshold, 0.0, 1.0 if self.normalize else math.inf)

    measure = staticmethod(negative_entropy)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        assert step.output is not None
        entropy = -least(self.measure(step.output), step.mask)
        if self.normalize:
            entropy = entropy / entropy.dtype.type(math.log(step.output.shape[-1]))
        return entropy < entropy.dtype.type(self.threshold), state
