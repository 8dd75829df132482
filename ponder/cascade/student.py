"""`Student`: a linear model of words and characters, taught by the answers of a large one on texts without labels.

TF-IDF of words and pairs of words, and of the characters inside words (`_Grams`), and if given the
mean of the large model's own input embeddings (`Embeddings`), into a logistic regression.
scikit-learn fits it; NumPy alone runs it.
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
from typing import Any, Self

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
_SCALE = 3.0
_GRAMS = 200_000
_STRENGTH = 20.0  # the most frequent grams; inverse strength of the regularisation
_CACHE = 2**25  # bytes of the known grams inside words that are kept: some 100,000 words


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Input embeddings of a large model.

    Args:
        tokenizer: Content of its `tokenizer.json`.
        matrix: The embedding of each token, `(tokens, width)`.
    """

    tokenizer: str
    matrix: NDArray[Any]

    @classmethod
    def of(cls, model: Any) -> Self | None:
        """Return those of a model of Transformers with a fast tokenizer; None of any other."""
        fast = getattr(getattr(model, "tokenizer", None), "backend_tokenizer", None)
        if fast is None or not hasattr(model, "encoder"):
            return None
        weights = model.encoder.get_input_embeddings().weight.detach().float().numpy()
        return cls(fast.to_str(), np.ascontiguousarray(weights))

    @cached_property
    def _encoder(self) -> Any:
        tokenizers = library("tokenizers", "a student with embeddings", "cascade")
        made = tokenizers.Tokenizer.from_str(self.tokenizer)
        made.no_padding()
        return made

    def means(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return the mean embedding of each text's tokens, `(texts, width)`."""
        encoded = self._encoder.encode_batch(list(texts), add_special_tokens=False)
        made = np.zeros((len(texts), self.matrix.shape[1]), dtype=np.float32)
        for row, each in enumerate(encoded):
            if each.ids:
                made[row] = self.matrix[each.ids].mean(0)
        return made


@dataclass(frozen=True, eq=False, repr=False)
class Student:
    """A linear text classifier.

    Args:
        classes: Names of the classes.
        vocabulary: The place of each gram among the features.
        idf: Inverse document frequency of each gram, `(grams,)`.
        weights: `(grams, classes)`.
        bias: `(classes,)`.
        temperature: By which logits are divided, so that probabilities are calibrated on held-out
            texts.
        tokens: What each token of the large model adds to the logits, its embedding times weights;
            None without it.

    Example:
        >>> texts = [f"{word} {n}" for n in range(40) for word in ("my card", "a loan")]
        >>> student = ponder.cascade.Student.fit(texts, ["card", "loan"] * 40)
        >>> student.classes, student.predict_proba(["where is my card", "zzz"]).round(1).tolist()
        (('card', 'loan'), [[1.0, 0.0], [0.5, 0.5]])
    """

    classes: tuple[str, ...]
    vocabulary: dict[str, int]
    idf: NDArray[Any]
    weights: NDArray[Any]
    bias: NDArray[Any]
    temperature: float = 1.0
    tokens: Embeddings | None = None

    def __repr__(self) -> str:
        more = "" if self.tokens is None else ", with embeddings"
        return f"Student({len(self.classes)} classes, {len(self.vocabulary)} grams{more})"

    @property
    def megabytes(self) -> float:
        """The size of its arrays."""
        arrays = [self.weights, self.idf, *([] if self.tokens is None else [self.tokens.matrix])]
        return sum(array.nbytes for array in arrays) / 1e6

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        answers: Sequence[Any],
        *,
        embeddings: Embeddings | None = None,
        seed: int = 0,
    ) -> Self:
        """Teach a student the answers of a large model.

        Args:
            texts: Texts without labels.
            answers: The large model's answer to each, a class.
            embeddings: Input embeddings of the large model.
            seed: Seed of the fifth of the texts on which probabilities are calibrated.

        Raises:
            ArgumentError: An answer is missing or no single class, or all are the same.
        """
        linear = library("sklearn.linear_model", "teaching a student", "cascade")
        sparse = library("scipy.sparse", "teaching a student", "cascade")
        texts = list(texts)
        names = _names_of(answers)
        frequency = Counter(gram for text in texts for gram in {*_words(text), *_characters(text)})
        known = [
            gram
            for gram, seen in frequency.most_common(_GRAMS)
            if seen > 1 or not gram.startswith("#")
        ]
        idf = np.log((1 + len(texts)) / (1 + np.array([frequency[gram] for gram in known]))) + 1
        vocabulary = {gram: place for place, gram in enumerate(known)}
        grams = _Grams(vocabulary, idf.astype(np.float32))
        rows = [grams.features(text) for text in texts]
        ends = np.cumsum([0, *(len(places) for places, _ in rows)])
        places, values = (np.concatenate([row[part] for row in rows]) for part in (0, 1))
        features = sparse.csr_matrix((values, places, ends), shape=(len(texts), len(known)))
        if embeddings is not None:
            features = sparse.hstack(
                [features, sparse.csr_matrix(embeddings.means(texts) * _SCALE)]
            ).tocsr()
        model = linear.LogisticRegression(C=_STRENGTH, max_iter=300, tol=1e-3)
        taught, held_out = split(np.arange(len(texts)), (0.8, 0.2), seed=seed)
        temperature = 1.0
        if len(np.unique(names[taught])) > 1:
            model.fit(features[taught], names[taught])
            temperature = _temperature(model, features[held_out], names[held_out])
            model.warm_start = len(model.classes_) == len(
                np.unique(names)
            )  # from there the whole is not far
        weights, bias = _weights(model.fit(features, names))
        tokens = None
        if (
            embeddings is not None
        ):  # the mean times weights is the mean of the products, which are narrower
            product = _SCALE * embeddings.matrix @ weights[len(known) :]
            tokens = Embeddings(embeddings.tokenizer, product.astype(np.float32))
        arrays = (weights[: len(known)].astype(np.float32), bias.astype(np.float32))
        return cls(
            tuple(map(str, model.classes_)),
            grams.vocabulary,
            grams.idf,
            *arrays,
            temperature,
            tokens,
        )

    def predict_proba(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return the probabilities of the classes, `(texts, classes)`; all alike for a text without a known word."""
        logits = np.zeros((len(texts), len(self.classes)))
        means = logits if self.tokens is None else self.tokens.means(texts)
        for row, text in enumerate(texts):
            places, values = self._grams.features(text)
            if len(places):
                logits[row] = values @ self.weights[places] + self.bias + means[row]
        return np.asarray(softmax(logits / self.temperature))

    def weights_digest(self) -> str:
        """Return the SHA-256 of all that its answers come from."""
        arrays = {"idf": self.idf, "weights": self.weights, "bias": self.bias}
        settings: dict[str, Any] = {"classes": self.classes, "temperature": self.temperature}
        if self.tokens is not None:
            arrays["tokens"] = self.tokens.matrix
            settings["tokenizer"] = self.tokens.tokenizer
        settings["vocabulary"] = list(self.vocabulary)
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, array in arrays.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the student: arrays as safetensors, vocabulary and classes as JSON."""
        arrays = {"idf": self.idf, "weights": self.weights, "bias": self.bias}
        said: dict[str, Any] = {"classes": self.classes, "temperature": self.temperature}
        if self.tokens is not None:
            arrays["tokens"], said["tokenizer"] = self.tokens.matrix, self.tokens.tokenizer
        write_tensors(Path(folder) / "student.safetensors", arrays, {"format": _FORMAT})
        write_json(
            Path(folder) / "student.json", _FORMAT, said | {"vocabulary": list(self.vocabulary)}
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote."""
        said = read_json(Path(folder) / "student.json", _FORMAT, "student")
        arrays, _ = read_tensors(Path(folder) / "student.safetensors")
        matrix = arrays.pop("tokens", None)
        vocabulary = {gram: n for n, gram in enumerate(said["vocabulary"])}
        tokens = None if matrix is None else Embeddings(said["tokenizer"], matrix)
        return cls(
            tuple(said["classes"]),
            vocabulary,
            **arrays,
            temperature=said["temperature"],
            tokens=tokens,
        )

    @cached_property
    def _grams(self) -> _Grams:
        return _Grams(self.vocabulary, self.idf)


class _Grams:
    """The features of texts: TF-IDF of the grams of a vocabulary.

    Args:
        vocabulary: The place of each gram among the features.
        idf: Inverse document frequency of each gram, `(grams,)`.
    """

    def __init__(self, vocabulary: dict[str, int], idf: NDArray[Any]) -> None:
        self.vocabulary = vocabulary
        self.idf = idf
        self._of_words: dict[str, tuple[int, ...]] = {}
        self._bytes = 0

    def features(self, text: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the places of a text's known grams, and their TF-IDF; words and characters have length 1 each."""
        known = (self.vocabulary[gram] for gram in _words(text) if gram in self.vocabulary)
        inside = (place for word in text.lower().split() for place in self._inside(word))
        parts = []
        for counts in (Counter(known), Counter(inside)):
            places = np.fromiter(counts, np.int64, len(counts))
            often = np.fromiter(counts.values(), np.float32, len(counts))
            values = (1.0 + np.log(often)) * self.idf[places]
            parts.append((places, values / max(math.sqrt(float(values @ values)), 1e-12)))
        return np.concatenate([places for places, _ in parts]), np.concatenate(
            [values for _, values in parts]
        )

    def _inside(self, word: str) -> tuple[int, ...]:
        """Return the places of the known grams inside a word; they are kept, since words come again.

        What is kept is bounded by its size: one word can be as long as a text. When it is full, it
        is begun anew.
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


def _names_of(answers: Sequence[Any]) -> NDArray[Any]:
    """Return answers as names of classes, `(rows,)`; refuse those that are none."""
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
        got = f"only {np.unique(names).tolist()}"
        remedy = "Give texts on which the large model's answers differ."
        raise ArgumentError("answers", expected="two classes or more", got=got, remedy=remedy)
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


def _weights(model: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return weights, `(features, classes)`, and bias of a fitted regression; for two classes it has one column."""
    if len(model.classes_) > 2:
        return model.coef_.T, model.intercept_
    return np.hstack([-model.coef_.T / 2, model.coef_.T / 2]), np.hstack(
        [-model.intercept_ / 2, model.intercept_ / 2]
    )


def _temperature(model: Any, features: Any, names: NDArray[Any]) -> float:
    """Return the temperature, from 0.05 to 5, at which a fitted model is the likeliest on held-out texts."""
    known, (weights, bias) = np.flatnonzero(np.isin(names, model.classes_)), _weights(model)
    logits = features[known] @ weights + bias
    right = np.searchsorted(model.classes_, names[known])

    def likelihood(temperature: float) -> float:
        shares = softmax(logits / temperature)[np.arange(len(known)), right]
        return float(np.log(np.maximum(shares, 1e-300)).mean())

    return float(max(np.geomspace(0.05, 5.0, 80), key=likelihood)) if len(known) else 1.0
