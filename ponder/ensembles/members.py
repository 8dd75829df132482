"""Members of an ensemble, asked in blocks: trees of a forest, stages of boosting, samples.

`members_of` chooses the reader of a model. A reader adds up what a block of members says about some
rows; `outputs` turns the sum over the first n members into outputs, whose most probable class is
the answer of n members. To read another kind of ensemble, add a class and a line of `_READERS`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import (
    BaggingClassifier,
    GradientBoostingClassifier,
    VotingClassifier,
)
from sklearn.ensemble._forest import ForestClassifier, ForestRegressor

from ponder.calibration.votes import log_shares
from ponder.errors import ArgumentError

__all__ = ["Members", "members_of"]

Floats: TypeAlias = NDArray[Any]
Rows: TypeAlias = Any
"""Inputs: an array `(rows, features)`, or any sequence that a function of one's own takes."""
_ROWS_OF_DIGEST = 64
"""Rows on which classifiers that are no trees are compared."""


class Members(ABC):
    """The members of one ensemble.

    Args:
        count: N, the number of members.
        classes: The classes, in the order of the outputs; empty for numbers.
    """

    in_any_order = True
    """Whether members are draws in no order, as votes are; stages of boosting are not."""

    def __init__(self, count: int, classes: Any) -> None:
        self.count = count
        self.classes = classes

    def prepared(self, rows: Rows) -> Rows:
        """Return inputs as `sums` takes them; called once, before the first block."""
        return np.asarray(rows)

    @abstractmethod
    def sums(self, rows: Rows, start: int, stop: int) -> Floats:
        """Return the sum of what members `start` to `stop` − 1 say, `(rows, classes)`."""

    def outputs(self, sums: Floats, taken: int) -> Floats:
        """Return outputs `(rows, classes)` of the sum over the first `taken` members."""
        return log_shares(sums / taken)

    def digest(self) -> str | None:
        """Return the SHA-256 of the members; None if they cannot be compared, as functions."""
        return None


class Forest(Members):
    """Trees of a random forest or of extremely randomised trees, which give probabilities."""

    def __init__(self, model: Any) -> None:
        super().__init__(len(model.estimators_), model.classes_)
        self._trees = model.estimators_
        self._leaves = [(each.tree_.apply, each.tree_.value[:, 0]) for each in self._trees]

    def prepared(self, rows: Rows) -> Floats:
        return np.ascontiguousarray(rows, dtype=np.float32)

    def sums(self, rows: Rows, start: int, stop: int) -> Floats:
        total = np.zeros((len(rows), len(self.classes)))
        for find_leaf, probabilities in self._leaves[start:stop]:
            total += probabilities.take(find_leaf(rows), axis=0, mode="clip")
        return total

    def digest(self) -> str:
        return _digest_of_trees(self._trees)


class RegressionForest(Members):
    """Trees of a regression forest; a row has the sum of the numbers and that of their squares."""

    def __init__(self, model: Any) -> None:
        super().__init__(len(model.estimators_), ())
        self._trees = model.estimators_

    def prepared(self, rows: Rows) -> Floats:
        return np.ascontiguousarray(rows, dtype=np.float32)

    def sums(self, rows: Rows, start: int, stop: int) -> Floats:
        total = np.zeros((len(rows), 2))
        for tree in self._trees[start:stop]:
            number = tree.tree_.predict(rows).reshape(len(rows))
            total[:, 0] += number
            total[:, 1] += number**2
        return total

    def outputs(self, sums: Floats, taken: int) -> Floats:
        """Return the mean of the first members, `(rows, 1)`."""
        means: Floats = sums[:, :1] / taken
        return means

    def digest(self) -> str:
        return _digest_of_trees(self._trees)


class Boosting(Members):
    """Stages of gradient boosting, in their order; outputs are logits, and later stages refine."""

    in_any_order = False

    def __init__(self, model: Any) -> None:
        super().__init__(len(model.estimators_), model.classes_)
        self._stages = model.estimators_
        self._rate = model.learning_rate
        row = np.zeros((1, model.n_features_in_), dtype=np.float32)
        first = next(iter(model.staged_decision_function(row)))
        # A constant, unless the model was fitted with an `init` of its own.
        self._start = first.reshape(1, -1) - self._scores(row, 0)
        if model.init_.__class__.__name__ != "DummyClassifier":
            raise _not_read(model, "Fit it without `init`.")

    def prepared(self, rows: Rows) -> Floats:
        return np.ascontiguousarray(rows, dtype=np.float32)

    def sums(self, rows: Rows, start: int, stop: int) -> Floats:
        total = np.zeros((len(rows), self._stages.shape[1]))
        for stage in range(start, stop):
            total += self._scores(rows, stage)
        return total

    def outputs(self, sums: Floats, taken: int) -> Floats:
        scores: Floats = sums + self._start
        if scores.shape[1] == 1:  # two classes have one score, the logit of the second
            return np.concatenate([np.zeros_like(scores), scores], axis=1)
        return scores

    def digest(self) -> str:
        return _digest_of_trees(self._stages.ravel().tolist())

    def _scores(self, rows: Floats, stage: int) -> Floats:
        columns = [tree.tree_.predict(rows)[:, 0] for tree in self._stages[stage]]
        scores: Floats = self._rate * np.stack(columns, axis=1)
        return scores


