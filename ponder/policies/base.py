"""Exit policies: hyper-parameters, an `init` that returns state, and one pure method that decides.

Nothing here imports PyTorch: the readings of a policy may be NumPy arrays or tensors, so policies
are swept and certified without PyTorch.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, ClassVar, Literal, NoReturn, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import at_least_float32, namespace, on_host
from ponder._utils.checks import check_int
from ponder._utils.registry import Plugin, Registry
from ponder._utils.rounding import threshold_text
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.tasks import Task, task_named

__all__ = [
    "ExitPolicy",
    "FixedStep",
    "LastStep",
    "ModelSpec",
    "PolicyBatch",
    "PolicyState",
    "PolicyWrapper",
    "StepView",
    "Threshold",
    "ThresholdPolicy",
    "all_within",
    "registry",
    "scaled_step",
]

Array: TypeAlias = Any
"""A NumPy array or a tensor."""
PolicyState: TypeAlias = Any
"""The state of a policy between two steps: (nested) arrays with the batch first; None if none."""
_REMEDIES = {
    "hazard": "Pass lambda_head=ponder.LambdaHead(width) to the model, or use a policy on outputs.",
    "features": "Record them: model.unroll(…, keep_features=True).",
    "context": "Record it: model.unroll(…, policy_context={…}).",
    "group": "Record it: model.unroll(…, policy_context={'group': …}).",
}
_CLASSIFICATION = task_named(None)

registry: Registry[ExitPolicy] = Registry("policy", "ponder.policies")


@dataclass(frozen=True)
class PolicyBatch:
    """The rows that a loop runs.

    Args:
        row_ids: Identity of each row, `(batch,)` long: its position, or the caller's `row_ids`.
        num_steps: N, the number of steps at full depth.
        task: The meaning of the outputs.
    """

    row_ids: Array
    num_steps: int
    task: Task = _CLASSIFICATION


@dataclass(frozen=True)
class ModelSpec:
    """The facts of a model, or of a trajectory, against which `ExitPolicy.check` checks a policy.

    Args:
        num_steps: N.
        task: The meaning of the outputs.
        has_hazard: Whether there is a Lambda head.
        has_features: Whether features can be read (a trajectory may not have kept them).
        has_context: Whether the context of a call can be read (a trajectory may not have kept it).
    """

    num_steps: int
    task: Task = _CLASSIFICATION
    has_hazard: bool = False
    has_features: bool = True
    has_context: bool = True

    @property
    def readings(self) -> frozenset[str]:
        """The names that a policy's `needs` may hold."""
        names = {"output"}
        if self.has_hazard:
            names.add("hazard")
        if self.has_features:
            names.add("features")
        if self.has_context:
            names |= {"context", "group"}
        return frozenset(names)


def _reading(name: str) -> property:
    """Return a property of a step: the reading of that name, if the policy's `needs` declare it."""

    def read(step: StepView) -> Array:
        if name not in step.readings:
            raise _undeclared(name)
        return step.readings[name]

    return property(read)


