"""Objectives: from an unrolled trajectory and the losses of its steps to one loss per example.

Weighted sums of objectives, `a + 0.5 * b`, are objectives, too (`Weighted`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from ponder._utils.registry import Plugin, Registry
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError
from ponder.tasks import Task

__all__ = ["NEEDS", "Depth", "Objective", "Progress", "Unrolled", "Weighted", "registry"]

NEEDS = {
    "hazard": "Pass lambda_head=ponder.LambdaHead(width).",
    "prior": "Pass prior=priors.Geometric(0.1), say.",
    "teacher": "Set model.teacher = a_frozen_model before training.",
    "progress": "Set model.progress = ponder.objectives.Progress(step, total) before each step, as "
    "ponder.fit does.",
    "features": "Name 'features' in the objective's needs.",
}
"""The needs of objectives, each with the remedy if a model lacks it."""
_FIELDS = {"hazard_logits": "hazard", "teacher_outputs": "teacher"}

registry: Registry[Objective] = Registry("objective", "ponder.objectives")


@dataclass(frozen=True)
class Depth:
    """The number of steps that one training batch runs, and how far gradients go back.

    Args:
        warm_up: Steps that run first, without a gradient; their outputs are not looked at.
        steps: Steps that follow, with a gradient, ≥ 1: what an objective sees.
        detached: Whether the state is detached between steps, so that no gradient flows from a step
            into the one before.

    Example:
        >>> model.objective.depth(num_steps=12)
        Depth(warm_up=0, steps=12, detached=False)
        >>> objectives.Depth(warm_up=8, steps=2).total
        10
    """

    warm_up: int
    steps: int
    detached: bool = False

    @property
    def total(self) -> int:
        """The number of all steps, with and without a gradient."""
        return self.warm_up + self.steps


@dataclass(frozen=True)
class Progress:
    """The state of training that objectives may read: step `step` of `total`.

    Args:
        step: Steps of the optimiser that are done in this stage.
        total: Their number at the end.

    Example:
        >>> objectives.Progress(30, 120).share
        0.25
    """

    step: int
    total: int

    @property
    def share(self) -> float:
        """The share that is done, in [0, 1]."""
        return self.step / self.total


@dataclass(frozen=True)
class Unrolled:
    """The view that an objective has of a training batch.

    Args:
        outputs: Outputs of every step, `(batch, steps, …)`.
        losses: The task's loss (negative log-likelihood) of every example at every step, `(batch,
            steps)`.
        task: The task, for objectives that compare outputs with outputs.
        hazard_logits: `(batch, steps)`; None without a Lambda head.
        prior: The prior over the same steps; None if the model has no prior.
        labels: Labels as the task takes them, batch first.
        features: The readout's features, `(batch, steps, …)`; None where the objective does not
            need them.
        progress: The progress of training; None if it is not known.
        teacher_outputs: Outputs of a frozen teacher, `(batch, …)`; None where none is attached or
            needed.
        mask: Which positions are no padding, `(batch, length)` bool, where outputs have positions
            and the padding is known; None elsewhere.

    Example:
        >>> task = ponder.tasks.Classification()
        >>> losses = torch.tensor([[1.0, 0.5, 0.2, 0.1], [2.0, 1.0, 0.8, 0.4]])  # (rows, steps)
        >>> unrolled = objectives.Unrolled(torch.zeros(2, 4, 3), losses, task)
        >>> objectives.FinalStep().per_example(unrolled)
        tensor([0.1000, 0.4000])
    """

    outputs: Tensor
    losses: Tensor
    task: Task
    hazard_logits: Tensor | None = None
    prior: StepDistribution | None = None
    labels: Tensor | None = None
    features: Tensor | None = None
    progress: Progress | None = None
    teacher_outputs: Tensor | None = None
    mask: Tensor | None = None

    @property
    def halting(self) -> StepDistribution:
        """The halting distribution that the hazards induce, `(batch,)` over the steps."""
        return StepDistribution.from_hazard_logits(self.given("hazard_logits"))

    def given(self, field: str) -> Any:
        """Return the field of that name, which has to be there."""
        value = getattr(self, field)
        need = _FIELDS.get(field, field)
        if value is None:
            raise ArgumentError(
                "objective", expected=f"a batch with {field}", got="none", remedy=NEEDS[need]
            )
        return value


class Objective(Plugin, ABC):
    """Base of the objectives; leaves are frozen dataclasses that define `per_example`.

    Objectives add up: ``Ponder(0.5) + 0.3 * Distillation(2.0)``.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Worst(objectives.Objective):
        ...     def per_example(self, unrolled):
        ...         return unrolled.losses.amax(1)
        >>> model.objective = Worst()
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    registry = registry
    needs: frozenset[str] = frozenset()
    """Which of `NEEDS` the objective reads."""
    draws_depth: ClassVar[bool] = False
    """Whether `depth` draws the number of steps of a batch; such an objective cannot be summed."""

    @abstractmethod
    def per_example(self, unrolled: Unrolled) -> Tensor:
        """Return losses, `(batch,)`.

        The model averages them over the rows of the batch that have a label.
        """

    def depth(self, num_steps: int) -> Depth:
        """Return the depth of a training batch: by default all N steps."""
        return Depth(0, num_steps)

    def check(self, *, has_hazard: bool, has_prior: bool) -> None:
        """Check that a model has what the objective needs; called when the model is built."""
        for need, there in (("hazard", has_hazard), ("prior", has_prior)):
            if need in self.needs and not there:
                raise ArgumentError(
                    "objective", expected=f"one without {need}", got=self, remedy=NEEDS[need]
                )

    def __add__(self, other: Objective) -> Weighted:
        """Return the sum of two objectives."""
        mine = _terms(self)
        others = _terms(other)
        return Weighted((*mine.objectives, *others.objectives), (*mine.weights, *others.weights))

    def __mul__(self, weight: float) -> Weighted:
        """Return the objective, multiplied by a weight."""
        terms = _terms(self)
        return Weighted(terms.objectives, tuple(weight * each for each in terms.weights))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Weighted(Objective):
    """The weighted sum of objectives, Σ_k w_k L_k.

    Args:
        objectives: The terms.
        weights: One number for each.

    Example:
        >>> (objectives.Ponder(0.5) + 0.1 * objectives.FinalStep()).weights
        (1.0, 0.1)
    """

    objectives: tuple[Objective, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.objectives) > 1 and any(term.draws_depth for term in self.objectives):
            got = f"{self.objectives!r}, of which one draws how many there are"
            expected = "objectives that see the same steps"
            remedy = "Train with it alone."
            raise ArgumentError("objectives", expected=expected, got=got, remedy=remedy)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What any of the terms reads."""
        return frozenset[str]().union(*(term.needs for term in self.objectives))

    def depth(self, num_steps: int) -> Depth:
        depths = [term.depth(num_steps) for term in self.objectives]
        deepest = max(depths, key=lambda depth: depth.total)
        return replace(deepest, detached=any(depth.detached for depth in depths))

    def per_example(self, unrolled: Unrolled) -> Tensor:
        total = self.weights[0] * self.objectives[0].per_example(unrolled)
        for weight, term in zip(self.weights[1:], self.objectives[1:], strict=True):
            total = total + weight * term.per_example(unrolled)
        return total


def _terms(objective: Objective) -> Weighted:
    if isinstance(objective, Weighted):
        return objective
    return Weighted((objective,), (1.0,))
