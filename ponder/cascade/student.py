"""`Student`: a linear text classifier, taught by the answers of a large model.

Its features are TF-IDF of words and pairs of words, and of the characters inside words (`_Grams`),
and optionally the mean of the large model's input embeddings (`Embeddings`). scikit-learn fits the
logistic regression; NumPy alone runs it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import softmax
from ponder._utils.checks import library
from ponder._utils.files import read_json, read_tensors, write_json, write_tensors
from ponder._utils.rows import split
from ponder.errors import ArgumentError

__all__ = ["Embeddings", "Student"]

_WORD = re.compile(r"\w\w+")
_FORMAT = "ponder-student-1"
_SCALE = 3.0  # of embeddings, beside TF-IDF of length 1
_GRAMS = 200_000  # the most frequent ones are features
_STRENGTH = 20.0  # inverse strength of the regularisation, `C` of scikit-learn
_CACHE = 2**25  # bytes of the cached grams inside words: some 100,000 words

Floats: TypeAlias = NDArray[Any]


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
    def of(cls, model: Any) -> Self | None:
        """Return the embeddings of a Transformers model with a fast tokenizer; else None."""
        fast = getattr(getattr(model, "tokenizer", None), "backend_tokenizer", None)
        if fast is None or not hasattr(model, "encoder"):
            return None
        weights = model.encoder.get_input_embeddings().weight.detach().float().numpy()
        return cls(fast.to_str(), np.ascontiguousarray(weights))

    @cached_property
    def _encoder(self) -> Any:
        tokenizers = library("tokenizers", "a student with embeddings", "cascade")
        encoder = tokenizers.Tokenizer.from_str(self.tokenizer)
        encoder.no_padding()
        return encoder

    def means(self, texts: Sequence[str]) -> Floats:
        """Return the mean embedding of each text's tokens, `(texts, width)`."""
        encoded = self._encoder.encode_batch(list(texts), add_special_tokens=False)
        means = np.zeros((len(texts), self.matrix.shape[1]), dtype=np.float32)
        for row, each in enumerate(encoded):
            if each.ids:
                means[row] = self.matrix[each.ids].mean(0)
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
        temperature: Divisor of the logits, by which probabilities are calibrated on held-out texts.
        tokens: The logits that each token of the large model adds: its embedding times weights.
            None without embeddings.

    Example:
        >>> texts = ["my card 1", "a loan 1", "my card 2", "a loan 2"] * 20
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
        more = "" if self.tokens is None else ", with embeddings"
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
        answers: Sequence[Any],
        *,
        embeddings: Embeddings | None = None,
        seed: int = 0,
    ) -> Self:
        """Fit a student to the answers of a large model.

        Args:
            texts: Texts without labels.
            answers: The large model's answer to each text: one class.
            embeddings: Input embeddings of the large model.
            seed: Seed of the fifth of the texts on which probabilities are calibrated.

        Raises:
            ArgumentError: An answer is missing or is not one class, or all are the same.
        """
        linear = library("sklearn.linear_model", "teaching a student", "cascade")
        texts = list(texts)
        names = _names_of(answers)
        grams = _Grams.of_texts(texts)
        features = _sparse_features(texts, grams, embeddings)
        model = linear.LogisticRegression(C=_STRENGTH, max_iter=300, tol=1e-3)
        taught, held_out = split(np.arange(len(texts)), (0.8, 0.2), seed=seed)
        temperature = 1.0
        if len(np.unique(names[taught])) > 1:
            model.fit(features[taught], names[taught])
            temperature = _temperature(model, features[held_out], names[held_out])
            # The fit to all texts is near that to four fifths, so start there if classes agree.
            model.warm_start = len(model.classes_) == len(np.unique(names))
        regression = _Regression.of(model.fit(features, names))
        of_grams = regression.weights[: len(grams.vocabulary)]
        tokens = None
        if embeddings is not None:
            # The mean of embeddings times weights is the mean of the products, which are narrower.
            of_embeddings = regression.weights[len(grams.vocabulary) :]
            product = _SCALE * embeddings.matrix @ of_embeddings
            tokens = Embeddings(embeddings.tokenizer, product.astype(np.float32))
        return cls(
            classes=tuple(map(str, model.classes_)),
            vocabulary=grams.vocabulary,
            idf=grams.idf,
            weights=of_grams.astype(np.float32),
            bias=regression.bias.astype(np.float32),
            temperature=temperature,
            tokens=tokens,
        )

    def predict_proba(self, texts: Sequence[str]) -> Floats:
        """Return the probabilities of the classes, `(texts, classes)`.

        They are uniform for a text without a known gram.
        """
        logits = np.zeros((len(texts), len(self.classes)))
        of_tokens = logits
        if self.tokens is not None:
            of_tokens = self.tokens.means(texts)
        for row, text in enumerate(texts):
            features = self._grams.features(text)
            if len(features.places):
                of_grams = features.values @ self.weights[features.places]
                logits[row] = of_grams + self.bias + of_tokens[row]
        return np.asarray(softmax(logits / self.temperature))

    def weights_digest(self) -> str:
        """Return the SHA-256 of all that its answers depend on."""
        # The order of the settings decides on the digest.
        settings = self._settings()
        settings["vocabulary"] = list(self.vocabulary)
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the student: arrays as safetensors, vocabulary and classes as JSON."""
        settings = self._settings() | {"vocabulary": list(self.vocabulary)}
        write_tensors(Path(folder) / "student.safetensors", self._arrays(), {"format": _FORMAT})
        write_json(Path(folder) / "student.json", _FORMAT, settings)

    def _arrays(self) -> dict[str, Floats]:
        arrays = {"idf": self.idf, "weights": self.weights, "bias": self.bias}
        if self.tokens is not None:
            arrays["tokens"] = self.tokens.matrix
        return arrays

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"classes": self.classes, "temperature": self.temperature}
        if self.tokens is not None:
            settings["tokenizer"] = self.tokens.tokenizer
        return settings

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a student that `save` wrote."""
        settings = read_json(Path(folder) / "student.json", _FORMAT, "student")
        arrays, _ = read_tensors(Path(folder) / "student.safetensors")
        matrix = arrays.pop("tokens", None)
        tokens = None if matrix is None else Embeddings(settings["tokenizer"], matrix)
        return cls(
            classes=tuple(settings["classes"]),
            vocabulary={gram: place for place, gram in enumerate(settings["vocabulary"])},
            **arrays,
            temperature=settings["temperature"],
            tokens=tokens,
        )

    @cached_property
    def _grams(self) -> _Grams:
        return _Grams(self.vocabulary, self.idf)


