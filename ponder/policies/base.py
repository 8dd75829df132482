"""What an exit policy is: hyper-parameters, an `init` that gives state, and one pure method that decides.

Beside the base stand the policies that are made of other policies: `a | b`, `a & b`, `p.after(k)`, `p.before(k)`, and
the base of those around another one.
"""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import reduce
from numbers import Real
from operator import and_, or_
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder._utils.registry import Plugin, Registry
from ponder._utils.trees import Tree
from ponder._utils.validation import check_int, check_type
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.parts.tasks import Task, task_named
from ponder.policies.threshold import Threshold

__all__ = [
    "After",
    "All",
    "Any_",
    "Before",
    "ExitPolicy",
    "ModelSpec",
    "PolicyBatch",
    "PolicyWrapper",
    "StepView",
    "ThresholdPolicy",
    "all_within",
    "has_classes",
    "registry",
]

READINGS = frozenset({"hazard", "output", "features", "context"})
_COMBINE = "Combine policies with policies."
_PROVIDED_BY = {"cdf": "hazard", "survival": "hazard"}

registry: Registry[ExitPolicy] = Registry("policy", "ponder.policies")


@dataclass(frozen=True)
class PolicyBatch:
    """The rows that a policy is about to decide on.

    Args:
        row_ids: Who each row is, `(batch,)` long: its position, or the caller's `row_ids`.
        num_steps: N, the number of steps at full depth.
        task: What the outputs mean; a name is looked up.

    Example:
        >>> batch = PolicyBatch(row_ids=torch.arange(3), num_steps=4)
        >>> policies.Patience(2).init(batch)  # the state of a policy before the first step
        {'count': tensor([0, 0, 0]), 'before': None, 'answered': tensor([False, False, False])}
    """

    row_ids: Tensor
    num_steps: int
    task: Task = field(default_factory=lambda: task_named(None))

    def __post_init__(self) -> None:
        named: Any = self.task
        if not isinstance(named, Task):
            object.__setattr__(self, "task", task_named(named))

    @property
    def size(self) -> int:
        """The number of rows."""
        return self.row_ids.shape[0]

    @property
    def device(self) -> torch.device:
        """The device on which the rows are."""
        return self.row_ids.device


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model, or of a trajectory, before a batch comes; `ExitPolicy.check` looks at it.

    Args:
        num_steps: N.
        task: What the outputs mean; a name is looked up.
        has_hazard: Whether there is a Lambda head.
        has_features: Whether features can be read (a trajectory may not have kept them).
        has_context: Whether the context of a call can be read (a trajectory may not have kept it).

    Example:
        >>> model = PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2))
        >>> model.spec.num_steps
        3
    """

    num_steps: int
    task: Task
    has_hazard: bool
    has_features: bool = True
    has_context: bool = True

    def __post_init__(self) -> None:
        named: Any = self.task
        if not isinstance(named, Task):
            object.__setattr__(self, "task", task_named(named))


def has_classes(spec: ModelSpec, policy: ExitPolicy) -> bool:
    """Whether the outputs of a model are logits of classes, which a policy reads; warns where nobody said so."""
    task = spec.task
    if task.classes and task.supposed:
        public = next(kind.__name__ for kind in type(policy).__mro__ if not kind.__name__.startswith("_"))
        warnings.warn(
            f"{public} reads class probabilities, and nobody said whether the outputs of the task "
            f"{task.name!r} are logits of classes; over numbers they mean nothing. Say it: "
            "ponder.tasks.Custom(loss, classes=True) as the task of the model (or the task_object of a trajectory); "
            "with classes=False such policies are refused.",
            stacklevel=4,
        )
    return task.classes


@dataclass(frozen=True)
class StepView:
    """What a policy sees after a step, for the rows that are still running.

    Only what the policy's `needs` name can be read; anything else raises `PonderError`.

    Args:
        index: The step just finished by each row, `(batch,)` long, 1-based. Rows may be at different steps.
        num_steps: N.
        readings: The values behind the properties.
        task: What the outputs mean.
        mask: Which positions of a row are no padding, `(batch, length)` bool, where outputs, or the features that are
            asked for, have positions and the padding is known; None elsewhere.
        policy_context: What the caller gave for the policy, by name, `(batch, …)` each.

    Example:
        >>> logits = torch.tensor([[0.0, 4.0], [0.0, 0.5]])  # of two rows, which are at steps 2 and 3 of 4
        >>> view = StepView(torch.tensor([2, 3]), 4, {"output": logits})
        >>> policies.Confidence(0.9).decide(view, None)
        (tensor([ True, False]), None)
    """

    index: Tensor
    num_steps: int
    readings: Mapping[str, Tensor]
    task: Task = field(default_factory=lambda: task_named(None))
    mask: Tensor | None = None
    policy_context: Mapping[str, Tensor] | None = None

    @property
    def hazard(self) -> Tensor:
        """The hazard λ_n of the step, `(batch,)`."""
        return self.readings["hazard"] if "hazard" in self.readings else _undeclared("hazard")

    @property
    def cdf(self) -> Tensor:
        """The probability P(stop at n or before), `(batch,)`."""
        return self.readings["cdf"] if "cdf" in self.readings else _undeclared("cdf")

    @property
    def survival(self) -> Tensor:
        """The probability P(not stopped before n), `(batch,)`."""
        return self.readings["survival"] if "survival" in self.readings else _undeclared("survival")

    @property
    def output(self) -> Tensor:
        """The head's outputs at this step, `(batch, …)`."""
        return self.readings["output"] if "output" in self.readings else _undeclared("output")

    @property
    def features(self) -> Tensor:
        """The readout's features at this step, `(batch, …)`."""
        return self.readings["features"] if "features" in self.readings else _undeclared("features")

    @property
    def context(self) -> Mapping[str, Tensor]:
        """The tensors of the call's `policy_context`, by name, `(batch, …)` each: a budget a row, say."""
        return _undeclared("context") if self.policy_context is None else self.policy_context


