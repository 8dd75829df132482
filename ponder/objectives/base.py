"""What an objective is: from an unrolled trajectory and the losses of its steps to one loss per example.

Beside the base stands the weighted sum of objectives, `a + 0.5 * b`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Set
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor, nn

from ponder._utils.registry import Plugin, Registry
from ponder._utils.validation import check_int, check_real
from ponder.distributions import StepDistribution
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.objectives.progress import Progress
from ponder.parts.tasks import Task

__all__ = [
    "NEEDS",
    "Composite",
    "Depth",
    "Objective",
    "Unrolled",
    "Weighted",
    "check_same_steps",
    "cut_after",
    "no_depth",
    "no_loss_of_each",
    "registry",
]

NEEDS = ("features", "hazard", "labels", "prior", "progress", "teacher")

registry: Registry[Objective] = Registry("objective", "ponder.objectives")


@dataclass(frozen=True)
class Depth:
    """How deep one training batch goes.

    Args:
        warm_up: Steps that run first, without a gradient; their outputs are not looked at.
        steps: Steps that follow, with a gradient, ≥ 1: what an objective sees.

    Example:
        >>> model.objective.depth(num_steps=12)
        Depth(warm_up=0, steps=12)
        >>> Depth(warm_up=8, steps=2).total
        10
    """

    warm_up: int
    steps: int

    @property
    def total(self) -> int:
        """The number of all steps, with and without a gradient."""
        return self.warm_up + self.steps


@dataclass(frozen=True)
class Unrolled:
    """What an objective sees of a training batch.

    Args:
        outputs: Outputs of every step, `(batch, steps, …)`.
        losses: The task's loss (negative log-likelihood) of every example at every step, `(batch, steps)`.
        task: The task, for objectives that compare outputs with outputs.
        halting: The halting distribution, `(batch,)` over the steps, or None without a Lambda head.
        prior: The prior over the same steps, or None where the model has none.
        labels: Labels as the task takes them, batch first.
        features: The readout's features, `(batch, steps, …)`; None where the objective does not need them.
        progress: How far training has come; None where nobody said.
        teacher_outputs: Outputs of a frozen teacher, `(batch, …)`; None where none is attached or needed.
        mask: Which positions are no padding, `(batch, length)` bool, where outputs, or the features that are asked for,
            have positions and the padding is known; None elsewhere.

    Example:
        >>> task = ponder.tasks.Classification()
        >>> losses = torch.tensor([[1.0, 0.5, 0.2, 0.1], [2.0, 1.0, 0.8, 0.4]])  # of two rows at four steps
        >>> unrolled = Unrolled(torch.zeros(2, 4, 3), losses, task, halting=None, prior=None)
        >>> objectives.FinalStep().per_example(unrolled)
        tensor([0.1000, 0.4000])
    """

    outputs: Tensor
    losses: Tensor
    task: Task
    halting: StepDistribution | None
    prior: StepDistribution | None
    labels: Tensor | None = None
    features: Tensor | None = None
    progress: Progress | None = None
    teacher_outputs: Tensor | None = None
    mask: Tensor | None = None


class Objective(Plugin, ABC):
    """Base of the objectives; leaves are frozen dataclasses that define `per_example`.

    Objectives add up: ``Ponder(0.5) + 0.3 * Distillation(2.0)``.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Worst(objectives.Objective):
        ...     def per_example(self, unrolled):
        ...         return unrolled.losses.amax(1)
        >>> model.objective = Worst()  # it needs none of `objectives.NEEDS`
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    registry = registry
    needs: frozenset[str] = frozenset()
    """Which of `NEEDS` the objective reads; "teacher" and "progress" are looked for when a batch is trained on, since
    they come after the model was built."""
    reads_whole_batch: bool = False
    """Whether the loss of a row depends on the other rows of its batch, as statistics of the batch do."""
    truncatable: bool = False
    """Whether a trajectory that ends before step N gives the same loss up to the mass that is left then, which is one
    step more, with the answer of the last that ran (see `PonderWrapper.truncate_below`)."""

    teaches_all_steps: bool = False
    """Whether every step is taught to answer, so that the mean of their scores tells how far training has come."""

    draws_depth: bool = False
    """Whether `depth` draws how many steps a batch runs, which shared steps alone can do."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if issubclass(cls, nn.Module):
            raise ArgumentTypeError(
                cls.__name__,
                expected="a frozen dataclass of numbers and names",
                got="a torch.nn.Module",
                remedy="Keep what learns in the model, and read what it gives: an objective is saved as plain JSON.",
            )

    def depth(self, num_steps: int) -> Depth:
        """How deep a batch goes in training: all N steps by default, fewer where no step behind them is read."""
        return Depth(0, num_steps)

    def at(self, progress: Progress | None) -> Objective:
        """What is trained at this point of training: the objective itself, unless it changes with `progress`."""
        return self

    def check_depth(self, num_steps: int) -> None:
        """Raise where a model of that many steps leaves no room for what `depth` draws; called when it is built."""

    @abstractmethod
    def per_example(self, unrolled: Unrolled) -> Tensor:
        """Losses, `(batch,)`; the model averages them over the rows of the batch that have a label."""

    def check(self, *, has_hazard: bool, has_prior: bool) -> None:
        """Raise where a model lacks what the objective needs; called when the model is built."""
        given: Any = self.needs
        if not isinstance(given, Set) or not given <= set(NEEDS):
            raise ArgumentError(
                f"{type(self).__name__}.needs",
                expected=f"a frozenset of {sorted(NEEDS)}",
                got=repr(given) if not isinstance(given, Set) else sorted(given - set(NEEDS)),
                remedy="Write needs = frozenset({…}) with these names.",
            )
        for need, there, remedy in (
            ("hazard", has_hazard, "Pass lambda_head=ponder.LambdaHead(width)."),
            ("prior", has_prior, "Pass prior=priors.Geometric(0.1), say."),
        ):
            if need in self.needs and not there:
                raise ArgumentError(
                    "objective", expected=f"an objective that needs no {need}", got=repr(self), remedy=remedy
                )

    def check_task(self, task: Task) -> None:
        """Raise where the task's answers are none that the objective can teach; called when the model is built."""

    def check_prior(self, prior: StepDistribution) -> None:
        """Raise where the objective cannot be minimised under a model's prior; called when the model is built."""

    def check_batch(self, unrolled: Unrolled) -> None:
        """Raise where a training batch lacks what the objective needs; called once a batch."""
        for need, there, remedy in (
            ("teacher", unrolled.teacher_outputs, "Call model.attach_teacher(a_frozen_model) before training."),
            (
                "progress",
                unrolled.progress,
                "Set model.progress = ponder.Progress(step, total) before each step; PonderTrainer does.",
            ),
        ):
            if need in self.needs and there is None:
                raise ArgumentError(
                    "objective", expected=f"an objective that needs no {need}", got=repr(self), remedy=remedy
                )

    def __add__(self, other: Objective) -> Weighted:
        """The sum of two objectives."""
        return Weighted.sum(self, other) if isinstance(other, Objective) else NotImplemented

    def __radd__(self, other: object) -> Objective:
        """The objective itself, where `sum` begins with 0."""
        return self if other == 0 else NotImplemented

    def __mul__(self, weight: float) -> Weighted:
        """The objective, multiplied by a weight."""
        return self.__rmul__(weight)

    def __truediv__(self, number: float) -> Weighted:
        """The objective, divided by a number."""
        return self.__rmul__(1.0 / number)

    def __rmul__(self, weight: float) -> Weighted:
        """The objective, multiplied by a weight."""
        return Weighted((self,), (float(weight),))


