"""A policy that sees calibrated outputs: each step's logits divided by its temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder.errors import ArgumentError
from ponder.policies.base import Batch, ExitPolicy, Setting, StepView, registry
from ponder.rows import Tree

__all__ = ["Tempered"]


@registry.register("tempered")
@dataclass(frozen=True)
class Tempered(ExitPolicy):
    """The policy inside, on outputs divided by a temperature that belongs to the step (Guo et al. 2017).

    The outputs that the model gives are not changed: the temperatures are for deciding only.

    Args:
        policy: A policy on the output: entropy, confidence, margin, or a combination with one.
        temperatures: One positive number a step, for example from `ponder.calibration.fit_temperatures`; or one for
            all steps.
    """

    policy: ExitPolicy
    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", tuple(float(t) for t in self.temperatures))
        if not self.temperatures or not all(0.0 < t < math.inf for t in self.temperatures):
            raise ArgumentError(
                "temperatures",
                expected="positive numbers",
                got=self.temperatures,
                remedy="Fit them: ponder.calibration.fit_temperatures(trajectory).",
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the policy inside reads."""
        return self.policy.needs

    def check(self, setting: Setting) -> None:
        self.policy.check(setting)
        if len(self.temperatures) not in (1, setting.num_steps):
            raise ArgumentError(
                "temperatures",
                expected=f"one, or one for each of the model's {setting.num_steps} steps",
                got=len(self.temperatures),
                remedy="Fit them on a trajectory of this model.",
            )

    def init(self, batch: Batch) -> Tree:
        return self.policy.init(batch)

    def parts(self) -> tuple[ExitPolicy, ...]:
        return (self.policy,)

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return self.policy.decide(self._scaled(step), state)

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        return self.policy.readiness(self._scaled(step), state, free)

    def _scaled(self, step: StepView) -> StepView:
        if "output" not in step.readings:
            return step
        output = step.output
        by_step = torch.tensor(self.temperatures, dtype=torch.float32, device=output.device)
        own = by_step if len(by_step) == 1 else by_step[step.index - 1]
        scaled = output.float() / own.reshape(-1, *[1] * (output.dim() - 1))
        return replace(step, readings={**step.readings, "output": scaled})
