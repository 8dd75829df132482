"""A policy together with the certificate under which it was chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from ponder.policies.base import Batch, ExitPolicy, Setting, StepView, registry
from ponder.rows import Tree

__all__ = ["Certified"]


@registry.register("certified")
@dataclass(frozen=True)
class Certified(ExitPolicy):
    """Does what the policy inside does; made by `ponder.control_risk`, saved with the model.

    Args:
        policy: The policy.
        statement: What is promised, in words.
        risk: Name of the risk.
        level: What it is kept under.
        confidence: Probability, over the draw of the calibration data, that the promise holds; None where the promise
            is about the mean over such draws (conformal risk control).
        bound: Name of the bound, or ``"conformal"``.
        rows: Number n of calibration rows.
        knob_name: Name of the knob.
        knob_value: Its value; None where no knob was certified and the policy is full depth.
        p_value: Of the chosen value; None where there is none.
        path: The values that were tested, in order, with the empirical risk and the p-value of each.
    """

    policy: ExitPolicy
    statement: str
    risk: str
    level: float
    confidence: float | None
    bound: str
    rows: int
    knob_name: str
    knob_value: float | None
    p_value: float | None
    path: tuple[tuple[float, float, float], ...]

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the policy inside reads."""
        return self.policy.needs

    def init(self, batch: Batch) -> Tree:
        return self.policy.init(batch)

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return self.policy.decide(step, state)

    def check(self, setting: Setting) -> None:
        self.policy.check(setting)

    def parts(self) -> tuple[ExitPolicy, ...]:
        return (self.policy,)

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        return self.policy.readiness(step, state, free)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """Refuses nothing, but the certificate is for the model it was made for."""
        return replace(self, policy=self.policy.rescaled(tuned_for, num_steps))
