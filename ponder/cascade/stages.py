"""Stages of a cascade: anything that answers a list of inputs, and rows on which it fails.

`stage_of` makes a `CascadeStage` of a model, a function or a folder. Its `answer` asks in batches;
a batch that fails is called again row by row, so that a broken row costs one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import softmax
from ponder._utils.readers import STAGES, read_folder
from ponder.calibration.records import as_array
from ponder.errors import ArgumentError, PonderError
from ponder.policies.base import ExitPolicy, LastStep

__all__ = ["CascadeStage", "StageAnswers", "classes_of", "stage_of"]

Floats = NDArray[Any]
_LEAST = 1e-12  # probability
_BATCH = 256
"""Rows of a call after a failure, before rows are called one by one."""


@dataclass(frozen=True, eq=False)
class StageAnswers:
    """The answers of a stage.

    Args:
        outputs: Log-probabilities of the classes, `(rows, classes)` or `(rows, steps, classes)`;
            NaN without an answer.
        errors: The errors of rows without an answer, by their places.
    """

    outputs: Floats
    errors: Mapping[int, Exception]


class CascadeStage:
    """A model in a cascade.

    Args:
        model: It has `predict_proba` (and `classes_`), as in scikit-learn; or `predict`, whose
            answers are names of classes or have `outputs` (logits), as those of ponder; or it is a
            function from a list of inputs to probabilities, `(rows, classes)`, or to a name for
                each. None is the answer to an input without one.

    Attributes:
        classes: Names of its classes, in its order; None if they are those of the cascade.
        num_steps: The number of steps of a model whose policy lets rows exit; 1 of any other.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.classes = classes_of(model)
        steps = getattr(getattr(model, "ponder", model), "num_steps", 1)
        policy = getattr(model, "policy", None)
        exits = isinstance(policy, ExitPolicy) and policy.exit_of_all(steps) is None
        self.num_steps: int = steps if exits else 1

    @property
    def can_be_written(self) -> bool:
        """Whether the model has `save` or `save_pretrained`; functions have neither."""
        return self._writer is not None

    def answer(
        self,
        inputs: Sequence[Any],
        classes: Sequence[str],
        policy: ExitPolicy | None = None,
        *,
        steps: bool = False,
        batch_size: int | None = None,
    ) -> StageAnswers:
        """Answer every input; a row whose answer fails has NaN, and its error.

        Args:
            inputs: The inputs.
            classes: Names of the classes, in the order of the outputs.
            policy: An exit policy instead of the model's, if it has exits.
            steps: Whether every step of such a model answers.
            batch_size: Inputs of a call at most; None for all at once.
        """
        shape = (1, self.num_steps, len(classes)) if steps else (1, len(classes))
        outputs = [np.zeros((0, *shape[1:]))]
        errors = dict[int, Exception]()

        def call(batch: Sequence[Any]) -> StageAnswers:
            answers = self._steps_of(batch) if steps else self._ask(batch, policy)
            return self._read(answers, len(batch), classes, dimensions=len(shape))

        for start, found in _in_batches(call, inputs, batch_size or max(len(inputs), 1)):
            if isinstance(found, Exception):
                found = StageAnswers(np.full(shape, np.nan), {0: found})
            outputs.append(found.outputs)
            errors |= {start + row: error for row, error in found.errors.items()}
        return StageAnswers(np.concatenate(outputs), errors)

    def outputs(
        self, inputs: Sequence[Any], classes: Sequence[str], policy: ExitPolicy | None = None
    ) -> Floats:
        """Return log-probabilities of `classes` for each input, `(rows, classes)`."""
        found = self._read(self._ask(inputs, policy), len(inputs), classes, dimensions=2)
        for error in found.errors.values():
            raise error
        return found.outputs

    def full(self, inputs: Sequence[Any], classes: Sequence[str]) -> Floats:
        """Return log-probabilities at full depth, `(rows, classes)`."""
        return self.outputs(inputs, classes, self.full_depth)

    @property
    def full_depth(self) -> ExitPolicy | None:
        """The policy with which a model with exits runs to its last step; None for other models."""
        return LastStep() if self.num_steps > 1 else None

    def weights_digest(self) -> str | None:
        """Return the digest of the weights in memory, if the model has one: a function has not."""
        digest = getattr(getattr(self.model, "ponder", self.model), "weights_digest", None)
        return None if digest is None else digest()

    def save(self, folder: Path) -> None:
        """Write the stage to a folder, from which `stage_of` reads it."""
        if self._writer is None:
            raise ArgumentError(
                "stages",
                expected="a stage that can be written: a Student, a model of ponder, an export",
                got=f"a {type(self.model).__name__}",
                remedy="Keep it yourself, and give it again: Cascade.load(folder, stages=[…]).",
            )
        self._writer(folder)

    @property
    def _writer(self) -> Callable[[Path], object] | None:
        writer: Callable[[Path], object] | None = getattr(
            self.model, "save", getattr(self.model, "save_pretrained", None)
        )
        return writer

    def _steps_of(self, inputs: Sequence[Any]) -> Floats:
        """Return probabilities at each step of a model with exits, `(rows, steps, classes)`."""
        return np.asarray(softmax(as_array(self.model.record(inputs).outputs)))

    def _ask(self, inputs: Sequence[Any], policy: ExitPolicy | None) -> Any:
        """Return the output of the model: probabilities, `(rows, classes)`, or names."""
        if hasattr(self.model, "predict_proba"):
            return self.model.predict_proba(inputs)
        if not hasattr(self.model, "predict"):
            return self.model(inputs)
        options = {} if policy is None else {"policy": policy}
        answers = self.model.predict(inputs, **options)
        return softmax(as_array(answers.outputs)) if hasattr(answers, "outputs") else answers

    def _read(
        self, answers: Any, rows: int, classes: Sequence[str], dimensions: int
    ) -> StageAnswers:
        """Return log-probabilities in the order of `classes`, and which rows have none."""
        own = tuple(self.classes or classes)
        shares, errors = _as_shares(answers, own)
        sized = shares.ndim == dimensions and (len(shares), shares.shape[-1]) == (rows, len(own))
        if not sized or not set(own) <= set(classes):
            raise ArgumentError(
                "stages",
                expected=f"probabilities ({rows}, {len(own)}) of the cascade's classes, or a name "
                "each input",
                got=f"shape {shares.shape} of {list(own)[:5]}",
                remedy="Return one probability a class, or names; use the same classes in "
                "every stage.",
            )
        others = tuple(range(1, shares.ndim))
        for row in np.flatnonzero(((shares < 0) | (shares > 1.001)).any(others)).tolist():
            errors[row] = PonderError(f"{shares[row].ravel().tolist()[:5]} are no probabilities.")
            shares[row] = np.nan
        spread = np.zeros((*shares.shape[:-1], len(classes)))
        spread[..., [classes.index(name) for name in own]] = shares
        return StageAnswers(np.log(np.maximum(spread, _LEAST)), errors)


