"""WNUT-17: named entities that are rare and new, in messages; read from a folder that the user names.

`<folder>/wnut17/{train,dev,test}.conll` holds a word and its tag a line, with a tab between them, and a blank line
after each sentence. Six types of entities make 13 tags. An entity counts where its start, its end and its type are
right.

Reference: Derczynski et al., "Results of the WNUT2017 Shared Task on Novel and Emerging Entity Recognition", 2017.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmarks.examples import read_text
from benchmarks.files import DataError
from ponder.tasks import IGNORED_LABEL

__all__ = ["TAGS", "EntityScore", "Sentence", "Tokenized", "load", "score", "spans", "tokenize", "word_tags"]

_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
TAGS = ("O", *(f"{prefix}-{kind}" for kind in _TYPES for prefix in "BI"))


@dataclass(frozen=True)
class Sentence:
    """Words and their tags, one for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Tokenized:
    """Rows for a model, and the first pieces of words.

    Args:
        rows: Token ids, mask and labels: the tag of a word stands at its first piece, and −100 everywhere else.
        first_pieces: The place of the first piece of each word, of each sentence; a word that was cut off has none.
    """

    rows: list[dict[str, Any]]
    first_pieces: list[dict[int, int]]


@dataclass(frozen=True)
class EntityScore:
    """Precision, recall and F1 of entities, over all types together (micro-averaged); 0 where nothing was found."""

    f1: float
    precision: float
    recall: float


def load(folder: Path | None, split: str) -> list[Sentence]:
    """Return the sentences of a split."""
    if folder is None:
        raise DataError("WNUT-17: no folder was given. Pass --text-dir, or set TEXT_DIR.")
    path = folder / "wnut17" / f"{split}.conll"
    sentences, rows = list[Sentence](), list[tuple[str, str]]()
    for number, line in enumerate([*read_text(path, "--text-dir (or TEXT_DIR)").split("\n"), ""], start=1):
        if line.strip():
            word, _, tag = line.strip("\r").rpartition("\t")
            if not word.strip() or tag not in TAGS:
                raise DataError(f"{path}, line {number}: expected a word, a tab and a tag; got {line[:80]!r}.")
            rows.append((word, tag))
        elif rows:
            sentences.append(Sentence(tuple(word for word, _ in rows), tuple(tag for _, tag in rows)))
            rows = []
    return sentences


def tokenize(sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokenized:
    """Return sentences as pieces of words, `max_length` at most."""
    made = Tokenized([], [])
    for sentence in sentences:
        given = tokenizer(list(sentence.words), is_split_into_words=True, truncation=True, max_length=max_length)
        first: dict[int, int] = {}
        for piece, word in enumerate(given.word_ids()):
            if word is not None:
                first.setdefault(word, piece)
        labels = [IGNORED_LABEL] * len(given["input_ids"])
        for word, piece in first.items():
            labels[piece] = TAGS.index(sentence.tags[word])
        made.rows.append({"input_ids": given["input_ids"], "attention_mask": given["attention_mask"], "labels": labels})
        made.first_pieces.append(first)
    return made


def word_tags(predictions: Sequence[int], sentence: Sentence, first_pieces: Mapping[int, int]) -> list[str]:
    """Return the tags of all words of a sentence, by the predictions at their first pieces; `O` where there is none."""
    tags = ["O"] * len(sentence.words)
    for word, piece in first_pieces.items():
        tags[word] = TAGS[predictions[piece]]
    return tags


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return the entities of a sentence as (first word, word behind the last, type).

    As in the evaluation script of the CoNLL-2000 shared task, an `I` that continues nothing starts an entity.

    Example:
        >>> sorted(spans(["B-place", "I-place", "O", "I-name", "B-name"]))
        [(0, 2, 'place'), (3, 4, 'name'), (4, 5, 'name')]
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        if kind and (prefix != "I" or own != kind):
            found.add((start, place, kind))
            kind = ""
        if not kind and prefix != "O":
            start, kind = place, own
    return found


def score(predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]]) -> EntityScore:
    """Return the score of predicted tags against those of the data, sentence by sentence.

    Example:
        >>> score([["B-name", "O"]], [["B-name", "B-name"]])
        EntityScore(f1=0.6666666666666666, precision=1.0, recall=0.5)
    """
    right = found = there = 0
    for ours, theirs in zip(predicted, gold, strict=True):
        one, other = spans(ours), spans(theirs)
        right, found, there = right + len(one & other), found + len(one), there + len(other)
    precision, recall = right / found if found else 0.0, right / there if there else 0.0
    return EntityScore(2 * right / (found + there) if right else 0.0, precision, recall)