@dataclass(frozen=True)
class StepView:
    """The readings of a step, for the rows that are still running.

    Only the readings that the policy's `needs` name are there; any other raises `PonderError`.

    Args:
        index: The step just finished by each row, `(batch,)` long, 1-based. Rows may be at
            different steps.
        row_ids: Identity of each row, `(batch,)` long: its position, or the caller's `row_ids`.
        num_steps: N.
        readings: The values behind the properties.
        task: The meaning of the outputs.
        mask: Which positions of a row are not padding, `(batch, length)` bool, if outputs (or the
            features in `needs`) have positions and the padding is known; else None.
        policy_context: Values that the caller gave for the policy, by name, `(batch, …)` each.

    Example:
        >>> logits = torch.tensor([[0.0, 4.0], [0.0, 0.5]])  # two rows, at steps 2 and 3 of 4
        >>> view = StepView(torch.tensor([2, 3]), torch.arange(2), 4, {"output": logits})
        >>> policies.Confidence(0.9).decide(view, None)
        (tensor([ True, False]), None)
    """

    index: Array
    row_ids: Array
    num_steps: int
    readings: Mapping[str, Any]
    task: Task = _CLASSIFICATION
    mask: Array | None = None
    policy_context: Mapping[str, Array] | None = None

    hazard = _reading("hazard")
    """The hazard λ_n of the step, `(batch,)`."""
    cdf = _reading("cdf")
    """The probability P(stop at n or before), `(batch,)`; comes with the hazard."""
    survival = _reading("survival")
    """The probability P(not stopped before n), `(batch,)`; comes with the hazard."""
    output = _reading("output")
    """The head's outputs at this step, `(batch, …)`."""
    features = _reading("features")
    """The readout's features at this step, `(batch, …)`."""

    @property
    def size(self) -> int:
        """The number of rows; while a policy is exported, a symbol for that of any batch."""
        rows: int = self.index.shape[0]  # `int` and `len` would fix it at that of the example
        return rows

    @property
    def context(self) -> Mapping[str, Array]:
        """The tensors of the call's `policy_context`, by name, `(batch, …)` each."""
        if self.policy_context is None:
            raise _undeclared("context")
        return self.policy_context

    @property
    def group(self) -> Array:
        """The group of each row, `(batch,)` integers, from the context; groups decide together."""
        if self.policy_context is None or "group" not in self.policy_context:
            raise PonderError(
                "the policy decides on groups of rows: pass policy_context={'group': …} with the "
                "call."
            )
        return self.policy_context["group"]


def _undeclared(name: str) -> PonderError:
    need = name
    if name in ("cdf", "survival"):
        need = "hazard"
    return PonderError(
        f"the policy reads step.{name}, which it does not declare. "
        f"Set needs = frozenset({{{need!r}}}) on the policy's class."
    )


class FullDepthRun(Protocol):
    """A record of all steps of some rows, on which a policy is scored: a trajectory, say."""

    @property
    def num_steps(self) -> int:
        """N, the number of steps."""

    def views(self, needs: frozenset[str]) -> Iterator[StepView]:
        """Yield the view of each step 1 … N for a policy with these needs."""


@dataclass(frozen=True)
class Threshold:
    """The hyper-parameter that a row's statistic is compared with.

    Almost every exit policy of the field compares one statistic with one number: CDF_n > q, entropy
    < threshold, agreements ≥ patience. Declaring it lets a sweep read the exits under a thousand
    thresholds from one pass.

    Args:
        field: Name of the field of the policy.
        leaves: The comparison under which a row exits: ``"above"`` is statistic > threshold,
            ``"at_least"`` ≥, ``"below"`` <, ``"at_most"`` ≤.
        low: Least useful value.
        high: Greatest useful value: a number, or a function of the number of steps and of the size
            of the last dimension of the outputs.
        whole: Whether only whole numbers make sense.

    Example:
        >>> policies.Quantile.tunable
        Threshold(field='q', leaves='above', low=0.0, high=1.0, whole=False)
    """

    field: str
    leaves: Literal["above", "at_least", "below", "at_most"]
    low: float = 0.0
    high: float | Callable[[int, int], float] = 1.0
    whole: bool = False

    @property
    def higher_exits_later(self) -> bool:
        """Whether rows exit later under a higher threshold."""
        return self.leaves in ("above", "at_least")

    @property
    def inclusive(self) -> bool:
        """Whether a row exits if its statistic equals the threshold."""
        return self.leaves in ("at_least", "at_most")

    def argument(self, value: float) -> dict[str, float]:
        """Return the threshold as an argument of its policy."""
        if self.whole and value == int(value):
            value = int(value)
        return {self.field: value}

    def crossed(self, statistic: Array, value: float) -> Array:
        """The exit mask, `(batch,)` bool."""
        return _COMPARISONS[self.leaves](statistic, value)

    def words(self, value: float) -> str:
        """Return the comparison in words, rounded to the side on which rows exit later.

        Example:
            >>> policies.Quantile.tunable.words(0.25)
            'above 0.25'
        """
        relation = self.leaves.replace("_", " ")
        return f"{relation} {threshold_text(value, up=self.higher_exits_later)}"

    def values(self, num_steps: int, width: int, count: int = 201) -> list[float]:
        """Return values from low to high that do not depend on data, as certificates need them.

        All whole numbers; otherwise `count` values, denser at both ends (like the cosine), since
        confidences crowd there.

        Args:
            num_steps: N.
            width: Size of the last dimension of the outputs.
            count: The number of values, if the threshold is not a whole number.
        """
        high = self.high
        if callable(high):
            high = high(num_steps, width)
        if self.whole:
            return [float(value) for value in range(int(self.low), int(high) + 1)]
        shares = [(1.0 - math.cos(math.pi * i / (count - 1))) / 2.0 for i in range(count)]
        return [self.low + (high - self.low) * share for share in shares]


