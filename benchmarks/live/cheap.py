"""The cheap models of the streams. Their rows are numbers of texts, so that embeddings are computed once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sklearn.linear_model import LogisticRegression

import ponder
from benchmarks.live.streams import Corpus

__all__ = ["CHEAP", "FittedCheap", "FittedLinear", "FittedStudent", "Teach"]


class FittedCheap(Protocol):
    """A cheap model that was taught some texts of a corpus."""

    classes: tuple[str, ...]

    def predict_proba(self, rows: Sequence[int]) -> Any:
        """Return probabilities, `(rows, classes)`."""


Teach = Callable[[Corpus, Sequence[int], Sequence[str]], FittedCheap]
"""A function from a corpus, some of its texts and their labels to a cheap model."""


class FittedLinear:
    """A logistic regression on embeddings."""

    def __init__(self, corpus: Corpus, rows: Sequence[int], names: Sequence[str]) -> None:
        self._embeddings = corpus.embeddings
        model = LogisticRegression(C=20, max_iter=60, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many classes, and of few steps
            self._model = model.fit(self._embeddings[list(rows)], list(names))
        self.classes = tuple(self._model.classes_)

    def predict_proba(self, rows: Sequence[int]) -> Any:
        """Return probabilities, `(rows, classes)`."""
        return self._model.predict_proba(self._embeddings[list(rows)])


class FittedStudent:
    """A `Student`."""

    def __init__(self, corpus: Corpus, rows: Sequence[int], names: Sequence[str]) -> None:
        self._texts = corpus.texts
        self._student = ponder.cascade.Student.fit([self._texts[row] for row in rows], names)
        self.classes = self._student.classes

    def predict_proba(self, rows: Sequence[int]) -> Any:
        """Return probabilities, `(rows, classes)`."""
        return self._student.predict_proba([self._texts[row] for row in rows])


CHEAP: Mapping[str, tuple[str, Teach]] = {
    "linear": ("logistic regression on MiniLM embeddings", FittedLinear),
    "student": ("Student", FittedStudent),
}
"""What each cheap model is, and how it is taught."""
