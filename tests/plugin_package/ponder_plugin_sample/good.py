"""One plug-in of each group, none of which uses the decorator: the entry points name them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ponder import objectives, policies, priors, recipes


@dataclass(frozen=True)
class SteadyHazard(policies.ExitPolicy):
    """Exit once the hazard has stayed above `level` for `times` steps in a row."""

    level: float = 0.4
    times: int = 2
    needs = frozenset({"hazard"})

    def init(self, batch: policies.PolicyBatch) -> Tensor:
        return torch.zeros(batch.size, dtype=torch.long, device=batch.device)

    def decide(self, step: policies.StepView, state: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.where(step.hazard > self.level, state + 1, 0)
        return count >= self.times, count


@dataclass(frozen=True)
class MyQuantile(policies.ExitPolicy):
    """Its entry point has the name of a built-in policy."""

    q: float = 0.5
    needs = frozenset({"hazard"})

    def decide(self, step: policies.StepView, state: None) -> tuple[Tensor, None]:
        return step.cdf >= self.q, state


@dataclass(frozen=True)
class BadlyNamed(policies.ExitPolicy):
    """Its entry point has a name that cannot be one."""

    def decide(self, step: policies.StepView, state: None) -> tuple[bool, None]:
        return False, state


@dataclass(frozen=True)
class Linear(priors.Prior):
    """p(n) ∝ n."""

    def log_pmf(self, num_steps: int) -> Tensor:
        weights = torch.arange(1, num_steps + 1, dtype=torch.float64)
        return (weights / weights.sum()).log()


@dataclass(frozen=True)
class WorstStep(objectives.Objective):
    """The largest loss of any step."""

    def per_example(self, unrolled: objectives.Unrolled) -> Tensor:
        return unrolled.losses.amax(dim=1)


def steady(level: float = 0.4) -> recipes.Recipe:
    """The recipe of all of them."""
    return recipes.Recipe(
        name="steady",
        paper="none",
        stages=(recipes.Stage(objectives.Ponder(0.5) + 0.1 * WorstStep()),),
        policy=SteadyHazard(level),
        lambda_head=recipes.LambdaSpec(),
        prior=Linear(),
    )