class ExitPolicy(Plugin, ABC):
    """Base of the exit policies; leaves are frozen dataclasses of hyper-parameters.

    A leaf sets `needs` and defines `decide`, and `init` where it carries state from step to step. The exit at
    the last step belongs to the loop: a policy is not asked there.

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
    """Which of "hazard", "output", "features", "context" the policy reads; only these are computed."""
    tunable: ClassVar[Threshold | None] = None
    """The field that moves the exits between early and late, where there is one."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        decides = next(kind for kind in cls.__mro__ if not {"decide", "statistic"}.isdisjoint(vars(kind)))
        tells = next(kind for kind in cls.__mro__ if "exit_of_all" in vars(kind))
        if cls.__mro__.index(decides) < cls.__mro__.index(tells):
            cls.exit_of_all = ExitPolicy.exit_of_all  # type: ignore[method-assign]  # what it inherits is of another
        if "knob" in vars(cls):
            warnings.warn(f"{cls.__name__}.knob is called tunable now.", DeprecationWarning, stacklevel=2)
            cls.tunable = vars(cls)["knob"]

    def init(self, batch: PolicyBatch) -> Tree:
        """State before the first step: (nested) tensors with the batch first, or None.

        None stands for "no value yet". Rows whose whole state is None are asked apart from those that have one. Inside
        a mapping or a list, where rows at different depths share a batch, None is filled with zeros beside the values
        of others, so `decide` tells first steps by ``step.index``.
        """
        return None

    @abstractmethod
    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        """Which rows exit now, and the new state. Pure: nothing that was passed in may be changed.

        Returns:
            The exit mask, `(batch,)` bool (or one bool for all rows, which costs no device synchronisation), and
            the state for the next step, for all rows.
        """

    def check(self, spec: ModelSpec) -> None:
        """Raise where the policy cannot serve a model; called once when it meets one, before any batch.

        A leaf that overrides this calls `super().check(spec)`.
        """
        needs: Any = self.needs
        if not isinstance(needs, Set):
            raise ArgumentTypeError(
                f"{type(self).__name__}.needs",
                expected=f"a frozenset of {sorted(READINGS)}",
                got=repr(needs),
                remedy=f"Write needs = frozenset({{{needs!r}}})."
                if isinstance(needs, str)
                else "Write frozenset({…}).",
            )
        unknown = needs - READINGS
        if unknown:
            raise ArgumentError(
                f"{type(self).__name__}.needs",
                expected=f"a subset of {sorted(READINGS)}",
                got=sorted(unknown),
                remedy="cdf and survival come with 'hazard'.",
            )
        for need, there, what, remedy in (
            (
                "hazard",
                spec.has_hazard,
                "needs no hazard, since there is no Lambda head",
                "Pass lambda_head=ponder.LambdaHead(width) to the model, or use a policy on outputs.",
            ),
            (
                "features",
                spec.has_features,
                "reads no features, since the trajectory kept none",
                "Record them with model.unroll(…, keep_features=True).",
            ),
            (
                "context",
                spec.has_context,
                "reads no context, since the trajectory kept none",
                "Record it: model.unroll(…, policy_context={…}).",
            ),
        ):
            if need in self.needs and not there:
                raise ArgumentError("policy", expected=f"a policy that {what}", got=repr(self), remedy=remedy)

    def exit_of_all(self, num_steps: int) -> int | None:
        """The step at which every row leaves, where that needs no look at any; None, to be asked, by default.

        Args:
            num_steps: N.
        """
        return None

    def parts(self) -> tuple[ExitPolicy, ...]:
        """The policies that this one is made of; none by default."""
        return ()

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        """How near each row is to its exit, as the threshold of `free`, one of the policies inside, is moved.

        A row leaves where this is above (or at) the threshold; for one that is lowered to leave later, above its
        negative. By default the policy has nothing to do with `free`: +∞ where it lets a row go, −∞ elsewhere. A
        policy that overrides `parts` overrides this too.

        Returns:
            Readiness `(batch,)`, and the new state.
        """
        mask, state = self.decide(step, state)
        stays = torch.full(step.index.shape, -torch.inf, dtype=torch.float32, device=step.index.device)
        return stays.masked_fill(torch.as_tensor(mask, device=stays.device), torch.inf), state

    def with_threshold(self, value: float) -> Self:
        """This policy with its threshold at `value`."""
        if self.tunable is None:
            raise ArgumentTypeError(
                "policy",
                expected="one with a threshold of its own",
                got=repr(self),
                remedy="Build it again around a policy with another threshold: a | b, policy.after(2), ….",
            )
        kind: Any = type(self)
        if not dataclasses.is_dataclass(kind):
            raise ArgumentTypeError(
                kind.__name__,
                expected="a frozen dataclass, of which a copy with another threshold can be made",
                got="another class",
                remedy="Write @dataclass(frozen=True) above it, or define with_threshold.",
            )
        return dataclasses.replace(self, **self.tunable.argument(value))  # type: ignore[type-var]

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """The policy for `num_steps` that means what this one means for `tuned_for`; itself by default."""
        return self

    def __bool__(self) -> NoReturn:
        raise ArgumentTypeError(
            "policy",
            expected="policies combined by & (both exit) or | (either does)",
            got="and, or, not, or an if, which would drop one of them",
            remedy="Write a & b or a | b; compare with None by `is None`.",
        )

    def __or__(self, other: ExitPolicy) -> Any_:
        """The policy that exits where either does."""
        return Any_((self, other))

    def __and__(self, other: ExitPolicy) -> All:
        """The policy that exits where both do, at the same step."""
        return All((self, other))

    def after(self, step: int) -> After:
        """This policy, with no exit before `step`."""
        return After(self, step)

    def before(self, step: int) -> Before:
        """This policy, with every row out at `step` at the latest."""
        return Before(self, step)