def stage_of(given: Any) -> CascadeStage:
    """Return a model, a function, or the folder of a model as a stage."""
    if isinstance(given, CascadeStage):
        return given
    if isinstance(given, str | Path):
        return CascadeStage(read_folder(STAGES, Path(given)))
    if callable(given) or hasattr(given, "predict_proba") or hasattr(given, "predict"):
        return CascadeStage(given)
    expected = "models with predict_proba or predict, functions, or folders"
    remedy = "Pass a function from a list of inputs to names, or to probabilities (rows, classes)."
    raise ArgumentError("stages", expected=expected, got=repr(given), remedy=remedy)


def classes_of(model: Any) -> tuple[str, ...] | None:
    """Return the names of a model's classes, in their order; None if it has none."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(names, Mapping):
        return tuple(str(names[place]) for place in sorted(names))
    found = getattr(model, "classes_", getattr(model, "classes", None))
    found = getattr(getattr(model, "manifest", None), "labels", None) or found
    return None if found is None else tuple(map(str, found))


def _in_batches(
    call: Callable[[Sequence[Any]], StageAnswers], inputs: Sequence[Any], size: int
) -> Iterator[tuple[int, StageAnswers | Exception]]:
    """Yield the start of each batch with its answers, or with the error of a single row.

    A batch that fails is called again in smaller ones, and finally row by row.
    """
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        try:
            found = call(batch)
        except Exception as error:  # of the stage, which is the user's: of any kind
            if len(batch) == 1:
                yield start, error
                continue
            smaller = _BATCH if len(batch) > _BATCH else 1
            for inside, part in _in_batches(call, batch, smaller):
                yield start + inside, part
        else:
            yield start, found


def _as_shares(answers: Any, classes: Sequence[str]) -> tuple[Floats, dict[int, Exception]]:
    """Return answers as probabilities, `(rows, classes)`, and the rows without one.

    Names have probability 1. None is not an answer, nor is a name that is not a class.
    """
    named = _is_named(answers)
    if not named:
        return np.array(answers, dtype=np.float64), {}
    errors = dict[int, Exception]()
    shares = np.full((len(answers), len(classes)), np.nan)
    for row, answer in enumerate(answers):
        if answer is None:
            errors[row] = PonderError("the stage gave no answer (None).")
        elif isinstance(answer, Iterable) and not isinstance(answer, str):
            shares[row] = np.asarray(answer, dtype=np.float64)
        elif (name := str(answer).strip()) in classes:
            shares[row] = 0.0
            shares[row, classes.index(name)] = 1.0
        else:
            errors[row] = PonderError(f"the stage answered {name[:80]!r}, which is no class.")
    return shares, errors


def _is_named(answers: Any) -> bool:
    """Return whether answers are names or None: anything but an array of numbers for each row."""
    if isinstance(answers, np.ndarray) and answers.dtype.kind in "fiub":
        return answers.ndim == 1 and answers.dtype.kind != "f"  # numbers of classes are their names
    rows = list(answers)
    return any(row is None or isinstance(row, str | int | np.integer) for row in rows)
