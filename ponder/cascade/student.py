"""`Student`: a linear model of texts that learns the answers of a large model, without labels.

Its features are the TF-IDF of words, of pairs of words and of the characters inside words
(`_Grams`), and optionally the mean of the large model's input embeddings (`Embeddings`). A logistic
regression reads them. scikit-learn fits it; NumPy alone runs it.
"""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import Floats, Ints, softmax
from ponder._utils.checks import library
from ponder._utils.files import reading
from ponder._utils.plain import from_plain
from ponder._utils.rows import split
from ponder._utils.seals import digest_of_json, digest_of_tensors, read_sealed, write_sealed
from ponder.errors import ArgumentError

__all__ = ["Embeddings", "Student"]

Strings: TypeAlias = NDArray[np.str_]
"""Names, `(rows,)`."""
_WORD = re.compile(r"\w\w+")
_FILE = "student.safetensors"
_FORMAT = "ponder-student-2"
_SCALE = 3.0
"""Factor of the embeddings, whose features are small beside those of the grams."""
_GRAMS = 200_000
"""The number of grams of the vocabulary, at most."""
_STRENGTH = 20.0
"""Inverse strength of the regularisation."""
_CACHE = 2**25
"""Bytes of the cache of grams inside words: some 100,000 words."""


class _Encoding(Protocol):
    """A text as tokens."""

    ids: list[int]


class _Tokenizer(Protocol):
    """A tokenizer of the package `tokenizers`."""

    def no_padding(self) -> None:
        """Leave texts at their own lengths."""

    def encode_batch(self, texts: list[str], *, add_special_tokens: bool) -> Sequence[_Encoding]:
        """Tokenise texts."""


class _Regression(Protocol):
    """A logistic regression of scikit-learn; its weights have one row if there are two classes."""

    classes_: Strings
    coef_: Floats
    intercept_: Floats
    warm_start: bool

    def fit(self, features: _Sparse, names: Strings) -> object:
        """Fit it to the names of classes."""


class _Sparse(Protocol):
    """A sparse matrix of SciPy, `(texts, features)`."""

    def __getitem__(self, rows: Ints) -> _Sparse:
        """Return some rows."""

    def __matmul__(self, weights: Floats) -> Floats:
        """Return the product with a dense matrix."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Input embeddings of a large model.

    Args:
        tokenizer: Content of its `tokenizer.json`.
        matrix: The embedding of each token, `(tokens, width)`.
    """

    tokenizer: str
    matrix: Floats

    @classmethod
    def of(cls, model: object) -> Self | None:
        """Return the embeddings of a Transformers model with a fast tokenizer, else None."""
        tokenizer = getattr(model, "tokenizer", None)
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is None or not hasattr(model, "encoder"):
            return None
        weights = model.encoder.get_input_embeddings().weight.detach().float().numpy()
        return cls(fast.to_str(), np.ascontiguousarray(weights))

    @cached_property
    def _encoder(self) -> _Tokenizer:
        """The tokenizer, without padding."""
        tokenizers = library("tokenizers", "a student with embeddings", "cascade")
        tokenizer: _Tokenizer = tokenizers.Tokenizer.from_str(self.tokenizer)
        tokenizer.no_padding()
        return tokenizer

    def means(self, texts: Sequence[str]) -> Floats:
        """Return the mean embedding of each text's tokens, `(texts, width)`."""
        encoded = self._encoder.encode_batch(list(texts), add_special_tokens=False)
        means = np.zeros((len(texts), self.matrix.shape[1]), dtype=np.float32)
        for row, encoding in enumerate(encoded):
            if encoding.ids:
                means[row] = self.matrix[encoding.ids].mean(axis=0)
        return means