_COMPARISONS: dict[str, Callable[[Array, float], Array]] = {
    "above": operator.gt,
    "at_least": operator.ge,
    "below": operator.lt,
    "at_most": operator.le,
}


class ExitPolicy(Plugin, ABC):
    """Base of the exit policies; leaves are frozen dataclasses of hyper-parameters.

    A leaf sets `needs` and defines `decide`, and `init` if it carries state from step to step. At
    the last step the loop exits all rows without calling the policy.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Positive(policies.ExitPolicy):
        ...     needs = frozenset({"output"})
        ...     def decide(self, step, state):
        ...         return step.output[:, 0] > 0, state
        >>> trajectory.replay(Positive()).exit_step.shape
        torch.Size([300])
    """

    registry = registry
    needs: frozenset[str] = frozenset()
    """Which of "hazard", "output", "features", "context", "group" the policy reads.

    Only these are computed.
    """
    tunable: ClassVar[Threshold | None] = None
    """The field that moves the exits between early and late; None if there is no such field."""

    def init(self, first: StepView) -> PolicyState:
        """Return the state before the first decision, made from the view of the first step.

        It is the whole state: `decide`, which then reads the same view, returns one of the same
        structure, shapes and types. Pure, but for random numbers.

        Returns:
            (Nested) tensors with the batch first; None, as by default, if there is no state.
        """
        return None

    @abstractmethod
    def decide(self, step: StepView, state: PolicyState) -> tuple[Array | bool, PolicyState]:
        """Return which rows exit now, and the new state.

        Pure: nothing that was passed in may be changed.

        Returns:
            The exit mask, `(batch,)` bool (or one bool for all rows, which costs no device
            synchronisation), and the state for the next step, for all rows.
        """

    def check(self, spec: ModelSpec) -> None:
        """Check that the policy can serve a model; called once, before any batch.

        A leaf that overrides this calls `super().check(spec)`.

        Raises:
            ArgumentError: The model lacks a reading that the policy needs.
        """
        for need in sorted(self.needs - spec.readings):
            expected = f"one that needs no {need}, which is not there"
            remedy = _REMEDIES.get(need, "Correct its needs: cdf and survival come with 'hazard'.")
            raise ArgumentError("policy", expected=expected, got=self, remedy=remedy)

    def exit_of_all(self, num_steps: int) -> int | None:
        """Return the step at which every row exits, if it does not depend on the inputs.

        None by default.
        """
        return None

    def full_depth(self) -> ExitPolicy:
        """Return the policy under which every row of the same model runs to the last step."""
        return LastStep()

    def parts(self) -> tuple[ExitPolicy, ...]:
        """Return the policies that this one is made of; none by default."""
        return ()

    def readiness(
        self, step: StepView, state: PolicyState, free: ExitPolicy
    ) -> tuple[Array, PolicyState]:
        """Return the score of each row, to be compared with the threshold of `free`.

        `free` is this policy or a sub-policy. A row exits if its score is above (or at) the
        threshold; if a lower threshold exits later, above its negative. By default the policy does
        not contain `free`: the score is +∞ if the row exits, and −∞ if not. A policy that overrides
        `parts` overrides this too.

        Returns:
            Readiness `(batch,)`, and the new state.
        """
        mask, state = self.decide(step, state)
        xp = namespace(step.index)
        of_each_row = mask | (step.index < 0)  # a policy may answer with one bool for all rows
        stays = xp.full_like(step.index, -math.inf, dtype=xp.float32)
        return xp.where(of_each_row, math.inf, stays), state

    def scores(self, record: FullDepthRun, free: ExitPolicy | None = None) -> Array:
        """Return the readiness of every row at every step, for exits at all thresholds.

        Args:
            record: A full-depth run: a trajectory, or any record with `num_steps` and
                `views(needs)`.
            free: The sub-policy whose threshold is free; by default the outermost that has one.

        Returns:
            Readiness, `(rows, steps)`, in the precision in which `decide` compares, +∞ at the last
            step. A row exits at the first step where it is above the threshold (or equal; see
            `readiness`).

        Example:
            >>> policy = policies.Confidence(0.9)
            >>> scores = policy.scores(trajectory)
            >>> int((scores[0] > 0.9).argmax()) + 1 == int(trajectory.replay(policy).exit_step[0])
            True
        """
        if free is None:
            free = next((each for each in all_within(self) if each.tunable), self)
        views = record.views(self.needs)
        first = next(views)
        state = self.init(first)
        columns: list[NDArray[np.floating]] = []
        for view in islice(chain([first], views), record.num_steps - 1):
            ready, state = self.readiness(view, state, free)
            columns.append(on_host(ready))
        last = np.full(first.size, math.inf, dtype=np.float32)
        if columns:
            last = last.astype(columns[0].dtype)
        return np.stack([*columns, last], axis=1)

    def words(self) -> str:
        """Return the policy in words, as a promise names it; by default from its `tunable`.

        Thresholds are rounded to the side on which rows exit later.

        Example:
            >>> policies.Confidence(0.912345678).after(2).words()
            'a confidence above 0.912346, from step 2 on'
            >>> (policies.Entropy(0.2) | policies.Patience(3)).words()
            'an entropy below 0.2, or a patience at least 3'
        """
        if self.tunable is None:
            return f"the policy {self.name}"
        value = getattr(self, self.tunable.field)
        return f"{self.name_with_article} {self.tunable.words(value)}"

    @property
    def name(self) -> str:
        """The registered name; the name of the class if that was not registered."""
        try:
            return registry.name_of(type(self))
        except ArgumentError:
            return type(self).__name__

    @property
    def name_with_article(self) -> str:
        """The name as a noun: ``"a confidence"``, ``"an entropy"``."""
        article = "an" if self.name[0] in "aeiou" else "a"
        return f"{article} {self.name.replace('-', ' ')}"

    def rule(self, unit: str = "text") -> str:
        """Return what to do as an imperative, as a promise begins.

        Args:
            unit: Noun of a row.

        Example:
            >>> policies.Patience(2).rule()
            'Stop at the first step with a patience at least 2, and run the others to the last step'
        """
        return f"Stop at the first step with {self.words()}, and run the others to the last step"

    def with_threshold(self, value: float) -> Self:
        """Return this policy with its threshold at `value`."""
        assert self.tunable is not None, (
            f"{self!r} has no threshold of its own: build it around a policy with another"
        )
        changed: Self = replace(self, **self.tunable.argument(value))  # type: ignore[type-var]
        return changed

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """Return the policy for `num_steps` that corresponds to this one for `tuned_for` steps.

        By default the policy itself.
        """
        return self

    def __bool__(self) -> NoReturn:
        raise ArgumentTypeError(
            "policy",
            expected="a & b, a | b, or `is None`",
            got="and, or, not, if",
            remedy="These would drop a policy.",
        )

    def __or__(self, other: ExitPolicy) -> ExitPolicy:
        """Return the policy that exits if either does."""
        return registry.get("any", policies=(self, other))

    def __and__(self, other: ExitPolicy) -> ExitPolicy:
        """Return the policy that exits if both do, at the same step."""
        return registry.get("all", policies=(self, other))

    def after(self, step: int) -> ExitPolicy:
        """Return this policy, with no exit before `step`."""
        return self & registry.get("from-step", step=step)

    def before(self, step: int) -> ExitPolicy:
        """Return this policy, with every row out at `step` at the latest."""
        return self | registry.get("from-step", step=step)


