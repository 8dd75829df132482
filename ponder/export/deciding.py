"""Exit policies in numpy: what `ponder.policies` decide, from the JSON that they turn into, without PyTorch.

Each policy here has the registered name and the fields of one there, and the tests hold the two together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.certificates import check_digest
from ponder._utils.validation import check_int, check_real
from ponder.errors import ArgumentError
from ponder.export.manifest import Manifest

__all__ = ["ModelSpec", "NumpyPolicy", "StepView", "TaskSpec", "read_policy", "take"]

Array = NDArray[Any]


@dataclass(frozen=True)
class TaskSpec:
    """What outputs mean, as far as a policy has to know.

    Args:
        name: Name of the task.
        classes: Whether the last dimension holds the logits of classes.
        numbers: Whether answers are numbers.
        own_answers: Whether it finds or compares answers in code of its own, which nothing here runs.
    """

    name: str
    classes: bool
    numbers: bool
    own_answers: bool = False

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """That of an export."""
        return cls(manifest.task, manifest.classes, manifest.numbers, manifest.own_answers)

    def predictions(self, outputs: Array) -> Array:
        """What outputs `(…, outputs)` predict: a class, a set of labels, or numbers."""
        if self.numbers:
            return _at_least_float32(outputs)
        predicted: Array = outputs.argmax(-1) if self.classes else outputs > 0
        return predicted


@dataclass(frozen=True)
class ModelSpec:
    """What a policy has to know of the model that it is to decide for.

    Args:
        num_steps: N.
        task: What outputs mean.
        has_hazard: Whether there is a Lambda head.
        outputs: The shape of one row's outputs.
    """

    num_steps: int
    task: TaskSpec
    has_hazard: bool
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """That of an export."""
        return cls(manifest.num_steps, TaskSpec.of(manifest), manifest.lambda_head is not None, manifest.outputs)


@dataclass(frozen=True)
class StepView:
    """What a policy sees of the running rows after a step; fields that it does not need are None.

    Args:
        index: The step just finished, from 1.
        task: What the outputs mean.
        cdf: P(stop at n or before), `(rows,)`.
        output: Outputs, `(rows, …)`.
    """

    index: int
    task: TaskSpec
    cdf: Array | None = None
    output: Array | None = None


class NumpyPolicy(ABC):
    """An exit policy; see `ponder.policies.ExitPolicy`, whose protocol this is, with one step for all rows."""

    needs: frozenset[str] = frozenset()

    def check(self, model: ModelSpec) -> None:
        """Raise where the policy cannot serve a model, as that of PyTorch does."""
        if "hazard" in self.needs and not model.has_hazard:
            raise ArgumentError(
                "policy",
                expected="a policy that needs no hazard, since there is no Lambda head",
                got=repr(self),
                remedy="Use a policy on outputs.",
            )

    def init(self, row_ids: Array) -> Any:
        """State before the first step: nested arrays, batch first, or None."""
        return None

    @abstractmethod
    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        """Which rows exit now, `(rows,)` bool, and the new state."""


def take(state: Any, rows: Array) -> Any:
    """Take some rows of a state."""
    if isinstance(state, np.ndarray):
        return state[rows]
    return tuple(take(part, rows) for part in state) if isinstance(state, tuple) else state


def _check_outputs(model: ModelSpec) -> None:
    """Refuse outputs that are not a logit for each of two classes or more, where classes are to be compared."""
    if model.task.classes and (len(model.outputs) != 1 or model.outputs[0] < 2):
        raise ArgumentError(
            "policy",
            expected="a policy that compares no classes, of which the model has no two, or several rows of them",
            got=f"outputs (batch, {', '.join(map(str, model.outputs))}) of the task {model.task.name!r}",
            remedy="Export the model with task='regression' if it answers with one number.",
        )


def _check_answers(model: ModelSpec, policy: NumpyPolicy) -> None:
    """Refuse to compare answers that the task finds in its own way."""
    if model.task.own_answers:
        raise ArgumentError(
            "policy",
            expected=f"a policy that compares no answers: the task {model.task.name!r} finds or compares them in code "
            "of its own, which does not run without PyTorch",
            got=repr(policy),
            remedy="Use a policy on the hazard or on class probabilities, or serve the model with PyTorch.",
        )


class _OfClasses(NumpyPolicy):
    needs = frozenset({"output"})

    def check(self, model: ModelSpec) -> None:
        if not model.task.classes:
            raise ArgumentError(
                "policy",
                expected=f"class logits under {self!r}",
                got=f"the task {model.task.name!r}",
                remedy="Use a policy on the hazard, or Patience (with a tolerance, where answers are numbers).",
            )
        _check_outputs(model)


@dataclass(frozen=True)
class _Quantile(NumpyPolicy):
    q: float
    needs = frozenset({"hazard"})

    def __post_init__(self) -> None:
        check_real("q", self.q, 0.0, 1.0)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        return _given(step.cdf) > np.float32(self.q), state


@dataclass(frozen=True)
class _Bernoulli(NumpyPolicy):
    seed: int
    needs = frozenset({"hazard"})

    def init(self, row_ids: Array) -> Any:
        with np.errstate(over="ignore"):
            key = _mix(np.array([(self.seed + _GAMMA) & _MASK], dtype=np.uint64))
            bits = _mix(key + row_ids.astype(np.int64).astype(np.uint64) * np.uint64(_GAMMA))
        return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        return _given(step.cdf) > state, state


@dataclass(frozen=True)
class _Confidence(_OfClasses):
    threshold: float

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        surest = np.exp(_log_softmax(_given(step.output)).max(-1))
        return surest > surest.dtype.type(self.threshold), state


@dataclass(frozen=True)
class _Entropy(_OfClasses):
    threshold: float
    normalize: bool = False

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0 if self.normalize else math.inf)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        log_p = _log_softmax(_given(step.output))
        p = np.exp(log_p)
        with np.errstate(invalid="ignore"):
            entropy = -np.where(p == 0, 0, p * log_p).sum(-1)
        if self.normalize:
            entropy = entropy / entropy.dtype.type(np.log(log_p.shape[-1]))
        return entropy < entropy.dtype.type(self.threshold), state


@dataclass(frozen=True)
class _Margin(_OfClasses):
    threshold: float

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        two = np.exp(np.sort(_log_softmax(_given(step.output)), axis=-1)[..., -2:])
        return two[..., 1] - two[..., 0] > two.dtype.type(self.threshold), state


@dataclass(frozen=True)
class _Energy(_OfClasses):
    threshold: float

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        output = _at_least_float32(_given(step.output))
        greatest = output.max(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            total = greatest + np.log(np.exp(output - greatest[..., None]).sum(-1))
            score = 1 / (1 + np.exp(-total))
        return score > score.dtype.type(self.threshold), state


@dataclass(frozen=True)
class _Patience(NumpyPolicy):
    patience: int
    tolerance: float = 0.0
    needs = frozenset({"output"})

    def __post_init__(self) -> None:
        check_int("patience", self.patience)
        check_real("tolerance", self.tolerance)

    def check(self, model: ModelSpec) -> None:
        most = model.num_steps - 1
        check_int("patience", self.patience, 1, most, remedy="Use policies.LastStep() to run to the end.")
        _check_outputs(model)
        _check_answers(model, self)
        if model.task.numbers and self.tolerance == 0.0:
            raise ArgumentError(
                "tolerance",
                expected="a positive number for regression, where two answers are never exactly equal",
                got=self.tolerance,
                remedy="Give Patience a tolerance=0.1, say, in the unit of the outputs.",
            )

    def init(self, row_ids: Array) -> Any:
        return np.zeros(len(row_ids), dtype=np.int64), None, np.zeros(len(row_ids), dtype=bool)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        count, before, answered_before = state
        output = _given(step.output)
        answer, answered = step.task.predictions(output), ~np.isnan(output).reshape(len(output), -1).any(1)
        if before is not None:
            equal = np.abs(answer - before) < self.tolerance if step.task.numbers else answer == before
            same = equal.reshape(len(equal), -1).all(1) & answered & answered_before
            count = np.where(same, count + 1, 0)
        return count >= self.patience, (count, answer, answered)


@dataclass(frozen=True)
class _Voting(_OfClasses):
    votes: int

    def check(self, model: ModelSpec) -> None:
        check_int("votes", self.votes, 1, model.num_steps)
        super().check(model)
        _check_answers(model, self)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        output = _given(step.output)
        answer = step.task.predictions(output)
        answered = np.asarray(~np.isnan(output).any(-1))
        votes = np.eye(output.shape[-1], dtype=np.int64)[answer] * answered[:, None] + (0 if state is None else state)
        return (votes[np.arange(len(answer)), answer] >= self.votes) & answered, votes


@dataclass(frozen=True)
class _FixedStep(NumpyPolicy):
    step: int

    def check(self, model: ModelSpec) -> None:
        check_int("step", self.step, 1, model.num_steps, remedy="Steps count from 1.")

    def init(self, row_ids: Array) -> Any:
        return row_ids

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        return np.full(len(state), step.index >= self.step), state


@dataclass(frozen=True)
class _LastStep(NumpyPolicy):
    def init(self, row_ids: Array) -> Any:
        return row_ids

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        return np.zeros(len(state), dtype=bool), state


@dataclass(frozen=True)
class _Several(NumpyPolicy):
    policies: tuple[NumpyPolicy, ...]
    merge: ClassVar[np.ufunc]

    def __post_init__(self) -> None:
        if not self.policies:
            raise _refusal("several of which there is none")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset[str]().union(*(policy.needs for policy in self.policies))

    def check(self, model: ModelSpec) -> None:
        for policy in self.policies:
            policy.check(model)

    def init(self, row_ids: Array) -> Any:
        return tuple(policy.init(row_ids) for policy in self.policies)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        answers = [policy.decide(step, part) for policy, part in zip(self.policies, state, strict=True)]
        return self.merge.reduce([mask for mask, _ in answers]), tuple(after for _, after in answers)


@dataclass(frozen=True)
class _Any(_Several):
    merge = np.logical_or


@dataclass(frozen=True)
class _All(_Several):
    merge = np.logical_and


@dataclass(frozen=True)
class _Around(NumpyPolicy):
    policy: NumpyPolicy

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.policy.needs

    def check(self, model: ModelSpec) -> None:
        self.policy.check(model)

    def init(self, row_ids: Array) -> Any:
        return self.policy.init(row_ids)

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        return self.policy.decide(step, state)


@dataclass(frozen=True)
class _Certified(_Around):
    num_steps: int | None = None

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        if self.num_steps not in (None, model.num_steps):
            raise ArgumentError(
                "policy",
                expected=f"one that is certified for {model.num_steps} steps",
                got=f"a certificate for {self.num_steps}: it says nothing of others",
                remedy="Run the policy inside, without a promise, or certify it on such a run.",
            )


@dataclass(frozen=True)
class _Bounded(_Around):
    step: int

    def check(self, model: ModelSpec) -> None:
        check_int("step", self.step, 1, model.num_steps, remedy="Steps count from 1.")
        super().check(model)


@dataclass(frozen=True)
class _After(_Bounded):
    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        mask, state = self.policy.decide(step, state)
        return mask if step.index >= self.step else np.zeros_like(mask), state


@dataclass(frozen=True)
class _Before(_Bounded):
    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        mask, state = self.policy.decide(step, state)
        return np.ones_like(mask) if step.index >= self.step else mask, state


@dataclass(frozen=True)
class _Tempered(_Around):
    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
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
            return self.policy.decide(step, state)
        own = self.temperatures[0] if len(self.temperatures) == 1 else self.temperatures[step.index - 1]
        output = _at_least_float32(step.output)
        return self.policy.decide(replace(step, output=output / output.dtype.type(own)), state)


_KINDS: dict[str, type[Any]] = {
    "quantile": _Quantile,
    "bernoulli": _Bernoulli,
    "confidence": _Confidence,
    "entropy": _Entropy,
    "margin": _Margin,
    "energy": _Energy,
    "patience": _Patience,
    "voting": _Voting,
    "fixed-step": _FixedStep,
    "last-step": _LastStep,
    "any": _Any,
    "all": _All,
    "after": _After,
    "before": _Before,
    "tempered": _Tempered,
    "certified": _Certified,
}


def read_policy(data: Any) -> NumpyPolicy:
    """The policy of what `policy.to_dict()` gave.

    Raises:
        ArgumentError: It, or a policy inside it, cannot be expressed without PyTorch (the message names those that
            can), or a certificate was changed since it was written.
    """
    name = data.get("name") if isinstance(data, Mapping) else None
    if name not in _KINDS:
        raise _refusal(repr(name or data))
    if name == "bernoulli" and data.get("seed") is None:
        raise _refusal("a Bernoulli without a seed, whose exits nobody could check")
    fields = {key: value for key, value in data.items() if key not in ("name", "fitted_on")}
    try:
        if "policy" in fields:
            fields["policy"] = read_policy(fields["policy"])
        if "policies" in fields:
            fields["policies"] = tuple(read_policy(part) for part in fields["policies"])
        if name == "certified":
            check_digest(data)
            fields = {"policy": fields["policy"], "num_steps": fields.get("num_steps")}  # all else is about the promise
        policy: NumpyPolicy = _KINDS[name](**fields)
    except (KeyError, TypeError) as error:
        raise _refusal(f"{name!r} with other fields ({error})") from error
    return policy


def _refusal(got: str) -> ArgumentError:
    return ArgumentError(
        "policy",
        expected=f"a policy that runs without PyTorch: {', '.join(sorted(_KINDS))} (bernoulli with a seed)",
        got=got,
        remedy="Export the model with one of these, for example policies.Confidence(0.9).",
    )


def _given(reading: Array | None) -> Array:
    assert reading is not None
    return reading


def _at_least_float32(array: Array) -> Array:
    wide: Array = array if array.dtype == np.float64 else array.astype(np.float32)
    return wide


def _log_softmax(outputs: Array) -> Array:
    outputs = _at_least_float32(outputs)
    with np.errstate(invalid="ignore"):  # of infinity: NaN, which lets no row go
        shifted = outputs - outputs.max(-1, keepdims=True)
        log_p: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_p


_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(x: Array) -> Array:
    """The SplitMix64 finaliser, as in `ponder.policies.halting`; arithmetic modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