@dataclass(frozen=True, eq=False, repr=False)
class Student:
    """A linear text classifier.

    Args:
        classes: Names of the classes.
        vocabulary: The place of each gram among the features.
        idf: Inverse document frequency of each gram, `(grams,)`.
        weights: `(grams, classes)`.
        bias: `(classes,)`.
        temperature: The divisor of the logits, which calibrates probabilities on held-out texts.
        tokens: The contribution of each token of the large model to the logits, its embedding times
            the weights; None without embeddings.

    Example:
        >>> texts = [f"{word} {n}" for n in range(40) for word in ("my card", "a loan")]
        >>> student = ponder.cascade.Student.fit(texts, ["card", "loan"] * 40)
        >>> student.classes, student.predict_proba(["where is my card", "zzz"]).round(1).tolist()
        (('card', 'loan'), [[1.0, 0.0], [0.5, 0.5]])
    """

    classes: tuple[str, ...]
    vocabulary: dict[str, int]
    idf: Floats
    weights: Floats
    bias: Floats
    temperature: float = 1.0
    tokens: Embeddings | None = None

    def __repr__(self) -> str:
        more = ""
        if self.tokens is not None:
            more = ", with embeddings"
        return f"Student({len(self.classes)} classes, {len(self.vocabulary)} grams{more})"

    @property
    def megabytes(self) -> float:
        """The size of its arrays."""
        size = self.weights.nbytes + self.idf.nbytes
        if self.tokens is not None:
            size += self.tokens.matrix.nbytes
        return size / 1e6

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        answers: Sequence[object],
        *,
        embeddings: Embeddings | None = None,
        seed: int = 0,
    ) -> Self:
        """Fit a student to the answers of a large model.

        Args:
            texts: Texts without labels.
            answers: The large model's answer to each, a class.
            embeddings: Input embeddings of the large model.
            seed: Seed of the fifth of the texts on which probabilities are calibrated.

        Raises:
            ArgumentError: An answer is missing or is not one class, or all are the same.
        """
        texts = list(texts)
        names = _names_of(list(answers))
        grams = _Grams.of(texts)
        fitted = _fit(_matrix(grams, texts, embeddings), names, seed)
        count = len(grams.vocabulary)
        tokens = None
        if embeddings is not None:
            # The mean times the weights is the mean of the products, which have fewer columns.
            product = _SCALE * embeddings.matrix @ fitted.weights[count:]
            tokens = Embeddings(embeddings.tokenizer, product.astype(np.float32))
        return cls(
            classes=fitted.classes,
            vocabulary=grams.vocabulary,
            idf=grams.idf,
            weights=fitted.weights[:count].astype(np.float32),
            bias=fitted.bias.astype(np.float32),
            temperature=fitted.temperature,
            tokens=tokens,
        )

    def predict_proba(self, texts: Sequence[str]) -> Floats:
        """Return the probabilities of the classes, `(texts, classes)`.

        They are equal for a text without a known gram.
        """
        logits = np.zeros((len(texts), len(self.classes)))
        means: Floats = np.zeros_like(logits)
        if self.tokens is not None:
            means = self.tokens.means(texts)
        for row, text in enumerate(texts):
            features = self._grams.features(text)
            if len(features.places):
                products = features.values @ self.weights[features.places]
                logits[row] = products + self.bias + means[row]
        return np.asarray(softmax(logits / self.temperature))

    def weights_digest(self) -> str:
        """Return the SHA-256 of the arrays and settings that determine its answers."""
        parts = self._parts()
        return digest_of_json([parts.settings, digest_of_tensors(parts.arrays.values())])

    def save(self, folder: str | Path) -> None:
        """Write the student into a folder, as one file that is replaced in one act."""
        parts = self._parts()
        write_sealed(Path(folder) / _FILE, _FORMAT, parts.settings, parts.arrays)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a student that `save` wrote."""
        path = Path(folder) / _FILE
        with reading(path, "student"):
            saved = read_sealed(path, _FORMAT, "student", "np")
            settings = from_plain(_Settings, saved.settings)
            arrays = saved.tensors
            tokens: Embeddings | None = None
            if "tokens" in arrays:
                tokens = Embeddings(settings.tokenizer, arrays.pop("tokens"))
            return cls(
                settings.classes,
                {gram: number for number, gram in enumerate(settings.vocabulary)},
                **arrays,
                temperature=settings.temperature,
                tokens=tokens,
            )

    def _parts(self) -> _Parts:
        """Return the arrays and the settings that determine the answers, and so the digest."""
        arrays = {"idf": self.idf, "weights": self.weights, "bias": self.bias}
        settings: dict[str, Any] = {"classes": self.classes, "temperature": self.temperature}
        if self.tokens is not None:
            arrays["tokens"] = self.tokens.matrix
            settings["tokenizer"] = self.tokens.tokenizer
        settings["vocabulary"] = list(self.vocabulary)
        return _Parts(arrays, settings)

    @cached_property
    def _grams(self) -> _Grams:
        """The features of texts, by the vocabulary."""
        return _Grams(self.vocabulary, self.idf)


@dataclass(frozen=True, eq=False)
class _Parts:
    """A student as it is written: arrays by name, and settings in plain JSON."""

    arrays: dict[str, Floats]
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Settings:
    """The settings of `student.safetensors`."""

    classes: tuple[str, ...]
    temperature: float
    vocabulary: tuple[str, ...]
    tokenizer: str = ""  # the content of a `tokenizer.json`, if there are embeddings


@dataclass(frozen=True, eq=False)
class _Features:
    """The features of a text that are not zero: their places, `(features,)`, and their values."""

    places: Ints
    values: Floats


class _Grams:
    """The features of texts: TF-IDF of the grams of a vocabulary.

    Args:
        vocabulary: The place of each gram among the features.
        idf: Inverse document frequency of each gram, `(grams,)`.
    """

    def __init__(self, vocabulary: dict[str, int], idf: Floats) -> None:
        self.vocabulary = vocabulary
        self.idf = idf
        self._of_words: dict[str, tuple[int, ...]] = {}
        self._bytes = 0

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Return the most frequent grams of some texts; grams inside words must occur in two."""
        frequency = Counter[str]()  # the number of texts with each gram
        for text in texts:
            frequency.update({*_words(text), *_characters(text)})
        known = [
            gram
            for gram, count in frequency.most_common(_GRAMS)
            if count > 1 or not gram.startswith("#")
        ]
        counts = np.array([frequency[gram] for gram in known])
        idf = np.log((1 + len(texts)) / (1 + counts)) + 1
        return cls({gram: place for place, gram in enumerate(known)}, idf.astype(np.float32))

    def features(self, text: str) -> _Features:
        """Return the TF-IDF of a text's known grams, normalised for words and for characters."""
        words = [self.vocabulary[gram] for gram in _words(text) if gram in self.vocabulary]
        characters: list[int] = []
        for word in text.lower().split():
            characters += self._inside(word)
        of_words = self._tf_idf(words)
        of_characters = self._tf_idf(characters)
        return _Features(
            np.concatenate([of_words.places, of_characters.places]),
            np.concatenate([of_words.values, of_characters.values]),
        )

    def _tf_idf(self, places: Sequence[int]) -> _Features:
        """Return the TF-IDF of some places with repetition: (1 + log count) · idf, of length 1."""
        counts = Counter(places)
        unique = np.fromiter(counts, np.int64, len(counts))
        frequency = np.fromiter(counts.values(), np.float32, len(counts))
        values = (1.0 + np.log(frequency)) * self.idf[unique]
        length = math.sqrt(float(values @ values))
        return _Features(unique, values / max(length, 1e-12))

    def _inside(self, word: str) -> tuple[int, ...]:
        """Return the places of the known grams inside a word, from a cache, since words repeat.

        The cache is bounded by bytes, because a word can be as long as a text. A full cache is
        emptied.
        """
        places = self._of_words.get(word)
        if places is None:
            places = tuple(
                self.vocabulary[gram] for gram in _characters(word) if gram in self.vocabulary
            )
            size = sys.getsizeof(word) + sys.getsizeof(places)
            if self._bytes + size > _CACHE:
                self._of_words = {}
                self._bytes = 0
            if size <= _CACHE:
                self._of_words[word] = places
                self._bytes += size
        return places


