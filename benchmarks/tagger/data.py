"""WNUT-17 as batches of tokens: emerging and rare entities in tweets and posts (Derczynski et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ponder.tasks import IGNORED_LABEL

__all__ = ["Text", "batches", "read_texts", "tags_of"]

LONGEST = 64  # tokens


@dataclass(frozen=True)
class Text:
    """The words of a text and their tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_texts(path: Path) -> list[Text]:
    """Read a file of two columns, word and tag, with an empty line after each text."""
    texts = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        pairs = [line.split("\t") for line in block.splitlines() if "\t" in line]
        if pairs:
            texts.append(Text(tuple(word for word, _ in pairs), tuple(tag for _, tag in pairs)))
    return texts


def tags_of(texts: Sequence[Text]) -> list[str]:
    """Return the tags of some texts, "O" first."""
    found = {tag for text in texts for tag in text.tags}
    return ["O", *sorted(found - {"O"})]


def batches(
    texts: Sequence[Text], tokenizer: Any, tags: Sequence[str], size: int, *, shuffled: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Yield batches; the first token of a word has its tag, and the others no label."""
    number = {tag: place for place, tag in enumerate(tags)}
    order = torch.randperm(len(texts)).tolist() if shuffled else range(len(texts))
    order = list(order)
    for first in range(0, len(texts), size):
        own = [texts[place] for place in order[first : first + size]]
        batch = tokenizer(
            [list(text.words) for text in own],
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        )
        labels = torch.full(batch["input_ids"].shape, IGNORED_LABEL)
        for row, text in enumerate(own):
            before = None
            for place, word in enumerate(batch.word_ids(row)):
                if word is not None and word != before:
                    labels[row, place] = number.get(text.tags[word], 0)
                before = word
        yield {**batch, "labels": labels}
