"""What an exit policy of an export is: the protocol of `ponder.policies` in numpy, read from the same JSON.

Each policy here has the registered name and the fields of one there, and the tests hold the two together.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.registry import Registry
from ponder.errors import ArgumentError, PonderError
from ponder.export.manifest import Manifest
from ponder.export.policies.signals import at_least_float32

__all__ = [
    "Array",
    "ModelSpec",
    "NumpyPolicy",
    "StepView",
    "TaskSpec",
    "ask",
    "check_answers",
    "check_classes",
    "check_outputs",
    "read_policy",
    "registry",
    "take",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class TaskSpec:
    """What outputs mean, as far as a policy has to know: `ponder.parts.tasks.Task` in numpy.

    Args:
        name: Name of the task.
        classes: Whether the last dimension holds the logits of classes.
        numbers: Whether answers are numbers.
        own_answers: Whether it finds or compares answers in code of its own, which nothing here runs.
        per_token: Whether a row has an answer at each of its positions.
        per_position: Whether outputs are `(rows, length, …)`, to answer at each position or to choose among them.
        blank: What stands in outputs beyond the end of a row, where they have positions.

    Example:
        >>> import numpy as np
        >>> task = ponder.export.policies.TaskSpec("classification", classes=True, numbers=False)
        >>> task.predictions(np.array([[0.1, 0.9], [0.8, 0.2]]))
        array([1, 0])
    """

    name: str
    classes: bool
    numbers: bool
    own_answers: bool = False
    per_token: bool = False
    per_position: bool = False
    blank: float = 0.0

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """That of an export."""
        made = manifest
        same = (made.classes, made.numbers, made.own_answers, made.per_token, made.per_position, made.blank)
        return cls(made.task, *same)

    @property
    def chooses(self) -> bool:
        """Whether positions are what is chosen among, as for the start and the end of an answer."""
        return self.per_position and not self.per_token

    def predictions(self, outputs: Array) -> Array:
        """What outputs `(…, outputs)` predict: a class, a set of labels, numbers; or positions, of `(…, length, 2)`."""
        if self.numbers:
            return at_least_float32(outputs)
        if self.chooses:
            return np.asarray(outputs.argmax(-2))
        predicted: Array = outputs.argmax(-1) if self.classes else outputs > 0
        return predicted

    def without_padding(self, outputs: Array, mask: Array | None) -> Array:
        """Outputs `(rows, length, …)`, of which none is an answer at padding, where one position is chosen."""
        if mask is None or not self.chooses:
            return outputs
        return np.where(mask[..., None], outputs, outputs.dtype.type(self.blank))

    def answered(self, outputs: Array, mask: Array | None) -> Array:
        """Which rows have an answer at all, `(rows,)` bool: outputs without NaN, padding aside."""
        nan = np.isnan(outputs)
        if mask is not None and self.per_position:
            nan = nan.reshape(*nan.shape[:2], -1).any(2) & mask
        answered: Array = np.asarray(~nan.reshape(len(nan), -1).any(1))
        return answered

    def same(self, one: Array, other: Array, tolerance: float, mask: Array | None) -> Array:
        """Whether predictions `(rows, …)` are the same in every part that counts, `(rows,)` bool."""
        equal = np.abs(one - other) < tolerance if self.numbers else one == other
        counted = self._counted(mask, equal)
        same: Array = (equal if counted is None else equal | ~counted).reshape(len(equal), -1).all(1)
        return same

    def distance(self, one: Array, other: Array, mask: Array | None) -> Array:
        """How far predictions are apart, `(rows,)`: the share of parts that are others; of numbers, the furthest."""
        apart = np.abs(one - other) if self.numbers else (one != other).astype(np.float32)
        counted, rows = self._counted(mask, apart), (len(apart), -1)
        if counted is not None:
            apart = np.where(counted, apart, apart.dtype.type(0))
        parts = apart.reshape(rows)
        if self.numbers:
            return np.asarray(parts.max(1))
        of = np.float32(parts.shape[1]) if counted is None else counted.reshape(rows).sum(1).astype(np.float32)
        return np.asarray(parts.sum(1) / of)

    def _counted(self, mask: Array | None, parts: Array) -> Array | None:
        """Which parts of predictions count, in their shape; None for all."""
        if mask is None or not self.per_token:
            return None
        return np.broadcast_to(mask.reshape(*mask.shape, *[1] * (parts.ndim - 2)), parts.shape)


@dataclass(frozen=True)
class ModelSpec:
    """What a policy has to know of the model that it is to decide for.

    Args:
        num_steps: N.
        task: What outputs mean.
        has_hazard: Whether there is a Lambda head.
        outputs: The shape of one row's outputs; of one position's, where outputs have positions.
        features: The shape of one row's features; empty in exports of before, which did not say.

    Example:
        >>> manifest = ponder.export.OnnxModel(folder).manifest
        >>> spec = ponder.export.policies.ModelSpec.of(manifest)
        >>> spec.num_steps, spec.outputs, spec.features, spec.has_hazard
        (4, (3,), (8,), False)
    """

    num_steps: int
    task: TaskSpec
    has_hazard: bool
    outputs: tuple[int, ...]
    features: tuple[int, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """That of an export."""
        hazard = manifest.lambda_head is not None
        return cls(manifest.num_steps, TaskSpec.of(manifest), hazard, manifest.outputs, manifest.features)


@dataclass(frozen=True)
class StepView:
    """What a policy sees of the running rows after a step; fields that it does not need are None.

    Args:
        index: The step just finished, from 1.
        num_steps: N.
        rows: How many rows still run.
        task: What the outputs mean.
        output: Outputs, `(rows, …)`.
        features: What the heads read, `(rows, width)`.
        hazard: λ of this step, `(rows,)`.
        cdf: P(stop at n or before), `(rows,)`.
        survival: P(not stopped before n), `(rows,)`.
        mask: Which positions are no padding, `(rows, length)` bool, where outputs have positions and padding is known.

    Example:
        >>> import numpy as np
        >>> from ponder.export.policies import StepView, TaskSpec, read_policy
        >>> classes = TaskSpec("classification", classes=True, numbers=False)
        >>> view = StepView(2, num_steps=4, rows=2, task=classes, output=np.array([[0.0, 4.0], [0.0, 0.5]]))
        >>> read_policy({"name": "confidence", "threshold": 0.9}).decide(view, None)
        (array([ True, False]), None)
    """

    index: int
    num_steps: int
    rows: int
    task: TaskSpec
    output: Array | None = None
    features: Array | None = None
    hazard: Array | None = None
    cdf: Array | None = None
    survival: Array | None = None
    mask: Array | None = None


class NumpyPolicy(ABC):
    """An exit policy of exports: the protocol of `ponder.policies.ExitPolicy`, with one step for all rows.

    A leaf is a frozen dataclass that bears the registered name of its twin in PyTorch and has its fields, so that it is
    made of what that one's `to_dict` gives. Your own policy runs in exports once its twin is registered.

    Example:
        >>> from dataclasses import dataclass
        >>> @ponder.export.policies.register("positive")
        ... @dataclass(frozen=True)
        ... class Positive(ponder.export.policies.NumpyPolicy):
        ...     needs = frozenset({"output"})
        ...     def decide(self, step, state):
        ...         return step.output[:, 0] > 0, state
        >>> exported = ponder.export.OnnxModel(folder)
        >>> exported.predict(inputs.numpy(), policy={"name": "positive"}).exit_step.shape
        (300,)
    """

    needs: frozenset[str] = frozenset()
    """Which of "hazard", "output", "features" the policy reads; only these are computed. `cdf` and `survival` come with
    the hazard."""

    @classmethod
    def arguments(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the constructor from the fields that the twin in PyTorch writes; policies inside are read."""
        own = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        told = {"fitted_on"} - own  # on which rows a policy was fitted decides nothing
        return {key: _read(value) for key, value in fields.items() if key not in told}

    def check(self, model: ModelSpec) -> None:
        """Raise where the policy cannot serve a model, as that of PyTorch does.

        A leaf that overrides this calls `super().check(model)`.
        """
        if "hazard" in self.needs and not model.has_hazard:
            raise ArgumentError(
                "policy",
                expected="a policy that needs no hazard, since there is no Lambda head",
                got=repr(self),
                remedy="Use a policy on outputs.",
            )
        if "features" in self.needs and len(model.features) != 1:
            raise ArgumentError(
                "policy",
                expected="a policy that reads no features, which are not known to be one vector a row",
                got=repr(self),
                remedy="Export the model again, if an earlier version did; where its features have positions, use a "
                "policy on outputs.",
            )

    def init(self, row_ids: Array) -> Any:
        """State before the first step: (nested) arrays with the rows first, or None."""
        return None

    @abstractmethod
    def decide(self, step: StepView, state: Any) -> tuple[Array | bool, Any]:
        """Which rows exit now, `(rows,)` bool (or one bool for all), and the new state. Pure, as in PyTorch."""


