"""What an objective is: from an unrolled trajectory and the losses of its steps to one loss per example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ponder._utils.registry import Plugin, Registry
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError
from ponder.parts.tasks import Task

if TYPE_CHECKING:
    from ponder.objectives.weighted import Weighted

__all__ = ["Objective", "Unrolled", "registry"]

registry: Registry[Objective] = Registry("objective", "ponder.objectives")


@dataclass(frozen=True)
class Unrolled:
    """What an objective sees of a training batch.

    Args:
        outputs: Outputs of every step, `(batch, steps, …)`.
        losses: The task's loss (negative log-likelihood) of every example at every step, `(batch, steps)`.
        task: The task, for objectives that compare outputs with outputs.
        halting: The halting distribution, `(batch,)` over the steps, or None without a Lambda head.
        prior: The prior over the same steps, or None where the model has none.
    """

    outputs: Tensor
    losses: Tensor
    task: Task
    halting: StepDistribution | None
    prior: StepDistribution | None


class Objective(Plugin, ABC):
    """Base of the objectives; leaves are frozen dataclasses that define `per_example`.

    Objectives add up: ``Ponder(0.5) + 0.3 * Distillation(2.0)``.
    """

    registry = registry
    needs: frozenset[str] = frozenset()
    """Which of "hazard" and "prior" the objective reads."""
    truncatable: bool = False
    """Whether a trajectory that ends before step N, its last step with the mass that is left, gives the same loss up
    to that mass (see `PonderWrapper.truncate_below`)."""

    @abstractmethod
    def per_example(self, unrolled: Unrolled) -> Tensor:
        """Losses, `(batch,)`; the model averages them over the batch."""

    def check(self, *, has_hazard: bool, has_prior: bool) -> None:
        """Raise where a model lacks what the objective needs; called when the model is built."""
        for need, there, remedy in (
            ("hazard", has_hazard, "Pass lambda_head=ponder.LambdaHead(width)."),
            ("prior", has_prior, "Pass prior=priors.Geometric(0.1), say."),
        ):
            if need in self.needs and not there:
                raise ArgumentError(
                    "objective", expected=f"an objective that needs no {need}", got=repr(self), remedy=remedy
                )

    def __add__(self, other: Objective) -> Weighted:
        """The sum of two objectives."""
        from ponder.objectives.weighted import Weighted

        return Weighted.sum(self, other)

    def __rmul__(self, weight: float) -> Weighted:
        """The objective, weighted."""
        from ponder.objectives.weighted import Weighted

        return Weighted((self,), (float(weight),))