@dataclass(frozen=True, eq=False)
class _Features:
    """The known grams of a text.

    Args:
        places: Their places among the features, `(grams,)`.
        values: Their TF-IDF, `(grams,)`; words and characters are scaled to length 1 each.
    """

    places: NDArray[np.int64]
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
    def of_texts(cls, texts: Sequence[str]) -> Self:
        """Choose the most frequent grams of texts; characters must occur in two texts."""
        frequency = Counter[str]()
        for text in texts:
            frequency.update({*_words(text), *_characters(text)})
        known = [
            gram
            for gram, seen in frequency.most_common(_GRAMS)
            if seen > 1 or not gram.startswith("#")
        ]
        counts = np.array([frequency[gram] for gram in known])
        idf = np.log((1 + len(texts)) / (1 + counts)) + 1
        vocabulary = {gram: place for place, gram in enumerate(known)}
        return cls(vocabulary, idf.astype(np.float32))

    def features(self, text: str) -> _Features:
        """Return the known grams of a text, with their TF-IDF."""
        words = Counter(self.vocabulary[gram] for gram in _words(text) if gram in self.vocabulary)
        characters = Counter[int]()
        for word in text.lower().split():
            characters.update(self._inside(word))
        parts = [self._scaled(words), self._scaled(characters)]
        return _Features(
            np.concatenate([part.places for part in parts]),
            np.concatenate([part.values for part in parts]),
        )

    def _scaled(self, counts: Counter[int]) -> _Features:
        """Return TF-IDF of length 1 of counts by place: (1 + log count) idf."""
        places = np.fromiter(counts, np.int64, len(counts))
        often = np.fromiter(counts.values(), np.float32, len(counts))
        values = (1.0 + np.log(often)) * self.idf[places]
        return _Features(places, values / max(math.sqrt(float(values @ values)), 1e-12))

    def _inside(self, word: str) -> tuple[int, ...]:
        """Return the places of the known grams inside a word, from a cache.

        The cache is bounded in bytes, since one word can be as long as a text. It is emptied when
        it is full.
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


def _sparse_features(texts: list[str], grams: _Grams, embeddings: Embeddings | None) -> Any:
    """Return the features of texts as a sparse matrix of SciPy, `(texts, grams + width)`."""
    sparse = library("scipy.sparse", "teaching a student", "cascade")
    rows = [grams.features(text) for text in texts]
    ends = np.cumsum([0, *(len(row.places) for row in rows)])
    places = np.concatenate([row.places for row in rows])
    values = np.concatenate([row.values for row in rows])
    features = sparse.csr_matrix((values, places, ends), shape=(len(texts), len(grams.vocabulary)))
    if embeddings is None:
        return features
    means = sparse.csr_matrix(embeddings.means(texts) * _SCALE)
    return sparse.hstack([features, means]).tocsr()


def _names_of(answers: Sequence[Any]) -> NDArray[Any]:
    """Return answers as names, `(rows,)`; refuse missing ones, lists, and a single class."""
    rows = list(answers)
    for place, answer in enumerate(rows):
        missing = answer is None or (isinstance(answer, float) and math.isnan(answer))
        if missing or isinstance(answer, list | tuple | set | dict):
            remedy = "Leave out texts without an answer: they can teach nothing."
            if not missing:
                remedy = "Teach a student for each of several labels, yes or no."
            raise ArgumentError(
                "answers",
                expected="one class for each text",
                got=f"{answer!r} at place {place}",
                remedy=remedy,
            )
    names = np.asarray([str(answer) for answer in rows])
    if len(np.unique(names)) < 2:
        raise ArgumentError(
            "answers",
            expected="two classes or more",
            got=f"only {np.unique(names).tolist()}",
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


@dataclass(frozen=True, eq=False)
class _Regression:
    """A fitted logistic regression.

    Args:
        weights: `(features, classes)`.
        bias: `(classes,)`.
    """

    weights: Floats
    bias: Floats

    @classmethod
    def of(cls, model: Any) -> Self:
        """Read a `LogisticRegression` of scikit-learn, which has one column for two classes."""
        weights = model.coef_.T
        bias = model.intercept_
        if len(model.classes_) == 2:
            weights = np.hstack([-weights / 2, weights / 2])
            bias = np.hstack([-bias / 2, bias / 2])
        return cls(weights, bias)


def _temperature(model: Any, features: Any, names: NDArray[Any]) -> float:
    """Return the temperature, from 0.05 to 5, that maximises the likelihood of held-out texts."""
    known = np.flatnonzero(np.isin(names, model.classes_))
    if not len(known):
        return 1.0
    regression = _Regression.of(model)
    logits = features[known] @ regression.weights + regression.bias
    right = np.searchsorted(model.classes_, names[known])

    def likelihood(temperature: float) -> float:
        probabilities = softmax(logits / temperature)[np.arange(len(known)), right]
        return float(np.log(np.maximum(probabilities, 1e-300)).mean())

    return float(max(np.geomspace(0.05, 5.0, 80), key=likelihood))