registry: Registry[NumpyPolicy] = Registry("policy of exports", "ponder.export_policies")
registry.base = NumpyPolicy


def read_policy(data: Any) -> NumpyPolicy:
    """The policy of what `policy.to_dict()` gave.

    Raises:
        ArgumentError: It, or a policy inside it, cannot be expressed without PyTorch (the message names those that
            can), or a certificate was changed since it was written.

    Example:
        >>> ponder.export.policies.read_policy((policies.Patience(2) | policies.Quantile(0.9)).to_dict())
        Any_(policies=(Patience(patience=2, tolerance=0.0), Quantile(q=0.9)))
    """
    name = data.get("name") if isinstance(data, Mapping) else None
    if not isinstance(name, str):
        raise refusal(repr(name or data))
    try:
        kind: Any = registry.find(name)
    except ArgumentError:
        raise refusal(repr(name)) from None
    derived: bool = isinstance(kind, type) and issubclass(kind, NumpyPolicy)
    if not derived:
        raise ArgumentError(
            "policy",
            expected=f"a class derived from ponder.export.policies.NumpyPolicy under the name {name!r}",
            got=repr(kind),
            remedy="Register the class of the twin.",
        )
    try:
        policy: NumpyPolicy = kind(**kind.arguments({key: value for key, value in data.items() if key != "name"}))
    except (KeyError, TypeError) as error:
        raise ArgumentError(
            "policy",
            expected=f"the fields of {name!r}: {', '.join(field.name for field in dataclasses.fields(kind))}",
            got=f"others ({error})",
            remedy="Take what the policy's to_dict() gives; a twin has the fields of its policy.",
        ) from error
    return policy