def no_depth(objective: Objective, made: object, num_steps: int) -> ArgumentError:
    """The error for an objective whose `depth` gives no `Depth`, or one that a model of so many steps does not have."""
    return ArgumentError(
        f"{type(objective).__name__}.depth",
        expected=f"a Depth of 1 to {num_steps} steps in all",
        got=repr(made),
        remedy="Return Depth(0, num_steps), or fewer steps. One that draws more says draws_depth = True.",
    )


def no_loss_of_each(objective: Objective, each: object, rows: int) -> ArgumentError:
    """The error for an objective that gives something else than a loss for each row, `(batch,)`."""
    return ArgumentError(
        "objective",
        expected=f"one loss per example, ({rows},), from {type(objective).__name__}.per_example",
        got=f"shape {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__,
        remedy="Reduce over every dimension but the first; the model averages over the batch.",
    )


def cut_after(step: int, num_steps: int) -> Depth:
    """The depth of an objective that reads no step behind `step`; refused where the encoder has no such step."""
    check_int("step", step, 1, num_steps, remedy="Choose one that the encoder has.")
    return Depth(0, step)


def check_same_steps(*objectives: Objective) -> None:
    """Refuse objectives that go together where one draws how many steps there are, since the others see all."""
    drawing = [objective for objective in objectives if objective.draws_depth]
    if drawing and len(objectives) > 1:
        raise ArgumentError(
            "objectives",
            expected="objectives that see the same steps",
            got=f"{drawing[0]!r}, which draws how many there are, together with others",
            remedy="Train with it alone; assigning model.objective changes it in between.",
        )


