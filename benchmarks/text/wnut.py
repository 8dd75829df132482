"""WNUT-17: named entities that are rare and new, in messages; read from a folder that the user names.

`<folder>/wnut17/{train,dev,test}.conll` holds a word and its tag a line, with a tab between them, and a blank line
after each sentence. Six types of entities make 13 tags.

Reference: Derczynski et al., "Results of the WNUT2017 Shared Task on Novel and Emerging Entity Recognition", 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmarks.examples import MissingDataError, read_text
from ponder.errors import DataError

__all__ = ["SPLITS", "TAGS", "Sentence", "Tokenized", "load", "tokenize", "word_tags"]

SPLITS = ("train", "dev", "test")
_TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
TAGS = ("O", *(f"{prefix}-{kind}" for kind in _TYPES for prefix in "BI"))
_IGNORED = -100


@dataclass(frozen=True)
class Sentence:
    """Words and their tags, one for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def load(folder: Path | None, split: str) -> list[Sentence]:
    """The sentences of a split.

    Raises:
        MissingDataError: There is no folder, or the file is not in it.
        DataError: The file is of another format.
    """
    if folder is None:
        raise MissingDataError("WNUT-17: no folder was given. Pass --text-dir, or set TEXT_DIR.")
    path = folder / "wnut17" / f"{split}.conll"
    if not path.is_file():
        raise MissingDataError(f"{path}: there is no such file. Pass --text-dir (or TEXT_DIR), the folder above.")
    sentences, rows = list[Sentence](), list[tuple[str, str]]()
    for number, line in enumerate([*read_text(path).split("\n"), ""], start=1):
        if line.strip():
            word, tab, tag = line.strip("\r").rpartition("\t")
            if not word.strip() or not tab or tag not in TAGS:
                raise DataError(
                    f"{path}, line {number}: expected a word, a tab and one of {len(TAGS)} tags; got {line[:80]!r}. "
                    "Correct or remove it."
                )
            rows.append((word, tag))
        elif rows:
            sentences.append(Sentence(tuple(word for word, _ in rows), tuple(tag for _, tag in rows)))
            rows = []
    if not sentences:
        raise DataError(f"{path}: expected sentences; got none. Fetch it anew.")
    return sentences


@dataclass(frozen=True)
class Tokenized:
    """Rows for a model, and where words begin.

    Args:
        rows: Token ids, mask and labels: the tag of a word stands at its first piece, and −100 everywhere else.
        first_pieces: The place of the first piece of each word, of each sentence; a word that was cut off, or of which
            no piece is left, has none.
    """

    rows: list[dict[str, Any]]
    first_pieces: list[dict[int, int]]


def tokenize(sentences: Sequence[Sentence], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokenized:
    """Sentences as pieces of words, `max_length` at most."""
    made = Tokenized([], [])
    for sentence in sentences:
        given = tokenizer(list(sentence.words), is_split_into_words=True, truncation=True, max_length=max_length)
        first: dict[int, int] = {}
        for piece, word in enumerate(given.word_ids()):
            if word is not None:
                first.setdefault(word, piece)
        labels = [_IGNORED] * len(given["input_ids"])
        for word, piece in first.items():
            labels[piece] = TAGS.index(sentence.tags[word])
        made.rows.append({"input_ids": given["input_ids"], "attention_mask": given["attention_mask"], "labels": labels})
        made.first_pieces.append(first)
    return made


def word_tags(predictions: Sequence[int], sentence: Sentence, first_pieces: Mapping[int, int]) -> list[str]:
    """The tags of all words of a sentence, by the predictions at their first pieces; `O` where there is none.

    Args:
        predictions: A tag a piece, by its place in `TAGS`.
        sentence: The sentence.
        first_pieces: The place of the first piece of each word of this sentence; see `Tokenized`.
    """
    tags = ["O"] * len(sentence.words)
    for word, piece in first_pieces.items():
        tags[word] = TAGS[predictions[piece]]
    return tags