def _read(value: Any) -> Any:
    """A field of a policy: policies inside are read, and lists become tuples."""
    if isinstance(value, Mapping):
        return read_policy(value)
    return tuple(_read(item) for item in value) if isinstance(value, list | tuple) else value


def refusal(got: str) -> ArgumentError:
    """The error for what no policy here can be made of."""
    return ArgumentError(
        "policy",
        expected=f"a policy that runs without PyTorch: {', '.join(registry.names())} (bernoulli with a seed)",
        got=got,
        remedy="Export the model with one of these, for example policies.Confidence(0.9). One of your own needs a twin "
        "in numpy (ponder.export.policies.NumpyPolicy), and the package that registers it has to be installed here.",
    )


def ask(policy: NumpyPolicy, step: StepView, state: Any) -> tuple[Array, Any]:
    """What a policy decides, `(rows,)` bool, and its new state; policies made of others ask these so, too.

    Outputs that are not finite are no cause to warn: NaN is above and below no threshold.

    Raises:
        PonderError: The mask is not an array of bool, one for each row.
    """
    with np.errstate(all="ignore"):
        mask, state = policy.decide(step, state)
    if isinstance(mask, bool):
        return np.full(step.rows, mask), state
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (step.rows,):
        got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise PonderError(
            f"{policy!r} at step {step.index}: expected an exit mask of bool, one for each of {step.rows} rows; got "
            f"{got}. Compare per row, and reduce over every dimension but the first.",
        )
    return mask, state


def take(state: Any, rows: Array) -> Any:
    """Take some rows of a state: of every array in its tuples, lists and mappings."""
    if isinstance(state, np.ndarray):
        return state[rows]
    if isinstance(state, Mapping):
        return {name: take(part, rows) for name, part in state.items()}
    if isinstance(state, tuple | list):
        parts = [take(part, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def check_classes(model: ModelSpec, policy: NumpyPolicy) -> None:
    """Refuse a task without classes under a policy on their probabilities."""
    if not model.task.classes:
        raise ArgumentError(
            "policy",
            expected=f"class logits under {policy!r}",
            got=f"the task {model.task.name!r}",
            remedy="Use a policy on the hazard, or Patience (with a tolerance, where answers are numbers).",
        )
    check_outputs(model)


def check_outputs(model: ModelSpec) -> None:
    """Refuse outputs that are not a logit for each of two classes or more, where classes are to be compared."""
    if model.task.classes and (len(model.outputs) != 1 or model.outputs[0] < 2):
        raise ArgumentError(
            "policy",
            expected="a policy that compares no classes, of which the model has no two, or several rows of them",
            got=f"outputs (batch, {', '.join(map(str, model.outputs))}) of the task {model.task.name!r}",
            remedy="Export the model with task='regression' if it answers with one number.",
        )


def check_answers(model: ModelSpec, policy: NumpyPolicy) -> None:
    """Refuse to compare answers that the task finds in its own way."""
    if model.task.own_answers:
        raise ArgumentError(
            "policy",
            expected=f"a policy that compares no answers: the task {model.task.name!r} finds or compares them in code "
            "of its own, which does not run without PyTorch",
            got=repr(policy),
            remedy="Use a policy on the hazard or on class probabilities, or serve the model with PyTorch.",
        )
