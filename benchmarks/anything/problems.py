"""The problems: a fitted model, and rows that it has not seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.tree import DecisionTreeClassifier
from transformers import AutoModel

from benchmarks import backbones
from benchmarks.examples import load_tokenizer
from benchmarks.text.tasks import BANKING77
from ponder import Ensemble, policies

__all__ = ["PROBLEMS", "Problem"]

_MEMBERS = 300
_TAUGHT = 2000
_ROWS = 8000
_NEIGHBOURS = 100
_PASSES = 40
_PASS_BATCH = 64
_TIMED = 200


@dataclass(frozen=True)
class Problem:
    """Something that answers early, and rows like those to come.

    Args:
        ensemble: The members, in blocks.
        rows: Rows on which it was not taught.
        labels: Their right answers.
        certifying: How many of them certify.
        by_member: The same members in blocks of one; None if they are ordered, or give numbers.
        whole: The model's own answer of all members; None if no time is saved by asking fewer.
        timed: The ensemble and the rows that are timed; by default the ensemble on fresh rows.
        tolerance: Of numbers: the distance below which two are one answer.
    """

    ensemble: Ensemble
    rows: Any
    labels: Any
    certifying: int
    by_member: Ensemble | None = None
    whole: Callable[[Any], Any] | None = None
    timed: tuple[Ensemble, Any] | None = None
    tolerance: float | None = None


def _taught(model: Any, rows: Any, labels: Any, taught: int, certifying: int) -> Problem:
    """Teach a model of scikit-learn the first rows, in a random order."""
    order = np.random.default_rng(0).permutation(len(rows))
    rows, labels = rows[order], labels[order]
    model.fit(rows[:taught], labels[:taught])
    ensemble = Ensemble(model, block=10)
    return Problem(ensemble, rows[taught:], labels[taught:], certifying, whole=model.predict)


def _taught_votes(model: Any, rows: Any, labels: Any, taught: int, certifying: int) -> Problem:
    """The same of a model whose members vote, in any order."""
    made = _taught(model, rows, labels, taught, certifying)
    return replace(made, by_member=Ensemble(model, block=1))


def digits() -> Problem:
    """Random forest on the digits that scikit-learn carries."""
    rows, labels = datasets.load_digits(return_X_y=True)
    model = RandomForestClassifier(_MEMBERS, random_state=0)
    return _taught_votes(model, rows, labels, 600, 600)


def breast_cancer() -> Problem:
    """Extremely randomised trees on the diagnoses that scikit-learn carries."""
    rows, labels = datasets.load_breast_cancer(return_X_y=True)
    model = ExtraTreesClassifier(_MEMBERS, random_state=0)
    return _taught_votes(model, rows, labels, 200, 300)


def five_classes() -> Problem:
    """Random forest on five classes of which one label in ten is noise."""
    rows, labels = datasets.make_classification(
        _ROWS, 20, n_informative=10, n_classes=5, flip_y=0.1, random_state=0
    )
    model = RandomForestClassifier(_MEMBERS, random_state=0)
    return _taught_votes(model, rows, labels, _TAUGHT, _TAUGHT)


def two_classes() -> Problem:
    """Random forest on two classes without noise."""
    rows, labels = datasets.make_classification(
        _ROWS, 20, n_informative=10, class_sep=1.5, flip_y=0.0, random_state=0
    )
    model = RandomForestClassifier(_MEMBERS, random_state=0)
    return _taught_votes(model, rows, labels, _TAUGHT, _TAUGHT)


def circles() -> Problem:
    """Bagged trees on two noisy circles."""
    rows, labels = datasets.make_circles(_ROWS, noise=0.1, factor=0.5, random_state=0)
    model = BaggingClassifier(DecisionTreeClassifier(), _MEMBERS, random_state=0)
    return _taught_votes(model, rows, labels, _TAUGHT, _TAUGHT)


def hastie() -> Problem:
    """Gradient boosting on a sum of ten squares."""
    rows, labels = datasets.make_hastie_10_2(_ROWS, random_state=0)
    model = GradientBoostingClassifier(n_estimators=_MEMBERS, random_state=0)
    return _taught(model, rows, labels, _TAUGHT, _TAUGHT)


def friedman() -> Problem:
    """Random forest of numbers; a tenth of their standard deviation is tolerated."""
    rows, numbers = datasets.make_friedman1(_ROWS, noise=1.0, random_state=0)
    model = RandomForestRegressor(_MEMBERS, random_state=0)
    made = _taught(model, rows, numbers, _TAUGHT, _TAUGHT)
    return replace(made, tolerance=float(numbers.std() / 10))


def shells() -> Problem:
    """Votes of the nearest neighbours, in a random order, on three nested shells."""
    rows, labels = datasets.make_gaussian_quantiles(
        n_samples=_ROWS, n_features=4, n_classes=3, random_state=0
    )
    nearest = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(rows[:_TAUGHT])
    votes = labels[nearest.kneighbors(rows[_TAUGHT:], return_distance=False)]
    votes = np.random.default_rng(0).permuted(votes, axis=1)
    return _recorded(votes, 3, 5, labels[_TAUGHT:], _TAUGHT)


def _recorded(
    votes: NDArray[np.intp], classes: int, block: int, labels: Any, certifying: int
) -> Problem:
    """Return a problem whose rows are numbers, and whose members have answered already."""

    def sample(rows: Any, start: int, stop: int) -> Any:
        return votes[rows, start:stop]

    def ensemble(block: int) -> Ensemble:
        members = votes.shape[1]
        return Ensemble(sample, block=block, members=members, classes=np.arange(classes))

    rows = np.arange(len(votes))
    return Problem(ensemble(block), rows, labels, certifying, by_member=ensemble(1))


class DropoutPasses:
    """Passes of MiniLM with dropout, read by a logistic regression: members with a seed each."""

    def __init__(self, texts: list[str], labels: Any) -> None:
        self._tokenizer: Any = load_tokenizer("minilm")
        self._encoder: Any = AutoModel.from_pretrained(backbones.resolve("minilm"))
        self._model = LogisticRegression(C=20, max_iter=100)
        self._model.fit(self._embedded(texts, None), labels)

    def answers(self, texts: list[str], start: int, stop: int) -> Any:
        """Return the class of each text in each pass, `(texts, passes)`."""
        passes = [self._model.predict(self._embedded(texts, seed)) for seed in range(start, stop)]
        return np.stack(passes, axis=1)

    @torch.no_grad()
    def _embedded(self, texts: list[str], seed: int | None) -> Any:
        """Return mean hidden states, `(texts, width)`; without dropout if there is no seed."""
        self._encoder.train(seed is not None)
        if seed is not None:
            torch.manual_seed(seed)
        order = np.argsort([len(text) for text in texts])
        means = np.zeros((len(texts), self._encoder.config.hidden_size), dtype=np.float32)
        for start in range(0, len(texts), _PASS_BATCH):
            places = order[start : start + _PASS_BATCH]
            encoded = self._tokenizer(
                [texts[place] for place in places], padding=True, return_tensors="pt"
            )
            hidden = self._encoder(**encoded).last_hidden_state
            mask = encoded["attention_mask"][..., None]
            means[places] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        return means


def banking77() -> Problem:
    """Passes of MiniLM with dropout on the intents of Banking77."""
    data = BANKING77.load(Path(os.environ["TEXT_DIR"]))
    labels = np.asarray(data["train"]["label"])
    passes = DropoutPasses(list(data["train"]["sentence1"]), labels)
    texts = list(data["test"]["sentence1"])
    classes = BANKING77.classes
    votes = passes.answers(texts, 0, _PASSES)
    made = _recorded(votes, classes, 2, np.asarray(data["test"]["label"]), 1500)
    asked = Ensemble(passes.answers, block=2, members=_PASSES, classes=np.arange(classes))

    def whole(texts: Any) -> Any:
        return asked.predict(texts, policy=policies.LastStep()).labels

    # Passes take seconds: some of the fresh texts are enough.
    return replace(made, whole=whole, timed=(asked, np.asarray(texts[-_TIMED:])))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": digits,
    "breast cancer": breast_cancer,
    "two classes": two_classes,
    "five classes": five_classes,
    "circles": circles,
    "shells": shells,
    "hastie": hastie,
    "friedman": friedman,
    "Banking77": banking77,
}
"""The problems by name; the last one needs TEXT_DIR."""