def _names_of(answers: Sequence[object]) -> Strings:
    """Return answers as names of classes, `(rows,)`; refuse any that is not one class."""
    for place, answer in enumerate(answers):
        is_missing = answer is None or (isinstance(answer, float) and math.isnan(answer))
        if is_missing or isinstance(answer, list | tuple | set | dict):
            remedy = "Teach a student for each of several labels, yes or no."
            if is_missing:
                remedy = "Leave out texts without an answer: they can teach nothing."
            raise ArgumentError(
                "answers",
                expected="one class for each text",
                got=f"{answer!r} at place {place}",
                remedy=remedy,
            )
    names = np.asarray([str(answer) for answer in answers])
    distinct = np.unique(names)
    if len(distinct) < 2:
        raise ArgumentError(
            "answers",
            expected="two classes or more",
            got=f"only {distinct.tolist()}",
            remedy="Give texts on which the large model's answers differ.",
        )
    return names


def _words(text: str) -> Iterable[str]:
    """Yield words and pairs of words."""
    words = _WORD.findall(text.lower())
    yield from words
    yield from (f"{one} {other}" for one, other in pairwise(words))


def _characters(text: str) -> Iterable[str]:
    """Yield "#" with two to five characters inside a word and its ends."""
    for word in text.lower().split():
        padded = f" {word} "
        for size in range(2, 6):
            for start in range(max(len(padded) - size, 0) + 1):
                yield "#" + padded[start : start + size]


