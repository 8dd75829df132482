"""Stages of a cascade: anything that answers a list of inputs.

`stage_of` makes a `CascadeStage` of a model, a function or a folder. Its `answer` calls the model
in batches. If a batch fails, its rows are tried in smaller batches and last one by one, so that a
row that the model cannot read loses its own answer only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np

from ponder._utils.arrays import Floats, as_array, softmax
from ponder._utils.readers import STAGES, read_folder
from ponder.errors import ArgumentError, PonderError

if TYPE_CHECKING:
    from ponder.calibration.records import Record
    from ponder.policies.base import ExitPolicy

__all__ = ["CascadeStage", "Input", "StageAnswers", "classes_of", "stage_of"]

Input: TypeAlias = Any
"""An input of a stage: a text, a pair of texts, or another value that its model takes."""
StageOutput: TypeAlias = Floats | Sequence[object]
"""The answers of a model: probabilities, `(rows, classes)`, or a name or None for each input."""
_LOWEST = 1e-12
"""Probabilities are clipped here, since their logarithms are compared."""
_HIGHEST = 1.001
"""The highest number that is read as a probability, with room for rounding."""
_BATCH = 256
"""Rows of a call after a failure, before rows are tried one by one."""


class _Records(Protocol):
    """A model of ponder with exits, which records its full-depth runs."""

    def record(self, inputs: Sequence[Input], /) -> Record:
        """Return the record of a full-depth run."""


@dataclass(frozen=True, eq=False)
class StageAnswers:
    """The answers of a stage.

    Args:
        outputs: Log-probabilities of the classes, `(rows, classes)` or `(rows, steps, classes)`;
            NaN without an answer.
        errors: The error of each row without an answer, by the position of the row.
    """

    outputs: Floats
    errors: Mapping[int, Exception]


class CascadeStage:
    """A model in a cascade.

    Args:
        model: It has `predict_proba` (and `classes_`), as in scikit-learn; or `predict`, whose
            answers are names of classes or have `outputs` (logits), as those of ponder; or it is a
            function from a list of inputs to probabilities, `(rows, classes)`, or to a name for
            each. It returns None for an input without an answer.

    Attributes:
        classes: Names of its classes, in its order; None if they are those of the cascade.
        num_steps: The number of steps of a model whose policy lets rows exit early; else 1.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.classes = classes_of(model)
        self._stepped = getattr(model, "ponder", model)  # the part with the steps and the weights
        steps: int = getattr(self._stepped, "num_steps", 1)
        # Only a policy of ponder has this: the room of policies, which a model without exits does
        # not need, need not be loaded to see it.
        exit_of_all = getattr(getattr(model, "policy", None), "exit_of_all", None)
        self.num_steps = 1
        if exit_of_all is not None and exit_of_all(steps) is None:
            self.num_steps = steps

    @property
    def can_be_written(self) -> bool:
        """Whether the model has `save` or `save_pretrained`; functions have neither."""
        return self._writer() is not None

    def answer(
        self,
        inputs: Sequence[Input],
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
            policy: The exit policy of a model with exits; None for the model's own.
            steps: Whether to return the answers of every step of such a model.
            batch_size: Inputs of a call at most; None for all at once.
        """
        shape: tuple[int, ...] = (1, len(classes))
        if steps:
            shape = (1, self.num_steps, len(classes))
        outputs = [np.zeros((0, *shape[1:]))]
        errors = dict[int, Exception]()

        def call(batch: Sequence[Input]) -> StageAnswers:
            answers = self._steps_of(batch) if steps else self._ask(batch, policy)
            return self._read(answers, len(batch), classes, dimensions=len(shape))

        for start, answers in _in_batches(call, inputs, batch_size or max(len(inputs), 1)):
            if isinstance(answers, Exception):
                answers = StageAnswers(np.full(shape, np.nan), {0: answers})
            outputs.append(answers.outputs)
            errors |= {start + row: error for row, error in answers.errors.items()}
        return StageAnswers(np.concatenate(outputs), errors)

    def outputs(
        self, inputs: Sequence[Input], classes: Sequence[str], policy: ExitPolicy | None = None
    ) -> Floats:
        """Return log-probabilities of `classes` for each input, `(rows, classes)`.

        The first error of a row is raised.
        """
        answers = self._read(self._ask(inputs, policy), len(inputs), classes, dimensions=2)
        for error in answers.errors.values():
            raise error
        return answers.outputs

    def full(self, inputs: Sequence[Input], classes: Sequence[str]) -> Floats:
        """Return log-probabilities at full depth, `(rows, classes)`."""
        return self.outputs(inputs, classes, self.full_depth)

    @property
    def full_depth(self) -> ExitPolicy | None:
        """`LastStep` for a model with exits, to run to its last step; None for other models."""
        if self.num_steps == 1:
            return None
        policy: ExitPolicy = self.model.policy.full_depth()
        return policy

    def weights_digest(self) -> str | None:
        """Return the digest of the weights in memory; None for functions and models without one."""
        digest = getattr(self._stepped, "weights_digest", None)
        if digest is None:
            return None
        of_weights: str | None = digest()
        return of_weights

    def save(self, folder: Path) -> None:
        """Write the stage to a folder, from which `stage_of` reads it."""
        write = self._writer()
        if write is None:
            raise ArgumentError(
                "stages",
                expected="a stage that can be written: a Student, a model of ponder, an export",
                got=f"a {type(self.model).__name__}",
                remedy="Keep it yourself, and pass it again: Cascade.load(folder, stages=[…]).",
            )
        write(folder)

    def _writer(self) -> Callable[[Path], object] | None:
        save_pretrained = getattr(self.model, "save_pretrained", None)
        writer: Callable[[Path], object] | None = getattr(self.model, "save", save_pretrained)
        return writer

    def _steps_of(self, inputs: Sequence[Input]) -> Floats:
        """Return probabilities at each step of a model with exits, `(rows, steps, classes)`."""
        model = cast(_Records, self.model)  # a model with exits has it
        return np.asarray(softmax(as_array(model.record(inputs).outputs)))

    def _ask(self, inputs: Sequence[Input], policy: ExitPolicy | None) -> StageOutput:
        """Call the model, and return its probabilities, `(rows, classes)`, or names."""
        model: Any = self.model
        if hasattr(model, "predict_proba"):
            return cast(StageOutput, model.predict_proba(inputs))
        if not hasattr(model, "predict"):
            return cast(StageOutput, model(inputs))
        options = {}
        if policy is not None:  # not every model takes one
            options["policy"] = policy
        answers = model.predict(inputs, **options)
        if hasattr(answers, "outputs"):  # logits, of a model of ponder
            return softmax(as_array(answers.outputs))
        return cast(StageOutput, answers)

    def _read(
        self, answers: StageOutput, rows: int, classes: Sequence[str], dimensions: int
    ) -> StageAnswers:
        """Return log-probabilities in the order of `classes`, and errors of rows without any.

        Args:
            answers: Probabilities, or names.
            rows: The number of inputs.
            classes: Names of the classes of the cascade.
            dimensions: 2, or 3 if there are answers of every step.

        Raises:
            ArgumentError: The shape or the names of the classes do not fit.
        """
        stage_classes = tuple(self.classes or classes)
        width = len(stage_classes)
        read = _as_shares(answers, stage_classes)
        shares = read.shares
        fits = shares.ndim == dimensions and (len(shares), shares.shape[-1]) == (rows, width)
        if not fits or not set(stage_classes) <= set(classes):
            raise ArgumentError(
                "stages",
                expected=f"probabilities ({rows}, {width}) of classes among those of the cascade, "
                "or a name for each input",
                got=f"shape {shares.shape} of {list(stage_classes)[:5]}",
                remedy="Return one probability a class, as predict_proba does, or names; "
                "name the same classes in every stage.",
            )
        errors = dict(read.errors)
        other_dimensions = tuple(range(1, shares.ndim))
        # NaN is neither below 0 nor above 1: it stands for a row without an answer.
        is_outside = ((shares < 0) | (shares > _HIGHEST)).any(other_dimensions)
        for row in np.flatnonzero(is_outside).tolist():
            errors[row] = PonderError(f"{shares[row].ravel().tolist()[:5]} are no probabilities.")
            shares[row] = np.nan
        places = [classes.index(name) for name in stage_classes]
        of_all_classes = np.zeros((*shares.shape[:-1], len(classes)))
        of_all_classes[..., places] = shares
        return StageAnswers(np.log(np.maximum(of_all_classes, _LOWEST)), errors)


def stage_of(given: object) -> CascadeStage:
    """Return a model, a function, or the model in a folder, as a stage."""
    if isinstance(given, CascadeStage):
        return given
    if isinstance(given, str | Path):
        return CascadeStage(read_folder(STAGES, Path(given)))
    if callable(given) or hasattr(given, "predict_proba") or hasattr(given, "predict"):
        return CascadeStage(given)
    raise ArgumentError(
        "stages",
        expected="models with predict_proba or predict, functions, or folders",
        got=repr(given),
        remedy="Pass a function from a list of inputs to names, "
        "or to probabilities (rows, classes).",
    )


def classes_of(model: object) -> tuple[str, ...] | None:
    """Return the names of a model's classes, in their order; None if it has none."""
    of_transformers = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(of_transformers, Mapping):
        return tuple(str(of_transformers[place]) for place in sorted(of_transformers))
    names = getattr(getattr(model, "manifest", None), "labels", None)  # of an export
    if not names:
        names = getattr(model, "classes_", getattr(model, "classes", None))
    if names is None:
        return None
    return tuple(map(str, names))


def _in_batches(
    call: Callable[[Sequence[Input]], StageAnswers], inputs: Sequence[Input], size: int
) -> Iterator[tuple[int, StageAnswers | Exception]]:
    """Yield the start of each batch with its answers, or with the error of a single row.

    A batch that fails is tried again in smaller batches, and last row by row.
    """
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        try:
            answers = call(batch)
        except Exception as error:  # a stage is code of the user, which may raise anything
            if len(batch) == 1:
                yield start, error
                continue
            smaller = _BATCH if len(batch) > _BATCH else 1
            for offset, part in _in_batches(call, batch, smaller):
                yield start + offset, part
        else:
            yield start, answers


@dataclass(frozen=True, eq=False)
class _Shares:
    """Answers as probabilities, `(rows, …, classes)`, and the errors of rows without an answer."""

    shares: Floats
    errors: Mapping[int, Exception]


def _as_shares(answers: StageOutput, classes: Sequence[str]) -> _Shares:
    """Return answers as probabilities.

    A name has probability 1. Neither None nor a name that is not a class is an answer.
    """
    if not _has_names(answers):
        return _Shares(np.array(answers, dtype=np.float64), {})
    errors = dict[int, Exception]()
    shares = np.full((len(answers), len(classes)), np.nan)
    for row, answer in enumerate(answers):
        name = str(answer).strip()
        if answer is None:
            errors[row] = PonderError("the stage gave no answer (None).")
        elif isinstance(answer, Iterable) and not isinstance(answer, str):
            shares[row] = np.asarray(answer, dtype=np.float64)
        elif name in classes:
            shares[row] = 0.0
            shares[row, classes.index(name)] = 1.0
        else:
            errors[row] = PonderError(f"the stage answered {name[:80]!r}, which is no class.")
    return _Shares(shares, errors)


def _has_names(answers: StageOutput) -> bool:
    """Return whether an answer is a name or None, and not the probabilities of the classes."""
    if isinstance(answers, np.ndarray) and answers.dtype.kind in "fiub":
        return answers.ndim == 1 and answers.dtype.kind != "f"  # numbers of classes are their names
    return any(row is None or isinstance(row, str | int | np.integer) for row in answers)