class ThresholdPolicy(ExitPolicy):
    """Base of the policies with one statistic and one threshold.

    A leaf defines `statistic` and names its `tunable`. Neither the statistic nor the state may
    depend on the threshold.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Norm(policies.ThresholdPolicy):
        ...     threshold: float
        ...     needs, tunable = frozenset({"output"}), policies.Threshold("threshold", "above")
        ...     def statistic(self, step, state):
        ...         return step.output.norm(dim=-1), state
        >>> trajectory.replay(Norm(5.0)).exit_step[:3]
        tensor([1, 2, 3])
    """

    tunable: ClassVar[Threshold]

    @abstractmethod
    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        """Return the statistic, `(batch,)`, and the new state.

        Pure, as `decide` is.
        """

    def decide(self, step: StepView, state: PolicyState) -> tuple[Array | bool, PolicyState]:
        value, state = self.statistic(step, state)
        threshold = getattr(self, self.tunable.field)
        return self.tunable.crossed(at_least_float32(value), threshold), state

    def readiness(
        self, step: StepView, state: PolicyState, free: ExitPolicy
    ) -> tuple[Array, PolicyState]:
        if self is not free:
            return super().readiness(step, state, free)
        value, state = self.statistic(step, state)
        near = at_least_float32(value)
        if not self.tunable.higher_exits_later:
            near = -near
        xp = namespace(near)
        # A row whose statistic is NaN never exits early.
        return xp.where(xp.isnan(near), -math.inf, near), state


