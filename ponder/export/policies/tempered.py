"""Temperatures: a policy that sees the outputs of each step divided by a number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ponder._utils.validation import check_real
from ponder.errors import ArgumentError
from ponder.export.policies.base import Array, ModelSpec, StepView, ask, registry
from ponder.export.policies.joining import Around
from ponder.export.policies.signals import at_least_float32

__all__ = ["Tempered"]


@registry.register("tempered")
@dataclass(frozen=True)
class Tempered(Around):
    """Twin of `ponder.policies.Tempered`."""

    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        for temperature in self.temperatures:
            check_real("temperatures", temperature, open_low=True)

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        if len(self.temperatures) not in (1, model.num_steps):
            raise ArgumentError(
                "temperatures",
                expected=f"one, or one for each of {model.num_steps} steps",
                got=len(self.temperatures),
                remedy="Fit them on a trajectory of this model.",
            )

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        if step.output is None:
            return ask(self.policy, step, state)
        own = self.temperatures[0] if len(self.temperatures) == 1 else self.temperatures[step.index - 1]
        output = at_least_float32(step.output)
        return ask(self.policy, replace(step, output=output / output.dtype.type(own)), state)
