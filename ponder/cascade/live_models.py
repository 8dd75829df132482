"""The two models of `Live`: the reference, and the cheap one, which is fixed or learns.

A taught one is taught twice more at each teaching, each time without half of the latest rows that
came by chance: what these models say to those rows shows how doubts are to be read, which a model
cannot show on rows that it has learned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ponder.cascade.asking import Asking
from ponder.cascade.live_rule import Outcome
from ponder.cascade.live_store import Lesson
from ponder.cascade.stages import CascadeStage, stage_of
from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "Cheap",
    "FixedCheap",
    "Learner",
    "Prediction",
    "ask_of",
    "asking_of",
    "json_of",
    "plain_label",
    "predictions",
]

Teach = Callable[[Sequence[Any], Sequence[str]], Any]
"""A function from rows and names of labels to a cheap model."""

_LATEST = 1000
_FOLDS = 2


class Cheap(Protocol):
    """A fitted cheap model."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""

    def predict_proba(self, texts: Sequence[Any]) -> NDArray[Any]:
        """Return probabilities, `(rows, classes)`."""


@dataclass(frozen=True)
class Prediction:
    """The cheap model's answer to a row.

    Args:
        label: Name of the likeliest class; None if there is no answer.
        doubt: 1 − its probability.
    """

    label: str | None
    doubt: float


class FixedCheap:
    """A stage as a cheap model.

    Args:
        stage: Anything that can be a stage of a cascade.
        classes: Names of the classes, for a stage without names.
    """

    def __init__(self, stage: Any, classes: Sequence[str] | None) -> None:
        self._stage: CascadeStage = stage_of(stage)
        names = self._stage.classes or classes
        if not names:
            expected = "names of the classes of `cheap`"
            remedy = "Pass classes=[…]."
            raise ArgumentError("classes", expected=expected, got="none", remedy=remedy)
        self.classes = tuple(map(str, names))

    def predict_proba(self, texts: Sequence[Any]) -> NDArray[Any]:
        """Return probabilities, `(rows, classes)`; NaN for a row without an answer."""
        return np.asarray(np.exp(self._stage.answer(texts, self.classes).outputs))


class Learner:
    """The cheap model of a stream: a fixed one, or one that learns again and again.

    Args:
        fixed: The model that does not change; None for one that learns.
        teach: Teaches one; None if it does not learn.

    Attributes:
        model: The present model; None before there is one.
        taught: Rows that taught it.
        unknown: Answers of the reference since then that it cannot give.
    """

    def __init__(self, fixed: Cheap | None, teach: Teach | None) -> None:
        self.model = fixed
        self._teach = teach
        self.can_learn = fixed is None
        self.taught = self.unknown = 0

    def note(self, label: str) -> None:
        """Count an answer of the reference that the model cannot give."""
        if self.model is not None and label not in self.model.classes:
            self.unknown += 1

    def learn(self, lessons: Sequence[Lesson]) -> list[Outcome] | None:
        """Teach a model all lessons; return the outcomes of the latest without them, if any.

        Lessons that were picked for their doubt only teach: they are harder than others of the same
        doubt.
        """
        self.taught = len(lessons)
        self.unknown = 0
        if len({lesson.name for lesson in lessons}) < 2:
            return None
        latest = [place for place, lesson in enumerate(lessons) if not lesson.picked][-_LATEST:]
        outcomes = list[Outcome]()
        for fold in range(_FOLDS):
            places = set(latest[fold::_FOLDS])
            held_out = [lessons[place] for place in latest[fold::_FOLDS]]
            others = [lesson for place, lesson in enumerate(lessons) if place not in places]
            outcomes += self._outcomes_without(held_out, others)
        self.model = self._taught_by(lessons)
        return outcomes

    def _outcomes_without(
        self, held_out: Sequence[Lesson], others: Sequence[Lesson]
    ) -> list[Outcome]:
        """Return the outcomes of some lessons, as a model says that only the others taught."""
        if len({lesson.name for lesson in others}) < 2:
            return []
        model = self._taught_by(others)
        found = predictions(model, [lesson.row for lesson in held_out])
        return [
            Outcome(one.doubt, one.label != lesson.name, lesson.probability)
            for one, lesson in zip(found, held_out, strict=True)
        ]

    def _taught_by(self, lessons: Sequence[Lesson]) -> Cheap:
        assert self._teach is not None
        model: Cheap = self._teach(
            [lesson.row for lesson in lessons], [lesson.name for lesson in lessons]
        )
        return model


def predictions(model: Cheap, rows: Sequence[Any]) -> list[Prediction]:
    """Return a model's answers to rows; probabilities that are not numbers are no answers."""
    if not rows:
        return []
    shares = np.asarray(model.predict_proba(rows))
    best = shares.argmax(axis=1)
    doubts = 1.0 - shares[np.arange(len(rows)), best]
    names = model.classes
    answers = list[Prediction]()
    for place, doubt in zip(best.tolist(), doubts.tolist(), strict=True):
        if math.isfinite(doubt):
            answers.append(Prediction(str(names[place]), doubt))
        else:
            answers.append(Prediction(None, 1.0))
    return answers


def ask_of(reference: Any, classes: Sequence[str] | None) -> Callable[[list[Any]], Any]:
    """Return a reference as a function from rows to labels."""
    if _is_function(reference):

        def ask(rows: list[Any]) -> Any:
            found = reference(rows)
            if getattr(found, "ndim", 1) == 2:  # probabilities, as of a stage that is a function
                return [(classes or range(found.shape[1]))[n] for n in found.argmax(axis=1)]
            return found

        return ask
    stage = stage_of(reference)
    names = tuple(map(str, stage.classes or classes or ()))
    if not names:
        expected = "names of the classes of `reference`"
        remedy = "Pass classes=[…]."
        raise ArgumentError("classes", expected=expected, got="none", remedy=remedy)

    def answered(rows: list[Any]) -> list[str | None]:
        outputs = stage.answer(rows, names, stage.full_depth).outputs
        broken = np.asarray(np.isnan(outputs).any(axis=1))
        best = np.asarray(np.nan_to_num(outputs, nan=-np.inf).argmax(axis=1))
        pairs = zip(broken.tolist(), best.tolist(), strict=True)
        return [None if no else names[place] for no, place in pairs]

    return answered


def asking_of(reference: Any) -> Asking:
    """Return how a reference is called by default: a model in batches, a function row by row."""
    return Asking() if _is_function(reference) else Asking(batch_size=32)


def _is_function(reference: Any) -> bool:
    model = any(hasattr(reference, name) for name in ("predict_proba", "predict"))
    return callable(reference) and not model


def json_of(row: Any) -> str:
    """Return a row as JSON, to recognise its content."""
    try:
        return json.dumps(row)
    except TypeError as error:
        expected = "texts, pairs of texts, numbers, or other rows that JSON can hold"
        remedy = "Pass the number of each row, and let the models look the row up."
        got = type(row).__name__
        raise ArgumentTypeError("texts", expected=expected, got=got, remedy=remedy) from error


def plain_label(label: Any) -> Any:
    """Return a label as JSON holds it; numbers of NumPy become those of Python."""
    return label.item() if isinstance(label, np.generic) else label