@dataclass(frozen=True)
class PolicyWrapper(ExitPolicy):
    """Base of the policies around another; by itself it decides as the policy inside does.

    A leaf overrides `decide` and `readiness` consistently.

    Args:
        policy: The policy inside.

    Example:
        >>> policies.PolicyWrapper(policies.Confidence(0.95)).parts()
        (Confidence(threshold=0.95),)
    """

    policy: ExitPolicy

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the policy inside reads."""
        return self.policy.needs

    def init(self, first: StepView) -> PolicyState:
        return self.policy.init(first)

    def decide(self, step: StepView, state: PolicyState) -> tuple[Array | bool, PolicyState]:
        return self.policy.decide(step, state)

    def check(self, spec: ModelSpec) -> None:
        self.policy.check(spec)
        super().check(spec)  # a class may read more than the policy inside

    def parts(self) -> tuple[ExitPolicy, ...]:
        return (self.policy,)

    def readiness(
        self, step: StepView, state: PolicyState, free: ExitPolicy
    ) -> tuple[Array, PolicyState]:
        return self.policy.readiness(step, state, free)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, policy=self.policy.rescaled(tuned_for, num_steps))


@dataclass(frozen=True)
class FixedStep(ThresholdPolicy):
    """Every row exits at `step`.

    Args:
        step: The step at which every row exits, from 1 to the model's number of steps.

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> record.replay(policies.FixedStep(2)).exit_step
        tensor([2])
    """

    step: int
    tunable = Threshold(
        "step", "at_least", low=1, high=lambda num_steps, width: num_steps, whole=True
    )

    def check(self, spec: ModelSpec) -> None:
        check_int("step", self.step, 1, spec.num_steps, remedy="Steps count from 1.")

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        return step.index, state

    def exit_of_all(self, num_steps: int) -> int | None:
        return self.step

    def words(self) -> str:
        return f"step {self.step}"

    def rule(self, unit: str = "text") -> str:
        return f"Stop every {unit} at {self.words()}"

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, step=scaled_step(self.step, tuned_for, num_steps))


@dataclass(frozen=True)
class LastStep(ExitPolicy):
    """No early exit: every row runs to the last step, as without `ponder`.

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> record.replay(policies.LastStep()).exit_step
        tensor([3])
    """

    def decide(self, step: StepView, state: PolicyState) -> tuple[Array | bool, PolicyState]:
        return False, state

    def exit_of_all(self, num_steps: int) -> int | None:
        return num_steps

    def words(self) -> str:
        return "the last step"

    def rule(self, unit: str = "text") -> str:
        return f"Run every {unit} to {self.words()}"


def all_within(policy: ExitPolicy) -> list[ExitPolicy]:
    """Return a policy and all that it is made of, the outermost first."""
    within = [policy]
    for part in policy.parts():
        within += all_within(part)
    return within


def scaled_step(step: int, tuned_for: int, num_steps: int) -> int:
    """Return the step, or the number of steps, that is the same share of another depth.

    At least 1.
    """
    return max(1, round(step * num_steps / tuned_for))