class Composite(Objective):
    """Base of objectives that are made of others: what any of them asks of a model, or needs, is asked of it.

    Leaves define `parts`, and `at` where the parts change with `progress`.
    """

    @property
    @abstractmethod
    def parts(self) -> tuple[Objective, ...]:
        """The objectives that it is made of."""

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What any of the parts reads."""
        return frozenset[str]().union(*(part.needs for part in self.parts))

    @property
    def draws_depth(self) -> bool:  # type: ignore[override]
        """Whether a part draws how many steps a batch runs; it is then the only part."""
        return any(part.draws_depth for part in self.parts)

    @property
    def teaches_all_steps(self) -> bool:  # type: ignore[override]
        """Whether a part teaches every step."""
        return any(part.teaches_all_steps for part in self.parts)

    @property
    def truncatable(self) -> bool:  # type: ignore[override]
        """Whether a trajectory that ends early gives all of the parts the same loss."""
        return all(part.truncatable for part in self.parts)

    @property
    def reads_whole_batch(self) -> bool:  # type: ignore[override]
        """Whether the loss of a row depends on the rest of its batch in any of the parts."""
        return any(part.reads_whole_batch for part in self.parts)

    def check_depth(self, num_steps: int) -> None:
        for part in self.parts:
            part.check_depth(num_steps)

    def check(self, *, has_hazard: bool, has_prior: bool) -> None:
        for part in self.parts:
            part.check(has_hazard=has_hazard, has_prior=has_prior)

    def check_batch(self, unrolled: Unrolled) -> None:
        for part in self.parts:
            part.check_batch(unrolled)

    def check_task(self, task: Task) -> None:
        for part in self.parts:
            part.check_task(task)

    def check_prior(self, prior: StepDistribution) -> None:
        for part in self.parts:
            part.check_prior(prior)


@registry.register("weighted")
@dataclass(frozen=True)
class Weighted(Composite):
    """The weighted sum of objectives, Σ_k w_k L_k.

    Args:
        objectives: The terms.
        weights: One finite number for each.

    Example:
        >>> (objectives.Ponder(0.5) + 0.1 * objectives.FinalStep()).weights
        (1.0, 0.1)
    """

    objectives: tuple[Objective, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.objectives))
        object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
        if len(self.weights) != len(self.objectives) or not self.objectives:
            raise ArgumentError(
                "weights",
                expected=f"one for each of {len(self.objectives)} objectives (at least one)",
                got=self.weights,
                remedy="Write sums as a + 0.5 * b.",
            )
        for weight in self.weights:
            check_real("weights", weight, -math.inf)
        check_same_steps(*self.objectives)

    @classmethod
    def sum(cls, *objectives: Objective) -> Weighted:
        """Add objectives up, flattening sums."""
        terms: list[tuple[Objective, float]] = []
        for objective in objectives:
            if isinstance(objective, cls):
                terms += zip(objective.objectives, objective.weights, strict=True)
            else:
                terms.append((objective, 1.0))
        return cls(tuple(term for term, _ in terms), tuple(weight for _, weight in terms))

    @property
    def parts(self) -> tuple[Objective, ...]:
        """The terms."""
        return self.objectives

    def depth(self, num_steps: int) -> Depth:
        """How deep a batch goes: as deep as the term that reads the most steps."""
        return max((objective.depth(num_steps) for objective in self.objectives), key=lambda depth: depth.total)

    def at(self, progress: Progress | None) -> Objective:
        """The sum of what the terms are at this point of training."""
        now = tuple(objective.at(progress) for objective in self.objectives)
        return self if now == self.objectives else Weighted(now, self.weights)

    @property
    def teaches_all_steps(self) -> bool:  # type: ignore[override]
        """Whether a term that counts teaches every step."""
        return any(one.teaches_all_steps for one, weight in zip(self.objectives, self.weights, strict=True) if weight)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        rows, terms = unrolled.losses.shape[0], list[Tensor]()
        for objective, weight in zip(self.objectives, self.weights, strict=True):
            each: object = objective.per_example(unrolled)
            if not isinstance(each, Tensor) or each.shape != (rows,):
                raise no_loss_of_each(objective, each, rows)
            terms.append(weight * each)
        return reduce(add, terms)

    def __rmul__(self, weight: float) -> Weighted:
        """The sum with every term multiplied by a weight."""
        return Weighted(self.objectives, tuple(weight * own for own in self.weights))