def _matrix(grams: _Grams, texts: Sequence[str], embeddings: Embeddings | None) -> _Sparse:
    """Return the features of texts, `(texts, features)` and sparse; embeddings come last."""
    sparse = library("scipy.sparse", "teaching a student", "cascade")
    rows = [grams.features(text) for text in texts]
    ends = np.cumsum([0, *(len(row.places) for row in rows)])
    values = np.concatenate([row.values for row in rows])
    places = np.concatenate([row.places for row in rows])
    shape = (len(texts), len(grams.vocabulary))
    features: _Sparse = sparse.csr_matrix((values, places, ends), shape=shape)
    if embeddings is not None:
        means = sparse.csr_matrix(embeddings.means(texts) * _SCALE)
        features = sparse.hstack([features, means]).tocsr()
    return features


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A fitted regression; weights are `(features, classes)`, and the bias is `(classes,)`."""

    classes: tuple[str, ...]
    weights: Floats
    bias: Floats
    temperature: float


def _fit(features: _Sparse, names: Strings, seed: int) -> _Fitted:
    """Fit a regression on all texts; one that is fitted on four fifths gives the temperature."""
    linear = library("sklearn.linear_model", "teaching a student", "cascade")
    model: _Regression = linear.LogisticRegression(C=_STRENGTH, max_iter=300, tol=1e-3)
    fitting, held_out = split(np.arange(len(names)), (0.8, 0.2), seed=seed)
    temperature = 1.0
    with warnings.catch_warnings():
        # A stream begins with few texts of each class, and labels are never numbers here.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        if len(np.unique(names[fitting])) > 1:
            model.fit(features[fitting], names[fitting])
            temperature = _temperature(model, features[held_out], names[held_out])
            # From there the fit on all texts is near, if it has the same classes.
            model.warm_start = len(model.classes_) == len(np.unique(names))
        model.fit(features, names)
    classes = tuple(map(str, model.classes_))
    return _Fitted(classes, _weights(model), _bias(model), temperature)


def _weights(model: _Regression) -> Floats:
    """Return the weights of a regression, `(features, classes)`, also for two classes."""
    weights: Floats = model.coef_.T
    if len(model.classes_) > 2:
        return weights
    return np.hstack([-weights / 2, weights / 2])


def _bias(model: _Regression) -> Floats:
    """Return the bias of a fitted regression, `(classes,)`."""
    bias: Floats = model.intercept_
    if len(model.classes_) > 2:
        return bias
    return np.hstack([-bias / 2, bias / 2])


def _temperature(model: _Regression, features: _Sparse, names: Strings) -> float:
    """Return the temperature, from 0.05 to 5, with the greatest likelihood of held-out texts."""
    known = np.flatnonzero(np.isin(names, model.classes_))
    if not len(known):
        return 1.0
    logits = features[known] @ _weights(model) + _bias(model)
    right = np.searchsorted(model.classes_, names[known])

    def likelihood(temperature: float) -> float:
        """Return the mean log-likelihood of the right classes."""
        probabilities = softmax(logits / temperature)[np.arange(len(known)), right]
        return float(np.log(np.maximum(probabilities, 1e-300)).mean())

    return float(max(np.geomspace(0.05, 5.0, 80), key=likelihood))