class ThresholdPolicy(ExitPolicy):
    """Base of the policies with one statistic and one threshold; a leaf defines `statistic` and names its `tunable`.

    The statistic and the state must not depend on the threshold.

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
    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        """What is compared with the threshold, `(batch,)`, and the new state. Pure, as `decide`."""

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        declared: Any = self.tunable
        if not isinstance(declared, Threshold) or not hasattr(self, declared.field):
            raise ArgumentError(
                f"{type(self).__name__}.tunable",
                expected="a Threshold that names a field of the class",
                got=repr(declared),
                remedy='Write tunable = policies.Threshold("level", "above"), say, for the field level.',
            )
        value: Any = getattr(self, declared.field)
        if isinstance(value, bool | str) or not (isinstance(value, Real) or hasattr(value, "item")):
            raise ArgumentTypeError(
                declared.field, expected="a number", got=repr(value), remedy=f"Pass {declared.field}=0.5, say."
            )

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        value, state = self.statistic(step, state)
        if value.is_floating_point():
            value = at_least_float32(value)
        return self.tunable.crossed(value, getattr(self, self.tunable.field)), state

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        if self is not free:
            return super().readiness(step, state, free)
        value, state = self.statistic(step, state)
        if value.shape != step.index.shape:
            raise ArgumentError(
                f"{type(self).__name__}.statistic",
                expected=f"a number for each row, shape {tuple(step.index.shape)}",
                got=f"shape {tuple(value.shape)}",
                remedy="Reduce over every dimension but the first.",
            )
        value = at_least_float32(value) if value.is_floating_point() else value.double()
        near = value if self.tunable.higher_exits_later else -value
        return near.masked_fill(near.isnan(), -torch.inf), state  # NaN crosses no threshold


@dataclass(frozen=True)
class _Several(ExitPolicy):
    policies: tuple[ExitPolicy, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", tuple(self.policies))
        if not self.policies:
            raise ArgumentError(
                "policies", expected="at least one policy", got="none", remedy="Use policies.LastStep() for no exit."
            )
        for policy in self.policies:
            check_type("policy", policy, ExitPolicy, remedy=_COMBINE)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What any of the parts reads."""
        return frozenset[str]().union(*(policy.needs for policy in self.policies))

    @staticmethod
    @abstractmethod
    def merge(one: Any, other: Any) -> Any:
        """What two parts come to: of two masks, and of two values of readiness."""

    def init(self, batch: PolicyBatch) -> Tree:
        return tuple(policy.init(batch) for policy in self.policies)

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return self._merged([policy.decide(step, part) for policy, part in zip(self.policies, state, strict=True)])

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        pairs = zip(self.policies, state, strict=True)
        return self._merged([policy.readiness(step, part, free) for policy, part in pairs])

    def check(self, spec: ModelSpec) -> None:
        for policy in self.policies:
            policy.check(spec)

    def parts(self) -> tuple[ExitPolicy, ...]:
        return self.policies

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, policies=tuple(p.rescaled(tuned_for, num_steps) for p in self.policies))

    def _merged(self, answers: Sequence[tuple[Any, Tree]]) -> tuple[Any, Tree]:
        return reduce(self.merge, (answer for answer, _ in answers)), tuple(state for _, state in answers)