class Estimators(Members):
    """Classifiers that vote, of a `VotingClassifier` or a `BaggingClassifier`."""

    def __init__(self, model: Any) -> None:
        if getattr(model, "weights", None) is not None:
            raise _not_read(model, "Fit it without `weights`: one vote a member.")
        super().__init__(len(model.estimators_), model.classes_)
        self._estimators = model.estimators_
        self._num_features = model.n_features_in_
        self._features = getattr(model, "estimators_features_", [slice(None)] * self.count)
        has_probabilities = all(hasattr(each, "predict_proba") for each in self._estimators)
        self._soft = has_probabilities and getattr(model, "voting", "soft") == "soft"

    def sums(self, rows: Rows, start: int, stop: int) -> Floats:
        total = np.zeros((len(rows), len(self.classes)))
        for number in range(start, stop):
            estimator = self._estimators[number]
            seen = rows[:, self._features[number]]
            if self._soft:  # a member of a bag may have seen some of the classes only
                total[:, estimator.classes_.astype(int)] += estimator.predict_proba(seen)
            else:
                total[np.arange(len(rows)), estimator.predict(seen).astype(int)] += 1.0
        return total

    def digest(self) -> str:
        """Return the SHA-256 of trees, or of what other classifiers say of some fixed rows."""
        if all(hasattr(each, "tree_") for each in self._estimators):
            return _digest_of_trees(self._estimators)
        rows = np.random.default_rng(0).normal(size=(_ROWS_OF_DIGEST, self._num_features))
        digest = hashlib.sha256()
        for number in range(self.count):
            digest.update(self.sums(rows, number, number + 1).round(6).tobytes())
        return digest.hexdigest()


class Sampler(Members):
    """A function of one's own: answers of a sampled model, passes with dropout.

    Args:
        sample: Function from rows and the numbers of the first member and of the one behind the
            last to class numbers `(rows, members)`, or probabilities `(rows, members, classes)`.
        count: N, the number of members.
        classes: The classes.
    """

    def __init__(
        self, sample: Callable[[Rows, int, int], Floats], count: int, classes: Any
    ) -> None:
        super().__init__(count, classes)
        self._sample = sample

    def sums(self, rows: Rows, start: int, stop: int) -> Floats:
        if start == stop:  # nobody is asked: a function would have to stack nothing
            return np.zeros((len(rows), len(self.classes)))
        answers = np.asarray(self._sample(rows, start, stop))
        if answers.ndim == 2:
            answers = np.eye(len(self.classes))[answers]
        total: Floats = answers.sum(axis=1)
        return total


_READERS: dict[type, type[Any]] = {
    ForestClassifier: Forest,
    ForestRegressor: RegressionForest,
    GradientBoostingClassifier: Boosting,
    VotingClassifier: Estimators,
    BaggingClassifier: Estimators,
}


def members_of(model: Any, members: int | None = None, classes: Any = ()) -> Members:
    """Return the members of a fitted model, or of a function with so many members and classes."""
    for kind, reader in _READERS.items():
        if isinstance(model, kind):
            read: Members = reader(model)
            return read
    if not callable(model) or members is None or not len(classes):
        raise _not_read(model, "Pass a function with members=40, classes=[…], say.")
    return Sampler(model, members, np.asarray(classes))


def _digest_of_trees(trees: list[Any]) -> str:
    digest = hashlib.sha256()
    for each in trees:
        tree = each.tree_
        for values in (tree.children_left, tree.feature, tree.threshold, tree.value):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _not_read(model: object, remedy: str) -> ArgumentError:
    return ArgumentError(
        "model",
        expected="a fitted forest, gradient boosting, voting or bagging of scikit-learn, "
        "or a function (rows, start, stop) -> answers",
        got=repr(model),
        remedy=remedy,
    )