@registry.register("any")
@dataclass(frozen=True)
class Any_(_Several):  # noqa: N801 (the name Any is Python's)
    """Exit where any of the policies does.

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> policy = policies.Confidence(0.99) | policies.Patience(1)
        >>> policy
        Any_(policies=(Confidence(threshold=0.99), Patience(patience=1, tolerance=0.0)))
        >>> record.replay(policy).exit_step
        tensor([2])
    """

    @staticmethod
    def merge(one: Any, other: Any) -> Any:
        return torch.maximum(one, other) if _are_readiness(one, other) else or_(one, other)


@registry.register("all")
@dataclass(frozen=True)
class All(_Several):
    """Exit where all of the policies do, at the same step.

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> policy = policies.Confidence(0.6) & policies.Patience(2)
        >>> record.replay(policy).exit_step
        tensor([3])
    """

    @staticmethod
    def merge(one: Any, other: Any) -> Any:
        return torch.minimum(one, other) if _are_readiness(one, other) else and_(one, other)


@dataclass(frozen=True)
class PolicyWrapper(ExitPolicy):
    """Base of the policies around one other; by itself it decides as the policy inside does.

    A leaf changes what the policy inside sees (`transform`), or what comes out (`decide` and `readiness`, both alike).

    Args:
        policy: The policy inside.

    Example:
        >>> from dataclasses import dataclass, replace
        >>> @dataclass(frozen=True)
        ... class Halved(policies.PolicyWrapper):
        ...     def transform(self, step):
        ...         return replace(step, readings={"output": step.output / 2})
        >>> trajectory.replay(Halved(policies.Confidence(0.95))).exit_step[:3]  # sure nowhere
        tensor([4, 4, 4])
    """

    policy: ExitPolicy

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "seen" in vars(cls):
            warnings.warn(f"{cls.__name__}.seen is called transform now.", DeprecationWarning, stacklevel=2)
            cls.transform = vars(cls)["seen"]  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_type("policy", self.policy, ExitPolicy, remedy=_COMBINE)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the policy inside reads."""
        return self.policy.needs

    def transform(self, step: StepView) -> StepView:
        """What the policy inside sees of a step."""
        return step

    def init(self, batch: PolicyBatch) -> Tree:
        return self.policy.init(batch)

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return self.policy.decide(self.transform(step), state)

    def check(self, spec: ModelSpec) -> None:
        self.policy.check(spec)
        super().check(spec)  # a class may read more than the policy inside

    def parts(self) -> tuple[ExitPolicy, ...]:
        return (self.policy,)

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        return self.policy.readiness(self.transform(step), state, free)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(self, policy=self.policy.rescaled(tuned_for, num_steps))


@dataclass(frozen=True)
class _Bounded(PolicyWrapper):
    step: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("step", self.step, remedy="Steps count from 1.")

    def check(self, spec: ModelSpec) -> None:
        check_int("step", self.step, 1, spec.num_steps, remedy="Steps count from 1.")
        super().check(spec)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        return replace(super().rescaled(tuned_for, num_steps), step=max(1, round(self.step * num_steps / tuned_for)))


@registry.register("after")
@dataclass(frozen=True)
class After(_Bounded):
    """The policy inside, with no exit before `step`; its state runs from the first step all the same.

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.replay(policies.Confidence(0.6).after(2)).exit_step
        tensor([2])
    """

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        mask, state = super().decide(step, state)
        return (step.index >= self.step) & mask, state

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        inside, state = super().readiness(step, state, free)
        return torch.where(step.index < self.step, -torch.inf, inside), state


@registry.register("before")
@dataclass(frozen=True)
class Before(_Bounded):
    """The policy inside, with every row out at `step` at the latest.

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.replay(policies.Confidence(0.999).before(2)).exit_step
        tensor([2])
    """

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        mask, state = super().decide(step, state)
        return (step.index >= self.step) | mask, state

    def readiness(self, step: StepView, state: Tree, free: ExitPolicy) -> tuple[Tensor, Tree]:
        inside, state = super().readiness(step, state, free)
        return torch.where(step.index >= self.step, torch.inf, inside), state


def all_within(policy: ExitPolicy) -> list[ExitPolicy]:
    """A policy, and all that it is made of, the outermost first."""
    return [policy, *[each for part in policy.parts() for each in all_within(part)]]


def _undeclared(name: str) -> NoReturn:
    raise PonderError(
        f"the policy reads step.{name}, which it does not declare. "
        f"Set needs = frozenset({{{_PROVIDED_BY.get(name, name)!r}}}) on the policy's class."
    )


def _are_readiness(one: Any, other: Any) -> bool:
    """Whether two answers are numbers, not masks."""
    return isinstance(one, Tensor) and one.dtype != torch.bool and isinstance(other, Tensor)
